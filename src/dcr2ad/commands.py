"""What the verbs do once their arguments are parsed: open what is named, call one stage, print what came of it.

Knows the stages and the console; holds no method.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dcr2ad import console
from dcr2ad.artifacts import read_records, write_text
from dcr2ad.config import Recipe, load_recipe
from dcr2ad.errors import InputError, UnknownNameError
from dcr2ad.images import list_images
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.types import BoundaryQuestion, Diagnosis, EvalProtocol, EvalReport, PreferencePair, Question


def load_knowledge(path: Path | None) -> KnowledgeBase:
    """The built-in base, or the one in a file or in a stage's folder."""
    if path is None:
        return KnowledgeBase.builtin()
    return KnowledgeBase.load(path / "entries.jsonl" if path.is_dir() else path)


def run_diagnose(
    image: Path,
    references: Sequence[Path],
    *,
    object_name: str,
    question: str | None,
    options: Sequence[str],
    context: str,
    model: str,
    expert: bool,
    knowledge: Path | None,
    as_json: bool,
    report: Path | None,
    out: Path,
    fresh: bool,
) -> None:
    """Verb `diagnose`: one photograph, or a folder of them."""
    from dcr2ad.images import load_image

    images = list_images(image) if image.is_dir() else [image]
    for path in (*references, *(images if not image.is_dir() else ())):
        load_image(path)
    base = load_knowledge(knowledge)
    from dcr2ad.models.base import open_model
    from dcr2ad.stages.diagnose import Diagnoser, check_context, check_question, diagnose, diagnose_folder

    check_context(context, base)
    check_question(question, options)
    opened = open_model(model)
    from dcr2ad.expert import Expert

    diagnoser = Diagnoser(opened, base, Expert() if expert else None, context)
    if image.is_dir():
        with console.progress("diagnose") as update:
            made, failed = diagnose_folder(
                diagnoser,
                images,
                references,
                out,
                object_name=object_name,
                question=question,
                options=options,
                fresh=fresh,
                progress=update,
            )
        for failure in failed:
            console.err.print(f"not diagnosed: {failure.error}", markup=False)
        console.err.print(f"{len(made)} diagnosed, {len(failed)} failed; results in {out / 'diagnoses.jsonl'}", markup=False)
    else:
        made = [diagnose(diagnoser, image, references, object_name=object_name, question=question, options=options)]
    _print_diagnoses(made, as_json=as_json)
    if report is not None:
        _write_page(made, base, report)


def run_knowledge_build(out: Path, **settings: Any) -> None:
    """Verb `knowledge build`."""
    from dcr2ad.stages.knowledge import build_knowledge_base

    _, report = build_knowledge_base(out, **settings)
    rows = [(source, count, report.kept.get(source, 0)) for source, count in sorted(report.read.items())]
    console.out.print(console.table("knowledge base", ("source", "read", "kept"), rows))
    console.out.print(f"{report.entries} entries, {len(report.merged)} merged, {len(report.dropped)} dropped, ", end="")
    console.out.print(f"{len(report.leaks)} object names left; {out / 'entries.jsonl'}", markup=False)


def run_instruct(
    data: Path, out: Path, *, datasets: Sequence[str], recipe: Path | None, knowledge: Path | None, seed: int, fresh: bool
) -> None:
    """Verb `instruct`."""
    _must_exist(data)
    from dcr2ad.expert import Expert
    from dcr2ad.stages.instruct import build_instructions

    settings = _recipe(recipe).instruct
    expert = Expert() if settings.expert else None
    with console.progress("instruct") as update:
        made = build_instructions(
            data,
            out,
            load_knowledge(knowledge),
            settings,
            seed=seed,
            expert=expert,
            progress=update,
            fresh=fresh,
            datasets=datasets,
        )
    _print_counts("instruct", made.model_dump(), out / "questions.jsonl")


def run_draw(out: Path, *, count: int, seed: int) -> None:
    """Verb `draw`."""
    from dcr2ad.datasets.drawn import write_drawn

    written = write_drawn(out, count, seed)
    console.err.print(f"{written} pictures with masks in {out}", markup=False)


def run_bench(
    data: Path,
    out: Path,
    *,
    split: str,
    max_images: int | None,
    datasets: Sequence[str],
    knowledge: Path | None,
    seed: int,
    fresh: bool,
) -> None:
    """Verb `bench`."""
    _must_exist(data)
    from dcr2ad.expert import Expert
    from dcr2ad.stages.instruct import build_benchmark

    with console.progress("benchmark") as update:
        made = build_benchmark(
            data,
            out,
            load_knowledge(knowledge),
            split=split,
            max_images=max_images,
            datasets=datasets,
            seed=seed,
            expert=Expert(),
            progress=update,
            fresh=fresh,
        )
    _print_counts("benchmark", made.model_dump(), out / "questions.jsonl")


def run_sft(
    questions: Sequence[Path], out: Path, *, model: str, recipe: Path | None, knowledge: Path | None, seed: int
) -> None:
    """Verb `sft`."""
    rows = [row for file in questions for row in read_records(file, Question)]
    settings, base = _recipe(recipe).sft, load_knowledge(knowledge)
    from dcr2ad.models.hf import HFModel
    from dcr2ad.training.sft import train_sft

    with console.progress("sft") as update:
        done = train_sft(HFModel.open(model).vlm, rows, base, settings, out, base_spec=model, seed=seed, progress=update)
    _print_counts("sft", done, out / "model")


def run_mine(questions: Path, out: Path, *, model: str, recipe: Path | None, knowledge: Path | None, fresh: bool) -> None:
    """Verb `mine`."""
    rows = list(read_records(questions, Question))
    from dcr2ad.models.base import open_model
    from dcr2ad.stages.mine import mine_boundary

    opened, base = open_model(model), load_knowledge(knowledge)
    with console.progress("mine") as update:
        done = mine_boundary(opened, rows, base, _recipe(recipe).mine, out, fresh=fresh, progress=update)
    _print_counts("mine", done, out / "boundary.jsonl")
    if not done["enough"]:
        console.err.print(f"only {done['in_band']} questions lie in the band; {done['wanted']} were wanted", markup=False)


def run_synthesize(boundary: Path, out: Path, *, recipe: Path | None, knowledge: Path | None, seed: int, fresh: bool) -> None:
    """Verb `synthesize`."""
    from dcr2ad.stages.synthesize import synthesize_pairs
    from dcr2ad.teacher import BuiltinTeacher

    rows = list(read_records(boundary, BoundaryQuestion))
    settings = _recipe(recipe).synthesize
    if settings.teacher != BuiltinTeacher.name:
        raise UnknownNameError(f"no teacher {settings.teacher!r}", "The one that stands is 'builtin'")
    with console.progress("synthesize") as update:
        done = synthesize_pairs(
            rows,
            load_knowledge(knowledge),
            BuiltinTeacher(seed),
            settings,
            out,
            seed=seed,
            fresh=fresh,
            progress=update,
        )
    _print_counts("synthesize", done, out / "pairs.jsonl")


def run_krdpo(pairs: Path, out: Path, *, model: str, recipe: Path | None, knowledge: Path | None, seed: int) -> None:
    """Verb `krdpo`."""
    rows = list(read_records(pairs, PreferencePair))
    settings, base = _recipe(recipe).krdpo, load_knowledge(knowledge)
    from dcr2ad.models.hf import HFModel
    from dcr2ad.training.krdpo import train_krdpo

    with console.progress("krdpo") as update:
        done = train_krdpo(HFModel.open_base(model).vlm, rows, base, settings, out, base_spec=model, seed=seed, progress=update)
    _print_counts("krdpo", done, out / "model")


def run_evaluate(
    questions: Path, out: Path, *, model: str, protocol: dict[str, Any], knowledge: Path | None, fresh: bool
) -> None:
    """Verb `evaluate`."""
    try:
        asked = EvalProtocol.model_validate(protocol)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"--{first['loc'][0]}: {first['msg']}", "See dcr2ad evaluate --help") from None
    rows = list(read_records(questions, Question))
    from dcr2ad.models.base import open_model
    from dcr2ad.stages.evaluate import evaluate

    opened, base = open_model(model), load_knowledge(knowledge)
    with console.progress("evaluate") as update:
        report = evaluate(opened, rows, base, asked, out, fresh=fresh, progress=update)
    print_reports({model: report})
    console.err.print(f"predictions in {out / 'predictions.jsonl'}", markup=False)


def run_all(recipe: Path, data: Path, out: Path | None, *, datasets: Sequence[str]) -> None:
    """Verb `run`."""
    loaded = load_recipe(recipe)
    _must_exist(data)
    from dcr2ad.report.run_report import render_run
    from dcr2ad.stages.run import run_recipe

    folder = out or Path("runs") / loaded.name
    reports = run_recipe(loaded, data, folder, bar=console.progress, say=_say, datasets=datasets)
    print_reports(dict(reports))
    page = folder / "report.html"
    write_text(page, render_run(folder))
    console.err.print(f"page: {page}", markup=False)


def run_demo(out: Path, *, model: str) -> None:
    """Verb `demo`."""
    from dcr2ad.models.nano import build_nano
    from dcr2ad.stages.demo import diagnose_examples

    if model.startswith("nano"):
        build_nano(progress=_say)
    base = KnowledgeBase.builtin()
    with console.progress("diagnose") as update:
        made = diagnose_examples(model, base, out, progress=update)
    _print_diagnoses(made, as_json=False)
    _write_page(made, base, out / "report.html")


def run_doctor() -> None:
    """Verb `doctor`."""
    import torch

    from dcr2ad.models.hf import SHIPPED_ADAPTER
    from dcr2ad.models.nano import cache_folder

    rows: list[tuple[str, object]] = [("python", platform.python_version()), ("processors", os.cpu_count())]
    rows.append(("GPU", torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none: everything runs on the CPU"))
    for name in ("dcr2ad", "torch", "transformers", "peft", "fastapi", "trl", "vllm", "ray", "deepspeed"):
        try:
            rows.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            rows.append((name, "not installed"))
    rows.append(("embedded model", "built" if any(cache_folder().glob("nano*/config.json")) else "not built yet"))
    rows.append(("trained adapter", "shipped" if SHIPPED_ADAPTER.is_dir() else "none in this package: answers are untrained"))
    rows.append(("cache", cache_folder()))
    console.out.print(console.table("dcr2ad doctor", ("what", "found"), rows))


def print_reports(reports: Mapping[str, EvalReport]) -> None:
    """A table of evaluations for each protocol: sub-tasks, average with its interval, Overkill, Miss, F1 and routing."""
    from dcr2ad.report.tables import SHORT, protocol_label, result_rows

    rows = result_rows(reports)
    heads = ("Model", *SHORT.values(), "Average", "95 % interval", "Overkill", "Miss", "F1", "Top-1", "answered")
    for label in dict.fromkeys(protocol_label(row.protocol) for row in rows):
        shown = []
        for row in rows:
            if protocol_label(row.protocol) == label:
                span = "" if row.low is None else f"{row.low:.1f} to {row.high:.1f}"
                rates = (row.overkill, row.miss, row.f1, row.routing_top1)
                answered = f"{row.answered}/{row.questions}"
                shown.append((row.stage, *map(_figure, row.values), _figure(row.average), span, *map(_figure, rates), answered))
        console.out.print(console.table(f"accuracy in %, {label}", heads, shown))


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _recipe(path: Path | None) -> Recipe:
    return Recipe(name="default") if path is None else load_recipe(path)


def _must_exist(data: Path) -> None:
    if not data.exists():
        raise InputError(f"no such folder: {data}", "Name a folder of labelled photographs")


def _say(line: str) -> None:
    console.err.print(line, markup=False)


def _write_page(made: Sequence[Diagnosis], base: KnowledgeBase, target: Path) -> None:
    from dcr2ad.report.diagnosis import render_diagnoses

    write_text(target, render_diagnoses(made, knowledge={entry.key: entry for entry in base}))
    console.err.print(f"page: {target}", markup=False)


def _print_counts(stage: str, counts: dict[str, Any], result: Path) -> None:
    rows = [(name.replace("_", " "), value) for name, value in counts.items() if value not in ({}, [], None)]
    console.out.print(console.table(stage, ("count", ""), rows))
    console.err.print(f"written: {result}", markup=False)


def _print_diagnoses(made: Sequence[Diagnosis], *, as_json: bool) -> None:
    if as_json:
        for diagnosis in made:
            console.out.print(diagnosis.model_dump_json(exclude={"expert_map"}), markup=False)
        return
    for diagnosis in made:
        _print_diagnosis(diagnosis)


def _print_diagnosis(diagnosis: Diagnosis) -> None:
    """One diagnosis for a person: each line with who says it."""
    calls = diagnosis.verdict == "anomalous"
    shown = diagnosis.probability if calls else 1 - diagnosis.probability
    lines: list[tuple[str, str]] = [(diagnosis.verdict, f"probability {shown:.2f} (model)")]
    known = diagnosis.knowledge
    if known is not None:
        others = ", ".join(f"{r.title} {r.probability:.2f}" for r in diagnosis.runners_up)
        lines.append(
            ("knowledge", f"{known.title} {known.probability:.2f} [{known.key}]" + (f"; next {others}" if others else ""))
        )
    for label, field in (("type", "defect_type"), ("place", "location"), ("looks", "description"), ("effect", "effect")):
        text = getattr(diagnosis, field)
        if text:
            lines.append((label, f"{text} ({diagnosis.sources.get(field, 'model')})"))
    lines.append(("reasoning", f"{diagnosis.reasoning} (model)"))
    if diagnosis.expert is not None:
        from dcr2ad.prompts import describe_findings

        lines.append(("expert", f"{describe_findings(diagnosis.expert)} (visual expert)"))
    if diagnosis.question is not None:
        lines.append((diagnosis.question, f"{diagnosis.answer} (model)"))
    lines += [("note", note) for note in diagnosis.notes]
    console.out.print(diagnosis.image, markup=False, style="bold")
    for label, text in lines:
        console.out.print(f"  {label:<10} {text}", markup=False)
