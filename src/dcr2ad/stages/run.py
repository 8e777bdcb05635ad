"""All stages of a recipe, one after the other: from photographs to the ablation's table (Table 4).

Reads a recipe and a folder of labelled photographs; writes one sub-folder a stage under the run's folder, and one a variant and
seed. A stage whose manifest says it is done is skipped, a stopped one continues. What a user has already (instruction data, an
SFT model, a benchmark) takes the place of the stage that would make it. Knows nothing about what happens inside a stage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path

from dcr2ad.artifacts import StageFolder, digest_records, read_records, write_records, write_text
from dcr2ad.baselines import BASELINES, NO_MODEL
from dcr2ad.config import Recipe, Variant
from dcr2ad.datasets.folder import read_folder
from dcr2ad.errors import InputError, UnknownNameError
from dcr2ad.expert import Expert
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.stages.evaluate import evaluate, summarise, write_report
from dcr2ad.stages.instruct import build_benchmark, build_instructions
from dcr2ad.stages.kept_findings import KeptFindings
from dcr2ad.stages.kinds import expert_with_kinds, fit_kinds, pass_on, without_held_out
from dcr2ad.stages.knowledge import build_knowledge_base
from dcr2ad.stages.overlap import training_overlap
from dcr2ad.stages.variants import Trained, Training, opened
from dcr2ad.types import EvalProtocol, EvalReport, Question

ProgressBar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Opens a progress bar under a label."""


@dataclass(frozen=True)
class Given:
    """What is there already and takes the place of the stage that would make it.

    Attributes:
        questions: instruction data; several files are joined.
        sft: an SFT model; all seeds go on from it.
        bench: questions of a benchmark.
        kinds: folder of a gallery of kinds, for the findings and beside the models.
    """

    questions: tuple[Path, ...] = ()
    sft: str | None = None
    bench: Path | None = None
    kinds: Path | None = None


@dataclass(frozen=True)
class Subset:
    """Which part of a recipe's ablation to run; empty is all of it.

    Attributes:
        variants: names.
        cells: names of cells as `tag_of` writes them, or patterns such as ``1shot-*-expert-*``.
        seeds: seeds of training.
    """

    variants: tuple[str, ...] = ()
    cells: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()


def run_recipe(
    recipe: Recipe,
    data: Path | None,
    out: Path,
    *,
    bar: ProgressBar,
    say: Callable[[str], None],
    datasets: Sequence[str] = (),
    subset: Subset = Subset(),
    given: Given = Given(),
) -> list[tuple[str, EvalReport]]:
    """Run every stage of a recipe, or those that a subset of its variants needs.

    Args:
        recipe: settings of all stages.
        data: folder of labelled photographs with the splits the recipe names; None where `given` holds what is made of it.
        out: the run's folder.
        bar: opens a progress bar.
        say: tells the user one line.
        datasets: names of data sets to keep; empty for all.
        subset: which variants, cells and seeds.
        given: what need not be made.

    Returns:
        each evaluation's tag and report: the baselines, then every variant and seed in every cell.

    Raises:
        UnknownNameError: the subset names what the recipe does not hold.
        Dcr2adError: any stage's; what was finished stays, and the next run goes on from there.
    """
    variants, cells, seeds = _chosen(recipe, subset)
    trains = any(variant.train != "nothing" and not (variant.name == "sft" and given.sft) for variant in variants)
    if data is None and (given.bench is None or (trains and not given.questions)):
        raise InputError("no photographs were named", "Use --data FOLDER, or both --questions and --bench")
    write_text(out / "recipe.json", recipe.model_dump_json(indent=2) + "\n")
    knowledge = _knowledge(recipe, out, say)
    questions = _data(recipe, data, out, knowledge, bar, say, datasets, given, trains=trains)
    training = Training(recipe, out, knowledge, questions, bar, say, given_sft=given.sft)
    benchmark = list(read_records(given.bench or out / "bench" / "questions.jsonl", Question))
    reports = evaluate_baselines(benchmark, knowledge, out / "evaluate", seed=recipe.seed)
    for seed in seeds:
        for model in training.models(variants, seed):
            reports += _evaluated(model, cells, benchmark, knowledge, out / "evaluate", bar, first=recipe.training_seeds[0])
    return list(dict(reports).items())


def tag_of(protocol: EvalProtocol) -> str:
    """Short name of a protocol, for folders: ``1shot-routed-expert-score``."""
    context: str = protocol.context
    if context == "routed" and (protocol.routing, protocol.orders) != ("hybrid", 1):
        context += f"-{protocol.routing}" + (f"{protocol.orders}" if protocol.orders > 1 else "")
    parts = [f"{protocol.shots}shot", context, "expert" if protocol.expert else "alone", protocol.answering]
    parts += [] if protocol.scoring == "strict" else [protocol.scoring]
    return "-".join(parts + ([] if protocol.precision == "fp32" else [protocol.precision]))


def evaluate_baselines(
    questions: Sequence[Question], knowledge: KnowledgeBase, out: Path, *, seed: int = 0
) -> list[tuple[str, EvalReport]]:
    """Write the evaluations of the visual expert alone and of a blind reader beside those of the models."""
    reports = []
    inputs = {"questions": digest_records(questions)}
    for name, baseline in BASELINES.items():
        with StageFolder(out / name, stage="evaluate", config={"baseline": name}, inputs=inputs, seed=seed) as folder:
            predictions = baseline.answer(questions, seed=seed)
            write_records(out / name / "predictions.jsonl", predictions)
            about = {"name": baseline.label, "digest": "", "backend": NO_MODEL}
            report = summarise(predictions, baseline.protocol, about, knowledge.digest, benchmark=inputs["questions"])
            report = report.model_copy(update={"variant": baseline.label})
            write_report(out / name, report)
            folder.finish({"questions": len(predictions)})
        reports.append((name, report))
    return reports


def _chosen(recipe: Recipe, subset: Subset) -> tuple[list[Variant], list[EvalProtocol], list[int]]:
    """Variants, cells and seeds of a subset, in the recipe's order."""
    names = [variant.name for variant in recipe.variants]
    for name in subset.variants:
        if name not in names:
            raise UnknownNameError(f"the recipe has no variant {name!r}", f"Use {', '.join(names)}")
    tags = {tag_of(protocol): protocol for protocol in recipe.evaluate.cells}
    for pattern in subset.cells:
        if not any(fnmatchcase(tag, pattern) for tag in tags):
            raise UnknownNameError(f"the recipe has no cell {pattern!r}", f"Use {', '.join(tags)}, or a pattern with *")
    for seed in subset.seeds:
        if seed not in recipe.training_seeds:
            raise UnknownNameError(f"the recipe has no seed {seed}", f"Use {', '.join(map(str, recipe.training_seeds))}")
    return (
        [variant for variant in recipe.variants if not subset.variants or variant.name in subset.variants],
        [p for tag, p in tags.items() if not subset.cells or any(fnmatchcase(tag, pattern) for pattern in subset.cells)],
        [seed for seed in recipe.training_seeds if not subset.seeds or seed in subset.seeds],
    )


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


def _data(
    recipe: Recipe,
    data: Path | None,
    out: Path,
    knowledge: KnowledgeBase,
    bar: ProgressBar,
    say: Callable[[str], None],
    datasets: Sequence[str],
    given: Given,
    *,
    trains: bool,
) -> list[Question]:
    """Instruction data and benchmark, made or given; returns the instruction data, which is empty where nothing is trained."""
    makes_questions, makes_bench = trains and not given.questions, given.bench is None
    settings, expert = recipe.instruct, None
    seen = _seen(recipe, data, datasets) if makes_questions and data is not None else datasets
    if (makes_questions and settings.expert) or (makes_bench and any(cell.expert for cell in recipe.evaluate.cells)):
        expert = Expert()
    if given.kinds is not None:
        pass_on(given.kinds, out / "kinds")
    elif settings.kinds and expert is not None and data is not None:
        with bar("kinds") as update:
            told = fit_kinds(data, out / "kinds", knowledge, expert, split=settings.split, datasets=seen, progress=update)
        say(f"kinds: {told.defects} defects, first guess right on held-out groups: {told.right}")
    if expert is not None and (given.kinds or settings.kinds):
        expert_with_kinds(given.kinds or out / "kinds", expert)
    kept = KeptFindings(expert) if expert is not None else None
    if trains and given.questions:
        _keep_given(given.questions, out / "instruct", say)
    elif makes_questions and data is not None:
        if remark := without_held_out(given.kinds, expert if settings.expert else None):
            say(remark)
        with bar("instruct") as update:
            made = build_instructions(
                data, out / "instruct", knowledge, settings, seed=recipe.seed, expert=kept, progress=update, datasets=seen
            )
        say(f"instruct: {made.questions} questions on {made.images} images, dropped {sum(made.rejected.values())}")
    if makes_bench and data is not None:
        with bar("benchmark") as update:
            bench = build_benchmark(
                data,
                out / "bench",
                knowledge,
                split=recipe.evaluate.split,
                max_images=recipe.evaluate.max_images,
                seed=recipe.seed,
                expert=kept,
                progress=update,
                datasets=datasets,
            )
        say(f"benchmark: {bench.questions} questions on {bench.images} images")
    return list(read_records(out / "instruct" / "questions.jsonl", Question)) if trains else []


def _seen(recipe: Recipe, data: Path, datasets: Sequence[str]) -> Sequence[str]:
    """Data sets to train on: the recipe's, of those the user names."""
    if not recipe.seen:
        return datasets
    seen = [name for name in recipe.seen if not datasets or name in datasets]
    try:
        if seen:
            read_folder(data, datasets=seen)
            return seen
    except InputError:
        pass
    raise InputError(
        f"the recipe trains on {', '.join(recipe.seen)}, and {data} holds none of them that is asked for",
        "Change `seen` in the recipe; empty is all",
    )


def _keep_given(files: Sequence[Path], out: Path, say: Callable[[str], None]) -> None:
    """Instruction data made elsewhere, as the run's own stage; equal ids of several files are told apart."""
    rows: dict[str, Question] = {}
    for number, file in enumerate(files):
        for question in read_records(file, Question):
            name = question.id if question.id not in rows else f"{question.id}~{number}"
            rows[name] = question.model_copy(update={"id": name})
    inputs = {"questions": digest_records(rows.values())}
    with StageFolder(out, stage="instruct", config={"given": True}, inputs=inputs) as folder:
        if not folder.done:
            write_records(out / "questions.jsonl", rows.values())
            objects = Counter(question.sample.object for question in rows.values())
            folder.finish({"questions": len(rows), "objects": dict(sorted(objects.items())), "files": len(files)})
    say(f"instruct: {len(rows)} questions given in {len(files)} files")


def _evaluated(
    model: Trained,
    cells: Sequence[EvalProtocol],
    benchmark: Sequence[Question],
    knowledge: KnowledgeBase,
    out: Path,
    bar: ProgressBar,
    *,
    first: int,
) -> Iterator[tuple[str, EvalReport]]:
    """Every cell of one model."""
    name = model.variant.name + (f"-seed{model.seed}" if model.seed not in {None, first} else "")
    leaks = training_overlap(model.spec, benchmark)
    for precision, alike in groupby(cells, key=lambda cell: cell.precision):
        with opened(model.spec, precision=precision) as chat:
            for protocol in alike:
                tag = f"{name}-{tag_of(protocol)}"
                with bar(f"evaluate {tag}") as update:
                    report = evaluate(
                        chat,
                        benchmark,
                        knowledge,
                        protocol,
                        out / tag,
                        leaks=leaks,
                        variant=model.variant.label or model.variant.name,
                        seed=model.seed,
                        progress=update,
                    )
                yield tag, report
