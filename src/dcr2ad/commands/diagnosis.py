"""Diagnosing photographs, and printing diagnoses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dcr2ad import console
from dcr2ad.artifacts import write_text
from dcr2ad.commands.common import load_knowledge, route_mode, say
from dcr2ad.errors import InputError
from dcr2ad.images import list_images
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.types import Comparison, Diagnosis

if TYPE_CHECKING:
    from dcr2ad.expert import Expert

MOST_REFERENCES = 16
"""References used at most: each more costs time with every photograph, and soon shows the expert nothing new."""


def run_diagnose(
    image: Path,
    references: Sequence[Path],
    *,
    object_name: str,
    question: str | None,
    options: Sequence[str],
    context: str,
    routing: str,
    orders: int,
    model: str,
    expert: bool,
    kinds: Path | None,
    shots: int,
    alarms: float,
    knowledge: Path | None,
    compare: bool,
    right: str | None,
    as_json: bool,
    report: Path | None,
    out: Path,
    fresh: bool,
) -> None:
    """Verb `diagnose`: one photograph, or a folder of them."""
    from dcr2ad.images import load_image

    if kinds is not None and not expert:
        raise InputError("--kinds is for the visual expert's findings", "Leave --no-expert or --kinds out")
    images = list_images(image) if image.is_dir() else [image]
    references = _good_parts(references)
    for path in (*references, *(images if not image.is_dir() else ())):
        load_image(path)
    base = load_knowledge(knowledge)
    from dcr2ad.models.base import open_model
    from dcr2ad.stages.compare import compare_contexts
    from dcr2ad.stages.diagnose import Diagnoser, check_context, check_question, diagnose, diagnose_folder

    check_context(context, base)
    mode = route_mode(routing)
    _check_compare(image, question, base, compare=compare, right=right)
    check_question(question, options)
    seen_by = _expert(model, kinds) if expert else None
    opened = open_model(model, precision="auto")
    diagnoser = Diagnoser(opened, base, seen_by, context, routing=mode, orders=orders, shots=shots, alarms=alarms)
    if compare:
        with console.progress("contexts") as update:
            found = compare_contexts(diagnoser, image, references, object_name=object_name, right=right, progress=update)
        _show_comparison(found, base, as_json=as_json, report=report)
        return
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


def _expert(model: str, kinds: Path | None) -> Expert:
    """The visual expert with the gallery named, or with the one beside the model."""
    from dcr2ad.expert import Expert
    from dcr2ad.kinds import gallery_beside
    from dcr2ad.stages.kinds import expert_with_kinds

    return expert_with_kinds(kinds, Expert(gallery=None if kinds else gallery_beside(model), precision="auto"))


def _good_parts(references: Sequence[Path]) -> list[Path]:
    """References as named, a folder's images in its place; of more than the expert keeps at hand, so many evenly over them."""
    found = [path for named in references for path in (list_images(named) if named.is_dir() else [named])]
    if len(found) <= MOST_REFERENCES:
        return found
    from dcr2ad.datasets.good import evenly

    say(f"{len(found)} references; {MOST_REFERENCES} of them are used, evenly over them")
    return evenly(found, MOST_REFERENCES)


def _check_compare(image: Path, question: str | None, base: KnowledgeBase, *, compare: bool, right: str | None) -> None:
    if right is not None:
        base.get(right)
    if right is not None and not compare:
        raise InputError("--right names the entry that a comparison deceives about", "Use it with --compare-contexts")
    if compare and (image.is_dir() or question is not None):
        raise InputError("--compare-contexts takes one photograph and no question", "Name a photograph, leave --question out")


def _show_comparison(found: Comparison, base: KnowledgeBase, *, as_json: bool, report: Path | None) -> None:
    from dcr2ad.report.comparison import column_names, render_comparison, trusted

    if as_json:
        console.out.print(found.model_dump_json(exclude={"diagnoses": {"__all__": {"expert_map"}}}), markup=False)
    else:
        for name, diagnosis in zip(column_names(found), found.diagnoses, strict=True):
            console.out.print(name, markup=False, style="bold")
            _print_diagnosis(diagnosis)
        console.out.print(trusted(found, base), markup=False, style="bold")
    if report is not None:
        write_text(report, render_comparison(found, knowledge={entry.key: entry for entry in base}))
        console.err.print(f"page: {report}", markup=False)


def run_demo(out: Path, *, model: str) -> None:
    """Verb `demo`."""
    from dcr2ad.models.nano import build_nano
    from dcr2ad.stages.demo import diagnose_examples

    if model.startswith("nano"):
        build_nano(progress=say)
    base = KnowledgeBase.builtin()
    with console.progress("diagnose") as update:
        made = diagnose_examples(model, base, out, progress=update)
    _print_diagnoses(made, as_json=False)
    _write_page(made, base, out / "report.html")


def _write_page(made: Sequence[Diagnosis], base: KnowledgeBase, target: Path) -> None:
    from dcr2ad.report.diagnosis import render_diagnoses

    write_text(target, render_diagnoses(made, knowledge={entry.key: entry for entry in base}))
    console.err.print(f"page: {target}", markup=False)


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
    routed = diagnosis.routing
    if routed is not None:
        fitted = "fitted" if routed.calibrated else "not fitted for this model"
        limits = f"temperature {routed.temperature:.2g}, abstains below {routed.threshold:.2f} ({fitted})"
        lines.append(("routing", f"{routed.mode}, {limits}{'; abstained' if routed.abstained else ''}"))
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
