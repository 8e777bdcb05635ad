"""Evaluation reports as rows: for the terminal, CSV, Markdown and the run page.

Reads `EvalReport` records and the paper's rows; returns rows and text. Pure: no files, no figures. Rows are grouped by
protocol, because figures under unlike protocols are not comparable. Knows nothing about how a figure was measured.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from dcr2ad.baselines import NO_MODEL
from dcr2ad.report.paper_tables import PaperRow
from dcr2ad.types import EvalProtocol, EvalReport, Subtask

STAGES = {"base": "base", "sft": "SFT", "dpo": "SFT + DPO", "krdpo": "SFT + KR-DPO"}
"""Models of a run, by the word that names them in an evaluation's tag, in the order of training."""

SHORT = {
    Subtask.DETECTION: "Dis.",
    Subtask.CLASSIFICATION: "Cls.",
    Subtask.LOCALIZATION: "Loc.",
    Subtask.DESCRIPTION: "Des.",
    Subtask.ANALYSIS: "Ana.",
    Subtask.OBJECT_CLASSIFICATION: "Obj. cls.",
    Subtask.OBJECT_ANALYSIS: "Obj. ana.",
}
"""Column heads, after the paper's Table 1."""

HEAD: tuple[str, ...] = (
    "Model",
    "Protocol",
    *SHORT.values(),
    "Average",
    "low",
    "high",
    "Overkill",
    "Miss",
    "F1",
    "Routing top-1",
    "Questions",
    "Answered",
)
"""Columns of every table; `low` and `high` bound the 95 % interval of the average."""

_CONTEXT_ORDER = ("none", "category", "routed", "oracle")


@dataclass(frozen=True)
class ResultRow:
    """One evaluation, figures in per cent; None where nothing was measured."""

    tag: str
    stage: str
    protocol: EvalProtocol
    values: tuple[float | None, ...]
    average: float | None
    low: float | None
    high: float | None
    overkill: float | None
    miss: float | None
    f1: float | None
    routing_top1: float | None
    questions: int
    answered: int
    seed: int | None = None
    is_baseline: bool = False


def result_rows(reports: Mapping[str, EvalReport]) -> tuple[ResultRow, ...]:
    """Rows of evaluations, like protocols together, in each the models in the order they were trained.

    Args:
        reports: reports by tag, the name of the evaluation's folder.
    """
    return tuple(sorted((_row(tag, report) for tag, report in reports.items()), key=_order))


def seeds_named(rows: Sequence[ResultRow]) -> tuple[ResultRow, ...]:
    """Rows whose names tell the seeds of one model apart."""
    counts = Counter((row.stage, row.protocol.model_dump_json()) for row in rows)
    return tuple(
        replace(row, stage=f"{row.stage}, seed {row.seed}") if counts[row.stage, row.protocol.model_dump_json()] > 1 else row
        for row in rows
    )


def protocol_label(protocol: EvalProtocol) -> str:
    """A protocol in words."""
    knowledge = "no knowledge" if protocol.context == "none" else f"{protocol.context} knowledge"
    if protocol.context == "routed" and (protocol.routing, protocol.orders) != ("hybrid", 1):
        knowledge += f" ({protocol.routing}" + (f", mean of {protocol.orders} orders)" if protocol.orders > 1 else ")")
    expert = "with visual expert" if protocol.expert else "without visual expert"
    scoring = protocol.scoring if protocol.precision == "fp32" else f"{protocol.scoring}, in {protocol.precision}"
    return f"{protocol.shots}-shot, {knowledge}, {expert}, answered by {protocol.answering}, scoring {scoring}"


def stage_of(tag: str) -> str | None:
    """Which model of `STAGES` a tag names; None when it names none."""
    words = re.findall(r"[a-z]+", tag.lower().replace("kr-dpo", "krdpo"))
    return next((word for word in words if word in STAGES), None)


def trained_rank(name: str) -> int | None:
    """Place in the order of training of a model by its name in tables: ``SFT + KR-DPO, shared`` is a ``SFT + KR-DPO``."""
    found = [place for place, known in enumerate(STAGES.values()) if re.match(rf"{re.escape(known)}(?![\w-])", name)]
    return max(found, default=None)


def cells(row: ResultRow) -> tuple[str, ...]:
    """A row as text in the order of `HEAD`; a missing figure is an empty string."""
    figures = (*row.values, row.average, row.low, row.high, row.overkill, row.miss, row.f1, row.routing_top1)
    shown = ("" if figure is None else f"{figure:.2f}" for figure in figures)
    return (row.stage, protocol_label(row.protocol), *shown, str(row.questions), str(row.answered))


def figure_text(value: float | None) -> str:
    """A figure with one decimal; a missing one is an empty string."""
    return "" if value is None else f"{value:.1f}"


def to_markdown(rows: Iterable[ResultRow]) -> str:
    """Rows as a Markdown table."""
    lines = [_markdown_line(HEAD), "|" + "---|" * 2 + "---:|" * (len(HEAD) - 2)]
    lines += [_markdown_line(cells(row)) for row in rows]
    return "\n".join(lines) + "\n"


def paper_row(row: PaperRow, protocol: EvalProtocol) -> ResultRow:
    """A row of the paper in the same form, to stand beside ours."""
    scale = f" {row.scale}" if row.scale and row.scale not in row.model else ""
    return ResultRow(
        tag="paper",
        stage=row.model + scale,
        protocol=protocol,
        values=row.values,
        average=row.average,
        low=None,
        high=None,
        overkill=None,
        miss=None,
        f1=row.f1,
        routing_top1=None,
        questions=0,
        answered=0,
    )


def _row(tag: str, report: EvalReport) -> ResultRow:
    found = [report.subtasks.get(subtask.value) for subtask in Subtask]
    average = report.average
    stage = stage_of(tag)
    return ResultRow(
        tag=tag,
        stage=report.variant or (STAGES[stage] if stage else tag),
        protocol=report.protocol,
        values=tuple(None if interval is None else interval.value for interval in found),
        average=None if average is None else average.value,
        low=None if average is None else average.low,
        high=None if average is None else average.high,
        overkill=report.detection.get("Overkill"),
        miss=report.detection.get("Miss"),
        f1=report.detection.get("F1"),
        routing_top1=report.routing.get("top1"),
        questions=report.questions,
        answered=report.answered,
        seed=report.seed,
        is_baseline=report.model.get("backend") == NO_MODEL,
    )


def _order(row: ResultRow) -> tuple[object, ...]:
    protocol = row.protocol
    where = _CONTEXT_ORDER.index(protocol.context)
    rank = trained_rank(row.stage)
    model = (len(STAGES) if rank is None else rank, row.stage, -1 if row.seed is None else row.seed, row.tag)
    return (-protocol.shots, where, not protocol.expert, protocol.answering, protocol.scoring, *model)


def _markdown_line(texts: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(text.replace("|", "\\|").split()) for text in texts) + " |"
