"""Benchmarks, evaluation and its tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from dcr2ad import console
from dcr2ad.artifacts import digest_file, write_text
from dcr2ad.commands.common import load_knowledge, must_exist, print_counts, say
from dcr2ad.datasets.mmad import is_mmad, read_mmad, unknown_version
from dcr2ad.errors import InputError
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.prompts import DEFAULT_WORDING, load_wording
from dcr2ad.record_file import RecordFile
from dcr2ad.types import EvalProtocol, EvalReport, Question

if TYPE_CHECKING:
    from dcr2ad.report.paired import Paired


def run_bench(
    data: Path,
    out: Path,
    *,
    split: str,
    max_images: int | None,
    datasets: Sequence[str],
    expert: bool,
    knowledge: Path | None,
    seed: int,
    fresh: bool,
    kinds: Path | None = None,
) -> None:
    """Verb `bench build`."""
    must_exist(data)
    from dcr2ad.expert import Expert
    from dcr2ad.stages.bench import build_bench
    from dcr2ad.stages.kept_findings import KeptFindings
    from dcr2ad.stages.kinds import expert_with_kinds

    with console.progress("benchmark") as update:
        made = build_bench(
            data,
            out,
            load_knowledge(knowledge),
            split=split,
            max_images=max_images,
            datasets=datasets,
            seed=seed,
            expert=KeptFindings(expert_with_kinds(kinds, Expert())) if expert else None,
            progress=update,
            fresh=fresh,
        )
    print_counts("benchmark", made.model_dump(), out / "questions.jsonl")


def run_evaluate(
    questions: Path,
    out: Path,
    *,
    model: str,
    protocol: dict[str, Any],
    prompts: Path | None,
    images: Path | None,
    templates: str,
    shard: str,
    workers: int,
    knowledge: Path | None,
    fresh: bool,
) -> None:
    """Verb `evaluate`."""
    base = load_knowledge(knowledge)
    wording = DEFAULT_WORDING if prompts is None else load_wording(prompts)
    if prompts is not None:
        protocol = {**protocol, "prompts": digest_file(prompts)[:12]}
    if is_mmad(questions):
        protocol = {**protocol, "references": templates}
    asked = _protocol(protocol)
    if model.startswith("openai:") and asked.precision != "fp32":
        raise InputError("--precision is for models that run here", "Leave it out: the server decides")
    part = _shard(shard)
    if workers > 1 and part != (1, 1):
        raise InputError("--workers makes shards of its own", "Leave --shard out")
    rows = _questions(questions, images, base, templates)
    notes = [note for note in [unknown_version(questions, digest_file(questions))] if note]
    from dcr2ad.expert import KEPT_IN_ORDER, Expert
    from dcr2ad.models.base import open_model
    from dcr2ad.report.tables import protocol_label
    from dcr2ad.stages.evaluate import evaluate
    from dcr2ad.stages.kept_findings import KeptFindings
    from dcr2ad.stages.overlap import training_overlap
    from dcr2ad.stages.spread import Work, evaluate_on_workers, shards_for

    say(f"{len(rows)} questions: {protocol_label(asked)}")
    opened = open_model(model, precision=asked.precision) if workers == 1 else None
    with console.progress("leak guard") as update:
        leaks = training_overlap(model, rows, update)
    _print_leaks(leaks)
    inspects = asked.expert and any(q.sample.expert is None and q.sample.references for q in rows)
    with console.progress("evaluate") as update:
        if opened is None:
            shards = shards_for(workers, len({q.sample.image for q in rows}))
            work = Work(model, base, asked, wording, inspects, leaks, notes, out, shards)
            report = evaluate_on_workers(rows, work, workers, fresh=fresh, progress=update)
        else:
            report = evaluate(
                opened,
                rows,
                base,
                asked,
                out,
                wording=wording,
                expert=KeptFindings(Expert(keep=KEPT_IN_ORDER)) if inspects else None,
                shard=part,
                leaks=leaks,
                notes=notes,
                fresh=fresh,
                progress=update,
            )
    _print_result({model: report}, out)


def run_merge(folders: Sequence[Path], out: Path) -> None:
    """Verb `merge`."""
    from dcr2ad.stages.evaluate import merge

    report = merge(folders, out)
    _print_result({report.model["name"]: report}, out)


def run_score(answers: Path, out: Path, scoring: str) -> None:
    """Verb `score`."""
    from dcr2ad.report.tables import SHORT, figure_text
    from dcr2ad.stages.score import score_answers

    if scoring not in {"strict", "mmad-official"}:
        raise InputError(f"--scoring {scoring!r} is not known", "Use strict or mmad-official")
    table, report = score_answers(answers, out, "strict" if scoring == "strict" else "mmad-official")
    columns = list(dict.fromkeys(name for row in table.values() for name in row))
    rows = [(name, *(figure_text(row.get(column)) for column in columns)) for name, row in table.items()]
    short = {subtask.value: name for subtask, name in SHORT.items()}
    heads = ("", *(short.get(column, column) for column in columns))
    console.out.print(console.table(f"accuracy in %, scoring {scoring}", heads, rows))
    lost = report.questions - report.answered
    say(f"{report.questions} answers, {lost} could not be read and count as wrong in strict scoring")
    say(f"written: {out / 'accuracy.csv'}, objects.csv, defects.csv, not_answered.csv, report.json")


def run_compare(evaluations: Sequence[Path], differ: Sequence[str], out: Path | None) -> None:
    """Verb `compare`."""
    from dcr2ad.stages.paired import compare

    if len(evaluations) % 2:
        raise InputError(f"{len(evaluations)} evaluations are no pairs", "Name them two by two: first, second, first, second")
    (first, second), *also = zip(evaluations[::2], evaluations[1::2], strict=True)
    found = compare(first, second, also=also, differ=differ)
    spans = {**found.subtasks, "Average": found.average}
    rows = [(name, f"{s.value:+.1f}", f"{s.low:+.1f} to {s.high:+.1f}", str(s.n)) for name, s in spans.items()]
    rows += [(name, f"{value:+.1f}", "", "") for name, value in found.detection.items()]
    several = f", mean of {len(found.trainings)} trainings" if found.trainings else ""
    title = f"{second} minus {first}, points{several}; differ: {', '.join(found.differ) or 'nothing'}"
    console.out.print(console.table(title, ("", "difference", "95 % interval", "questions"), rows))
    counts = f"only {first} right {found.only_first}, only {second} right {found.only_second}"
    if found.p_value is None:
        each = ", ".join(f"{value:+.1f}" for value in found.trainings)
        say(f"average of each training: {each}; intervals hold for these trainings on other images")
        say(f"{found.questions} questions under each; {counts}")
    else:
        say(f"{found.questions} questions; {counts}; McNemar p = {found.p_value:.3g}")
    if out is not None:
        write_text(out, found.model_dump_json(indent=2) + "\n")
        say(f"written: {out}")


def _protocol(given: dict[str, Any]) -> EvalProtocol:
    if given["context"] == "hybrid":
        given = {**given, "context": "routed", "routing": "hybrid"}
    try:
        return EvalProtocol.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"--{first['loc'][0]}: {first['msg']}", "See dcr2ad evaluate --help") from None


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise InputError(f"--shard {text!r} is no part of a whole", "Write i/n, for example 1/4")
    return int(number), int(count)


def _questions(path: Path, images: Path | None, base: KnowledgeBase, templates: str) -> RecordFile[Question]:
    """Questions of one of our files, or of MMAD's, left on disk; what is wrong with a copy of MMAD is said, by kind."""
    if templates not in {"random", "similar"}:
        raise InputError(f"--templates {templates!r} is not known", "Use random or similar")
    if not is_mmad(path):
        return RecordFile(path, Question)
    reading = read_mmad(path, images, knowledge_base=base, templates="random" if templates == "random" else "similar")
    for why, count in Counter(fault.why.split(":")[0] for fault in reading.faults).items():
        first = next(fault.path for fault in reading.faults if fault.why.startswith(why))
        say(f"{path.name}: {why} ({count}, the first is {first})")
    return RecordFile.of(reading.questions, Question)


def _print_leaks(leaks: dict[str, Any]) -> None:
    if not leaks["recorded"]:
        say("leak guard: the model records no training images, so nothing can be said")
    elif leaks["overlap"]:
        say(f"leak guard: {leaks['overlap']} of {leaks['looked_at']} images were trained on; the first: {leaks['matches'][0]}")
    else:
        say(f"leak guard: none of {leaks['looked_at']} images is among the {leaks['recorded']} trained on")


def _print_result(reports: Mapping[str, EvalReport], out: Path) -> None:
    print_reports(reports)
    for report in reports.values():
        for note in report.notes:
            say(f"note: {note}")
        bad = {name: count for name, count in report.status_counts.items() if name != "answered"}
        if bad:
            shown = ", ".join(f"{count} {name}" for name, count in bad.items())
            say(f"{shown}: they count as wrong; report.json lists them under not_answered")
    say(f"predictions in {out / 'predictions.jsonl'}")


def print_reports(reports: Mapping[str, EvalReport]) -> None:
    """A table of evaluations for each protocol: sub-tasks, average with its interval, Overkill, Miss, F1 and routing."""
    from dcr2ad.report.tables import SHORT, figure_text, protocol_label, result_rows

    rows = result_rows(reports)
    heads = ("Model", *SHORT.values(), "Average", "95 % interval", "Overkill", "Miss", "F1", "Top-1", "answered")
    for label in dict.fromkeys(protocol_label(row.protocol) for row in rows):
        shown = []
        for row in rows:
            if protocol_label(row.protocol) == label:
                span = "" if row.low is None else f"{row.low:.1f} to {row.high:.1f}"
                rates = (row.overkill, row.miss, row.f1, row.routing_top1)
                answered = f"{row.answered}/{row.questions}"
                shown.append(
                    (
                        row.stage,
                        *map(figure_text, row.values),
                        figure_text(row.average),
                        span,
                        *map(figure_text, rates),
                        answered,
                    )
                )
        console.out.print(console.table(f"accuracy in %, {label}", heads, shown))


def run_report(runs: Sequence[Path], out: Path | None, *, unseen: Sequence[str]) -> None:
    """Verb `report`: writes the page and its tables, prints the ablation."""
    from dcr2ad.report import ablation
    from dcr2ad.report.run_report import render_runs

    made, target = render_runs(runs, unseen=unseen), out or runs[0] / "report.html"
    for suffix, text in ((".html", made.html), (".csv", made.csv), (".tex", made.latex)):
        write_text(target.with_suffix(suffix), text)
    write_text(target.with_name(f"{target.stem}-ablation.csv"), ablation.to_csv(made.ablation))
    if made.paired_csv:
        write_text(target.with_name(f"{target.stem}-paired.csv"), made.paired_csv)
    heads = ("Model", *made.ablation.contexts)
    for part, setting, lines in made.ablation.blocks():
        rows = [(line.model, *map(ablation.cell_text, line.cells)) for line in lines]
        title = f"{part} objects, {setting}: average over sub-tasks [95 % interval] Overkill/Miss, per cent"
        console.out.print(console.table(title, heads, rows))
    if made.subtasks:
        from dcr2ad.report.tables import SHORT, figure_text

        shown = [
            (
                f"{model}, {part}",
                *map(figure_text, share.subtasks),
                figure_text(share.overkill),
                figure_text(share.miss),
                share.questions,
            )
            for part, model, share in made.subtasks
        ]
        heads = ("Model, objects", *SHORT.values(), "Overkill", "Miss", "questions")
        console.out.print(console.table(f"by sub-task, {made.main}", heads, shown))
    _print_pairs(made.differences)
    say(f"page: {target.with_suffix('.html')}")


def _print_pairs(found: Paired) -> None:
    """Differences of the averages; by sub-task they stand on the page."""
    for label, lines in found.groups:
        rows = [
            (
                line.models,
                f"{line.part} {line.result.questions}",
                f"{line.result.average.value:+.1f}",
                f"{line.result.average.low:+.1f} to {line.result.average.high:+.1f}",
                f"{line.result.only_second} / {line.result.only_first}",
                "" if line.result.p_value is None else f"{line.result.p_value:.2g}",
            )
            for line in lines
        ]
        heads = ("models", "questions on", "difference", "95 % interval", "only second / first right", "McNemar p")
        console.out.print(console.table(f"paired differences, {label}", heads, rows))
    for reason in found.refused:
        say(f"not paired: {reason}")
