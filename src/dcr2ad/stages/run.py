"""All stages of a recipe, one after the other: from photographs to an evaluation table.

Reads a recipe and a folder of labelled photographs; writes one sub-folder a stage under the run's folder. A stage whose
manifest says it is done is skipped, a stopped one continues. Knows nothing about what happens inside a stage.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from dcr2ad.artifacts import read_records, write_text
from dcr2ad.config import Recipe
from dcr2ad.errors import InputError
from dcr2ad.expert import Expert
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.hf import HFModel
from dcr2ad.stages.evaluate import evaluate
from dcr2ad.stages.instruct import build_benchmark, build_instructions
from dcr2ad.stages.kinds import expert_with_kinds, fit_kinds, pass_on
from dcr2ad.stages.knowledge import build_knowledge_base
from dcr2ad.stages.mine import mine_boundary
from dcr2ad.stages.synthesize import synthesize_pairs
from dcr2ad.teacher import BuiltinTeacher
from dcr2ad.training.krdpo import train_krdpo
from dcr2ad.training.sft import train_sft
from dcr2ad.types import BoundaryQuestion, EvalProtocol, EvalReport, PreferencePair, Question

ProgressBar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Opens a progress bar under a label."""


def run_recipe(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    bar: ProgressBar,
    say: Callable[[str], None],
    datasets: Sequence[str] = (),
) -> list[tuple[str, EvalReport]]:
    """Run every stage of a recipe.

    Args:
        recipe: settings of all stages.
        data: folder of labelled photographs with the splits the recipe names.
        out: the run's folder.
        bar: opens a progress bar.
        say: tells the user one line.
        datasets: names of data sets to keep; empty for all.

    Returns:
        each evaluation's tag and report: base model, SFT and KR-DPO under each protocol of the recipe.

    Raises:
        Dcr2adError: any stage's; what was finished stays, and the next run goes on from there.
    """
    write_text(out / "recipe.json", recipe.model_dump_json(indent=2) + "\n")
    knowledge = _knowledge(recipe, out, say)
    expert = Expert() if recipe.instruct.expert or any(p.expert for p in recipe.evaluate.protocols) else None
    if recipe.instruct.kinds and expert is not None:
        with bar("kinds") as update:
            seen = fit_kinds(
                data, out / "kinds", knowledge, expert, split=recipe.instruct.split, datasets=datasets, progress=update
            )
        expert_with_kinds(out / "kinds", expert)
        say(f"kinds: {seen.defects} defects, first guess right on held-out groups: {seen.right}")
    with bar("instruct") as update:
        made = build_instructions(
            data,
            out / "instruct",
            knowledge,
            recipe.instruct,
            seed=recipe.seed,
            expert=expert,
            progress=update,
            datasets=datasets,
        )
    say(f"instruct: {made.questions} questions on {made.images} images, dropped {sum(made.rejected.values())}")
    with bar("benchmark") as update:
        bench = build_benchmark(
            data,
            out / "bench",
            knowledge,
            split=recipe.evaluate.split,
            max_images=recipe.evaluate.max_images,
            seed=recipe.seed,
            expert=expert,
            progress=update,
            datasets=datasets,
        )
    say(f"benchmark: {bench.questions} questions on {bench.images} images")
    del expert
    _train(recipe, out, knowledge, bar, say)
    benchmark = list(read_records(out / "bench" / "questions.jsonl", Question))
    reports = []
    for stage, spec in (("base", recipe.model), ("sft", str(out / "sft/model")), ("krdpo", str(out / "krdpo/model"))):
        with _opened(spec) as model:
            for protocol in recipe.evaluate.protocols:
                tag = f"{stage}-{tag_of(protocol)}"
                with bar(f"evaluate {tag}") as update:
                    reports.append(
                        (tag, evaluate(model, benchmark, knowledge, protocol, out / "evaluate" / tag, progress=update))
                    )
    return reports


def tag_of(protocol: EvalProtocol) -> str:
    """Short name of a protocol, for folders: ``1shot-routed-expert-score``."""
    context: str = protocol.context
    if context == "routed" and (protocol.routing, protocol.orders) != ("hybrid", 1):
        context += f"-{protocol.routing}" + (f"{protocol.orders}" if protocol.orders > 1 else "")
    parts = [f"{protocol.shots}shot", context, "expert" if protocol.expert else "alone", protocol.answering]
    return "-".join(parts + ([] if protocol.scoring == "strict" else [protocol.scoring]))


def _knowledge(recipe: Recipe, out: Path, say: Callable[[str], None]) -> KnowledgeBase:
    settings = recipe.knowledge
    base, report = build_knowledge_base(
        out / "knowledge",
        mmad=settings.mmad,
        real_iad=settings.real_iad,
        own=settings.own,
        builtin=settings.builtin,
        exclude_sources=settings.exclude_sources,
    )
    say(f"knowledge: {report.entries} entries")
    return base


def _train(recipe: Recipe, out: Path, knowledge: KnowledgeBase, bar: ProgressBar, say: Callable[[str], None]) -> None:
    """SFT, mining, KR-RTS and KR-DPO; a model is loaded only for a stage that is not done."""
    questions = list(read_records(out / "instruct" / "questions.jsonl", Question))
    with _opened(recipe.model) as model, bar("sft") as update:
        done = train_sft(
            model.vlm, questions, knowledge, recipe.sft, out / "sft", base_spec=recipe.model, seed=recipe.seed, progress=update
        )
    pass_on(out / "kinds", out / "sft/model")
    say(f"sft: {_losses(done)}")
    with _opened(str(out / "sft/model")) as model:
        with bar("mine") as update:
            mined = mine_boundary(model, questions, knowledge, recipe.mine, out / "mine", progress=update)
        say(
            f"mine: {mined['kept']} of {mined['questions']} questions within {recipe.mine.threshold} of chance {mined['sides']}"
        )
    boundary = list(read_records(out / "mine" / "boundary.jsonl", BoundaryQuestion))
    if not boundary:
        raise InputError(
            "mining found no question near chance, so there is nothing to prefer",
            "Raise mine.threshold in the recipe, or use more images",
        )
    with _opened(str(out / "sft/model")) as model, bar("synthesize") as update:
        paired = synthesize_pairs(
            boundary,
            knowledge,
            BuiltinTeacher(recipe.seed),
            recipe.synthesize,
            out / "synthesize",
            model=model,
            seed=recipe.seed,
            progress=update,
        )
    say(f"synthesize: {paired['pairs']} pairs {paired['kinds']}, dropped {sum(paired['dropped'].values())}")
    pairs = list(read_records(out / "synthesize" / "pairs.jsonl", PreferencePair))
    if not pairs:
        raise InputError("no preference pair could be made", f"See {out / 'synthesize' / 'rejected.jsonl'}")
    with _opened(str(out / "sft/model"), base=True) as model, bar("krdpo") as update:
        tuned = train_krdpo(
            model.vlm,
            pairs,
            knowledge,
            recipe.krdpo,
            out / "krdpo",
            base_spec=str(out / "sft/model"),
            seed=recipe.seed,
            progress=update,
        )
    pass_on(out / "kinds", out / "krdpo/model")
    say(f"krdpo: {_losses(tuned)}")


def _losses(summary: dict[str, Any]) -> str:
    return f"{summary['steps']} steps, loss {summary['first_loss']:.3f} to {summary['last_loss']:.3f}"


@contextmanager
def _opened(spec: str, *, base: bool = False) -> Iterator[HFModel]:
    """A model (or the base of its adapter) for the length of one stage; its memory is given back at the end."""
    model = HFModel.open_base(spec) if base else HFModel.open(spec)
    try:
        yield model
    finally:
        del model
        gc.collect()
