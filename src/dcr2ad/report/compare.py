"""Evaluations of one or several runs side by side: what the report page shows of them beyond each run's own table.

Reads `Run` records and predictions; returns records for the template. Figures of unlike protocols stand in columns of their own
and are never averaged together. Knows nothing about HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dcr2ad.report import figures
from dcr2ad.report.breakdown import Routed, reliability, routing_confusion
from dcr2ad.report.paper_tables import paper_tables
from dcr2ad.report.tables import SHORT, ResultRow, paper_row
from dcr2ad.types import EvalProtocol, Prediction

CURVES = 4
"""Evaluations in one radar or reliability figure."""


@dataclass(frozen=True)
class PaperBlock:
    """A table of the paper with our rows under the same shots and context, and the rows that do not recompute."""

    number: int
    caption: str
    rows: tuple[ResultRow, ...]
    ours: tuple[ResultRow, ...]
    odd: tuple[str, ...]


def paper_blocks(rows: Sequence[ResultRow]) -> tuple[PaperBlock, ...]:
    """Tables 1 to 4 of the paper, each with our rows under its shots and context."""
    blocks = []
    for table in paper_tables().tables:
        protocol = EvalProtocol(shots=table.shots, context=table.context)
        odd = tuple(f"{row.model}{f' {row.scale}' if row.scale else ''}: {row.note}" for row in table.rows if row.note)
        ours = tuple(row for row in rows if (row.protocol.shots, row.protocol.context) == (table.shots, table.context))
        theirs = tuple(paper_row(row, protocol) for row in table.rows)
        blocks.append(PaperBlock(table.number, table.caption, theirs, ours, odd))
    return tuple(blocks)


def radar_of(rows: Sequence[ResultRow], main: ResultRow) -> Markup | None:
    """The paper's Figure 1 over our own evaluations: the sub-tasks of every model under the main protocol."""
    chosen = {row.stage: row.values for row in like(rows, main) if sum(v is not None for v in row.values) > 2}
    return figures.radar("Accuracy a sub-task, per cent", list(SHORT.values()), chosen) if chosen else None


def reliability_of(
    rows: Sequence[ResultRow], main: ResultRow, predictions: Mapping[str, Sequence[Prediction]]
) -> Markup | None:
    """Calibration of every model under the main protocol."""
    found = {row.stage: reliability(predictions.get(row.tag, ())) for row in like(rows, main)}
    points = {name: [(b.confidence, b.accuracy, b.n) for b in bins] for name, bins in found.items() if bins}
    return figures.reliability("Calibration; the dashed line is a calibrated model", points) if points else None


def like(rows: Sequence[ResultRow], main: ResultRow) -> list[ResultRow]:
    """At most `CURVES` rows under the main row's protocol, the main row among them."""
    same = [row for row in rows if row.protocol == main.protocol]
    return same[:CURVES] if main in same[:CURVES] else [*same[: CURVES - 1], main]


def routing_of(rows: Sequence[ResultRow], predictions: Mapping[str, Sequence[Prediction]]) -> tuple[str, tuple[Routed, ...]]:
    """The last evaluation that routed, and where its images went."""
    for row in reversed(rows):
        found = routing_confusion(predictions.get(row.tag, ()))
        if found:
            return row.tag, found
    return "", ()
