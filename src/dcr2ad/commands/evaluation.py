"""Benchmarks, evaluation and its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dcr2ad import console
from dcr2ad.artifacts import read_records
from dcr2ad.commands.common import load_knowledge, must_exist, print_counts
from dcr2ad.errors import InputError
from dcr2ad.types import EvalProtocol, EvalReport, Question


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
            expert=expert_with_kinds(kinds, Expert()) if expert else None,
            progress=update,
            fresh=fresh,
        )
    print_counts("benchmark", made.model_dump(), out / "questions.jsonl")


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
