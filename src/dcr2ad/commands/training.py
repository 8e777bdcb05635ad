"""Training stages, and the run of all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcr2ad import console
from dcr2ad.artifacts import read_records, write_text
from dcr2ad.commands.common import load_knowledge, must_exist, print_counts, read_recipe, say
from dcr2ad.commands.evaluation import run_report
from dcr2ad.config import load_recipe
from dcr2ad.errors import InputError, UnknownNameError
from dcr2ad.types import BoundaryQuestion, PreferencePair, Question

_MINE_TABLES = {"subtasks", "histogram"}


def run_sft(
    questions: Sequence[Path], out: Path, *, model: str, recipe: Path | None, knowledge: Path | None, seed: int
) -> None:
    """Verb `sft`."""
    rows = [row for file in questions for row in read_records(file, Question)]
    settings, base = read_recipe(recipe).sft, load_knowledge(knowledge)
    from dcr2ad.models.hf import HFModel
    from dcr2ad.stages.kinds import pass_on
    from dcr2ad.training.launch import is_main_process
    from dcr2ad.training.sft import train_sft

    with console.progress("sft") as update:
        done = train_sft(HFModel.open_base(model).vlm, rows, base, settings, out, base_spec=model, seed=seed, progress=update)
    if is_main_process():
        for file in questions:
            pass_on(file.parent, out / "model")
        print_counts("sft", done, out / "model")


def run_mine(questions: Path, out: Path, *, model: str, recipe: Path | None, knowledge: Path | None, fresh: bool) -> None:
    """Verb `mine`."""
    rows = list(read_records(questions, Question))
    from dcr2ad.models.base import open_model
    from dcr2ad.stages.mine import mine_boundary

    opened, base = open_model(model), load_knowledge(knowledge)
    with console.progress("mine") as update:
        done = mine_boundary(opened, rows, base, read_recipe(recipe).mine, out, fresh=fresh, progress=update)
    print_counts("mine", {name: value for name, value in done.items() if name not in _MINE_TABLES}, out / "boundary.jsonl")
    sides = [(name, found.get("above", 0), found.get("below", 0)) for name, found in done["subtasks"].items()]
    console.out.print(console.table("kept, by sub-task", ("sub-task", "above chance", "below chance"), sides))
    most, bins = max(done["histogram"]), len(done["histogram"])
    bars = [
        (f"{number / bins:.2f} to {(number + 1) / bins:.2f}", count, ("█" * round(40 * count / max(1, most))).ljust(40))
        for number, count in enumerate(done["histogram"])
    ]
    console.out.print(console.table("probability of the right option", ("from", "questions", ""), bars))
    console.err.print(f"picture: {out / 'histogram.png'}", markup=False)
    if not done["enough"]:
        console.err.print(
            f"only {done['in_band']} questions lie in the band; {done['wanted']} were wanted, and it is not widened",
            markup=False,
        )


def run_synthesize(
    boundary: Path,
    out: Path,
    *,
    model: str | None,
    recipe: Path | None,
    knowledge: Path | None,
    seed: int,
    fresh: bool,
    export: Sequence[str],
    teacher: str | None = None,
) -> None:
    """Verb `synthesize`."""
    from dcr2ad.endpoint_teacher import open_teacher
    from dcr2ad.models.base import open_model
    from dcr2ad.report.pairs import render_pairs
    from dcr2ad.stages.pair_formats import FORMATS, export_pairs
    from dcr2ad.stages.synthesize import one_sided, synthesize_pairs

    rows = list(read_records(boundary, BoundaryQuestion))
    settings = read_recipe(recipe).synthesize
    writer = open_teacher(teacher or settings.teacher, seed)
    for form in export:
        if form not in FORMATS:
            raise UnknownNameError(f"no format {form!r}", f"Use one of: {', '.join(FORMATS)}")
    base = load_knowledge(knowledge)
    with console.progress("synthesize") as update:
        done = synthesize_pairs(
            rows,
            base,
            writer,
            settings,
            out,
            model=open_model(model) if model else None,
            seed=seed,
            fresh=fresh,
            progress=update,
        )
    print_counts("synthesize", done, out / "pairs.jsonl")
    pairs = list(read_records(out / "pairs.jsonl", PreferencePair))
    write_text(out / "examples.html", render_pairs(pairs, base))
    console.err.print(f"examples: {out / 'examples.html'}", markup=False)
    for form in export:
        console.err.print(f"{form}: {export_pairs(pairs, base, form, out)}", markup=False)
    if warning := one_sided(done):
        say(warning)
    told = done["told_by_text"]
    if told and told["verdict"] == "leaks":
        what = f"a reader of the texts alone tells chosen from rejected in {told['accuracy']:.0f} % of the pairs"
        console.err.print(f"{what} (allowed: {told['allowed']:.0f} %)", markup=False)


def run_krdpo(
    pairs: Path,
    out: Path,
    *,
    model: str,
    recipe: Path | None,
    knowledge: Path | None,
    seed: int,
    rehearse: Sequence[Path] = (),
) -> None:
    """Verb `krdpo`."""
    rows = list(read_records(pairs, PreferencePair))
    rehearsed = [question for file in rehearse for question in read_records(file, Question)]
    settings, base = read_recipe(recipe).krdpo, load_knowledge(knowledge)
    if rehearsed and not settings.rehearsal_weight:
        raise InputError("--rehearse is given, and krdpo.rehearsal_weight is 0", "Set the weight in the recipe: 1.0 is usual")
    from dcr2ad.models.hf import HFModel
    from dcr2ad.stages.kinds import pass_on
    from dcr2ad.training.krdpo import displaced, train_krdpo
    from dcr2ad.training.launch import is_main_process

    with console.progress("krdpo") as update:
        done = train_krdpo(
            HFModel.open_base(model).vlm,
            rows,
            base,
            settings,
            out,
            base_spec=model,
            seed=seed,
            rehearsed=rehearsed,
            progress=update,
        )
    if is_main_process():
        pass_on(Path(model), out / "model")
        print_counts("krdpo", done, out / "model")
        if warning := displaced(done):
            say(warning)


def run_all(
    recipe: Path,
    data: Path | None,
    out: Path | None,
    *,
    datasets: Sequence[str],
    subset: dict[str, Sequence[Any]],
    questions: Sequence[Path],
    sft_model: str | None,
    bench: Path | None,
    kinds: Path | None,
) -> None:
    """Verb `run`."""
    loaded = load_recipe(recipe)
    if data is not None:
        must_exist(data)
    from dcr2ad.stages.run import Given, Subset, run_recipe

    folder = out or Path("runs") / loaded.name
    run_recipe(
        loaded,
        data,
        folder,
        bar=console.progress,
        say=say,
        datasets=datasets,
        subset=Subset(**{name: tuple(values) for name, values in subset.items()}),
        given=Given(tuple(questions), sft_model, bench, kinds),
    )
    run_report([folder], None, unseen=())


def run_adapt(
    photographs: Path,
    out: Path,
    *,
    model: str,
    bench: Path | None,
    object_name: str | None,
    datasets: Sequence[str],
    recipe: Path | None,
    seed: int,
) -> None:
    """Verb `adapt`."""
    settings = None if recipe is None else load_recipe(recipe)
    from dcr2ad.stages.adapt import adapt

    began = time.monotonic()
    done = adapt(
        photographs,
        out,
        settings,
        model=model,
        bench=bench,
        object_name=object_name,
        datasets=datasets,
        seed=seed,
        bar=console.progress,
        say=say,
    )
    run_report([out], None, unseen=())
    say(f"{done.photographs} good photographs trained with, {done.held_out} held out, left out: {done.left_out or 'none'}")
    say(f"{(time.monotonic() - began) / 60:.0f} minutes in this call; the model is that of {done.chosen!r}: {done.model}")
    for note in done.notes:
        say(f"note: {note}")
    say(f"use it: dcr2ad diagnose PART.jpg --reference GOOD.jpg -m {done.model}")


def run_pack(
    model: Path,
    out: Path,
    *,
    rank: int | None,
    energy: float,
    part: float,
    start: Path | None,
    licence: str,
    reports: Sequence[Path],
) -> None:
    """Verb `pack`."""
    from dcr2ad.stages.evaluate import read_report
    from dcr2ad.stages.kinds import pass_on
    from dcr2ad.training.packing import Packing, pack_adapter

    found = {folder.name: read_report(folder) for folder in reports}
    how = Packing(rank=rank, energy=energy, part=part, start=start, licence=licence, reports=found)
    made = pack_adapter(model, out, how)
    pass_on(model, out)
    size = sum(path.stat().st_size for path in out.iterdir()) / 2**20
    print_counts("pack", {"megabytes": round(size, 1), "training images": len(made.train_images), **made.extracted}, out)


def run_export(model: str, out: Path, *, dtype: str) -> None:
    """Verb `export`."""
    from dcr2ad.models.export import export_model

    made = export_model(model, out, dtype=dtype)
    print_counts("export", made.model_dump(), out)
    if made.vllm:
        say(
            f"serve it: vllm serve {out} --limit-mm-per-prompt '{{\"image\": 2}}'; then: --model openai:{out}@http://HOST:8000/v1"
        )
    else:
        say(f"loads in transformers (AutoModelForImageTextToText); vLLM is not known to serve this {made.architecture}")
