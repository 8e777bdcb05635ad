"""A user's own line: good photographs in, a model of that line out, measured before and after.

Reads a folder of good photographs; writes an index of them, a benchmark, every stage of the method under one folder, and
``model/``. Defects are drawn onto the photographs, since a line has few real ones; they teach the stages that labelled defects
teach elsewhere. Knows nothing about what happens inside a stage: `dcr2ad.stages.run` does the work. Not in the paper.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from dcr2ad.artifacts import write_text
from dcr2ad.config import (
    EvaluateSettings,
    InstructSettings,
    KrdpoSettings,
    MineSettings,
    Recipe,
    SftSettings,
    Variant,
)
from dcr2ad.datasets.good import bench_split, evenly, forbid_bench, good_photographs, usable, write_index
from dcr2ad.datasets.onto import draw_planned, plan_defects, write_onto
from dcr2ad.errors import ImageError, InputError
from dcr2ad.expert import Expert
from dcr2ad.kinds import FILE
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.limits import LEAST
from dcr2ad.models.adapters import adapter_of
from dcr2ad.models.hf import trained_folder
from dcr2ad.models.shipped import full_name
from dcr2ad.stages.findings import inspect_sample
from dcr2ad.stages.instruct import build_benchmark
from dcr2ad.stages.kept_findings import KeptFindings
from dcr2ad.stages.kinds import expert_with_kinds
from dcr2ad.stages.run import Given, ProgressBar, Subset, run_recipe
from dcr2ad.types import EvalProtocol, EvalReport, Sample

HELD_OUT = 5
"""Without labelled defects every fifth item is held out, and defects drawn onto it are asked about."""
BESIDE = LEAST
"""Photographs that all others are compared with, and whose limit is the line's own, as in a diagnosis beside as many."""
ENOUGH = 3 * BESIDE
"""Photographs from which on so many can be spared."""
DRAWN_EACH = 3
"""Defects drawn onto each held-out photograph."""
SCALES = (1.0, 1.6, 2.4)
"""Strengths of drawn defects that are tried: of the weakest the expert must see `SEEN`, or else the last is taken."""
SEEN = 0.5
"""Share of drawn defects that must pass the line's limit: of what the expert misses, its findings teach nothing."""
TRIED = 24
"""Defects drawn to try a strength."""
PICTURES = 320
"""Pictures trained on, about: the fewer the photographs, the more defects are drawn onto each."""
MODEL = "model"
"""Folder of the result."""

_TRAINING = {
    "method": "lora",
    "lora_rank": 16,
    "lora_alpha": 32,
    "train_projector": False,
    "precision": "auto",
    "group_images": True,
}
_SHAPE = ("lora_rank", "lora_alpha", "train_projector", "freeze_vision")
"""Settings that one adapter has from its first training to its last."""
HOUR = Recipe(
    name="adapt",
    instruct=InstructSettings(direct_share=0.2, listed_share=0.15, exchanged_share=0.5, supported_only=True, hard_share=0.9),
    sft=SftSettings.model_validate(
        {
            **_TRAINING,
            "learning_rate": 3e-4,
            "batch_size": 5,
            "gradient_accumulation": 2,
            "epochs": 3,
            "max_steps": 60,
            "save_steps": 10,
        }
    ),
    mine=MineSettings(threshold=0.1, wanted=96),
    krdpo=KrdpoSettings.model_validate(
        {**_TRAINING, "learning_rate": 5e-5, "batch_size": 2, "gradient_accumulation": 4, "max_steps": 24, "save_steps": 6}
    ),
    variants=(
        Variant(name="before", label="before", train="nothing"),
        Variant(name="sft", label="after SFT", train="sft"),
        Variant(name="krdpo", label="after SFT + KR-DPO", train="krdpo"),
    ),
    evaluate=EvaluateSettings(
        protocols=(EvalProtocol(context="none", answering="reason"), EvalProtocol(context="routed", answering="reason"))
    ),
)
"""What is done where the user gives no recipe."""


@dataclass
class Adapted:
    """What came of it.

    Attributes:
        photographs: good photographs trained with.
        held_out: good photographs held out.
        left_out: photographs left out, by reason.
        reports: tag -> evaluation; ``before``, ``sft`` and ``krdpo`` under each protocol.
        chosen: name of the variant that became the model.
        model: its folder.
        notes: what the user must know.
    """

    photographs: int
    held_out: int
    left_out: dict[str, int]
    reports: dict[str, EvalReport] = field(default_factory=dict)
    chosen: str = ""
    model: Path = Path()
    notes: list[str] = field(default_factory=list)


def adapt(
    photographs: Path,
    out: Path,
    recipe: Recipe | None,
    *,
    model: str,
    bench: Path | None,
    object_name: str | None,
    datasets: Sequence[str],
    seed: int,
    bar: ProgressBar,
    say: Callable[[str], None],
) -> Adapted:
    """Make a model of a line; continues a stopped run.

    Args:
        photographs: folder of good photographs: plain images, or any layout `read_folder` knows, whose good ones are taken (of
            an index all but its ``dev`` split).
        out: the run's folder.
        recipe: settings of the stages in place of those of `HOUR`; model, seeds and variants in it do not count.
        model: where training begins.
        bench: labelled photographs (of an index its ``dev`` split), or a questions.jsonl, to measure on before and after; None
            holds photographs out and draws defects onto them.
        object_name: the object in words; None reads it off the folder.
        datasets: names of data sets to keep, of photographs and bench.
        seed: seed of everything drawn by lot.
        bar: opens a progress bar.
        say: tells the user one line.

    Raises:
        InputError: too few good photographs, or nothing can be made of them.
        Dcr2adError: any stage's; what was finished stays.
    """
    good = good_photographs(photographs, object_name, datasets)
    if bench is None:
        guard = None
    else:
        with bar("images of the benchmark") as update:
            guard = forbid_bench(bench, datasets, update)
    kept, left_out = usable(good, guard)
    items = list(dict.fromkeys(sample.item for sample in kept))
    held = set() if bench is not None else set(items[HELD_OUT - 1 :: HELD_OUT]) or set(items[-1:])
    held_out = [sample for sample in kept if sample.item in held]
    line = [sample for sample in kept if sample.item not in held]
    beside = evenly(line, BESIDE) if len(line) >= ENOUGH else []
    shown = {sample.item for sample in beside}
    line = [sample for sample in line if sample.item not in shown]
    write_index(held_out, line, out / "good", beside=beside)
    settings = _settings(recipe or HOUR, len(line), full_name(model), seed, references=len(beside) or 1)
    if recipe is None:
        strength = _strength(line, beside, out, seed, bar, say)
        settings = settings.model_copy(update={"instruct": settings.instruct.model_copy(update={"draw_strength": strength})})
    kinds = trained_folder(model)
    kinds = kinds if kinds is not None and (kinds / FILE).is_file() else None
    asked = bench if bench is not None and bench.is_file() else out / "bench" / "questions.jsonl"
    if asked != bench:
        _build_bench(bench, held_out, beside, out, kinds, datasets, settings.instruct.draw_strength, seed, bar, say)
    done = Adapted(len(line) + len(beside), len(held_out), left_out)
    given = Given(bench=asked, kinds=kinds)
    first, then = Subset(("before", "sft")), Subset(("krdpo",))
    done.reports.update(run_recipe(settings, out / "good", out, bar=bar, say=say, subset=first, given=given))
    try:
        done.reports.update(run_recipe(settings, out / "good", out, bar=bar, say=say, subset=then, given=given))
    except InputError as error:
        done.notes.append(f"no preference training: {error}")
    _choose(done, out)
    return done


def _settings(recipe: Recipe, photographs: int, model: str, seed: int, *, references: int = 1) -> Recipe:
    """A recipe for this line: the rows of `HOUR`, and defects drawn so that about `PICTURES` pictures come of it.

    Where training begins with an adapter's own folder, it goes on with that adapter, and keeps its rank.
    """
    each = recipe.instruct.draw_defects or min(12, max(2, round(PICTURES / photographs) - 1))
    instruct = recipe.instruct.model_copy(update={"draw_defects": each, "split": "train", "references": references})
    fixed: dict[str, Any] = {"model": model, "seed": seed, "seeds": (), "variants": HOUR.variants, "instruct": instruct}
    adapter = adapter_of(model)
    if adapter is not None:
        shape = {key: adapter.recipe[key] for key in _SHAPE if key in adapter.recipe}
        fixed |= {stage: getattr(recipe, stage).model_copy(update=shape) for stage in ("sft", "krdpo")}
    if recipe.evaluate.protocols == () and recipe.evaluate.grid is None:
        fixed["evaluate"] = HOUR.evaluate
    return recipe.model_copy(update=fixed)


def _strength(
    line: Sequence[Sample], beside: Sequence[Sample], out: Path, seed: int, bar: ProgressBar, say: Callable[[str], None]
) -> float:
    """How strongly defects are drawn onto this line, one of `SCALES`; kept in a file, so that a stopped run goes on with it."""
    file = out / "strength.json"
    if file.is_file():
        return float(json.loads(file.read_text(encoding="utf-8"))["strength"])
    knowledge, expert = KnowledgeBase.builtin(), Expert()
    good = [sample.model_copy(update={"references": _others(sample, line, beside)}) for sample in evenly(line, TRIED)]
    shares: dict[float, float] = {}
    with bar("how strongly to draw") as update:
        for number, scale in enumerate(SCALES):
            folder = out / "tried" / f"{scale:g}"
            planned = plan_defects(good, -(-TRIED // len(good)), folder, knowledge, seed=seed, scale=scale)
            seen = []
            for item in islice(planned, TRIED):
                with suppress(ImageError):
                    draw_planned(item)
                    found = inspect_sample(item.sample, expert, knowledge)[0].expert
                    seen.append(found is not None and found.is_anomalous)
                update(number * TRIED + len(seen), len(SCALES) * TRIED)
            shares[scale] = sum(seen) / max(1, len(seen))
            if shares[scale] >= SEEN:
                break
    told = ", ".join(f"{share:.0%} at {scale:g}" for scale, share in shares.items())
    say(f"drawn defects that the visual expert sees: {told} times the ordinary strength; drawn at {scale:g}")
    shutil.rmtree(out / "tried", ignore_errors=True)
    write_text(file, json.dumps({"strength": scale, "seen": shares}) + "\n")
    return scale


def _others(sample: Sample, line: Sequence[Sample], beside: Sequence[Sample]) -> tuple[str, ...]:
    """What a photograph is compared with: those set aside, else the first other one."""
    return tuple(other.image for other in beside) or tuple(o.image for o in line if o.image != sample.image)[:1]


def _build_bench(
    bench: Path | None,
    held: Sequence[Sample],
    beside: Sequence[Sample],
    out: Path,
    kinds: Path | None,
    datasets: Sequence[str],
    strength: float,
    seed: int,
    bar: ProgressBar,
    say: Callable[[str], None],
) -> None:
    """Questions about labelled photographs, or about held-out ones and defects drawn onto them."""
    knowledge = KnowledgeBase.builtin()
    source, split = bench, "" if bench is None else bench_split(bench, datasets)
    if source is None:
        source, datasets = out / "held-out", ()
        write_onto(held, source, DRAWN_EACH, knowledge, seed=seed + 1, scale=strength)
    with bar("benchmark") as update:
        made = build_benchmark(
            source,
            out / "bench",
            knowledge,
            split=split,
            seed=seed,
            expert=KeptFindings(expert_with_kinds(kinds, Expert())),
            progress=update,
            datasets=datasets,
            parts=("test",) if bench is not None else ("test", "train"),
            beside=[sample.image for sample in beside],
        )
    say(f"benchmark: {made.questions} questions on {made.images} images")


def _choose(done: Adapted, out: Path) -> None:
    """Copy the better of both trained models, by its average under the first protocol, to ``model/``."""
    averages: dict[str, float] = {}
    for tag, report in done.reports.items():
        name = tag.partition("-")[0]
        if name in {"before", "sft", "krdpo"} and report.average is not None:
            averages.setdefault(name, report.average.value)
    trained = [name for name in ("krdpo", "sft") if name in averages]
    done.chosen = max(trained, key=averages.__getitem__)
    if averages[done.chosen] <= averages["before"]:
        done.notes.append("on this benchmark the trained model is no better than the one it began with")
    done.model = out / MODEL
    temporary = out / f".{MODEL}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(out / done.chosen / "model", temporary)
    shutil.rmtree(done.model, ignore_errors=True)
    temporary.rename(done.model)
