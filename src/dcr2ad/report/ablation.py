"""The ablation (Table 4 and beyond): models as rows, contexts of knowledge as columns, seen and unseen objects apart.

Reads rows of evaluations and their predictions; returns lines for the page, the terminal and CSV. The seeds of one model are
taken together: the figure is their mean, and its interval resamples images with all their answers under every seed. Overkill
and Miss stand in every cell. Knows nothing about HTML.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from dcr2ad import metrics
from dcr2ad.artifacts import csv_text
from dcr2ad.report.breakdown import Share, shares
from dcr2ad.report.tables import SHORT, ResultRow, figure_text
from dcr2ad.types import EvalProtocol, Prediction

ANY = "any"
"""Setting of a row that no setting changes: the visual expert alone, the blind reader."""
PARTS = ("all", "seen", "unseen")
"""Parts of a benchmark, in the order shown."""


@dataclass(frozen=True)
class Line:
    """One model and setting over one part of the questions, with a cell a context; None where it was not measured."""

    part: str
    model: str
    setting: str
    cells: tuple[Share | None, ...]


@dataclass(frozen=True)
class Ablation:
    """All lines, and the contexts that their cells stand for."""

    contexts: tuple[str, ...]
    lines: tuple[Line, ...]

    def blocks(self) -> tuple[tuple[str, str, tuple[Line, ...]], ...]:
        """Part, setting and lines of each small table: the models under one setting, and the rows that none changes."""
        settings = dict.fromkeys(line.setting for line in self.lines if line.setting != ANY) or {ANY: None}
        found = []
        for part in PARTS:
            for setting in settings:
                rows = tuple(line for line in self.lines if line.part == part and line.setting in {setting, ANY})
                if any(line.setting == setting for line in rows):
                    found.append((part, setting, rows))
        return tuple(found)


def ablation(rows: Sequence[ResultRow], predictions: Mapping[str, Sequence[Prediction]], seen: Collection[str]) -> Ablation:
    """The ablation over evaluations.

    Args:
        rows: evaluations; those of one name and protocol are seeds of one model.
        predictions: by tag.
        seen: objects or data sets trained on; where empty, nothing is told apart.
    """
    contexts = tuple(dict.fromkeys(row.protocol.context for row in rows))
    together: dict[tuple[str, str, str], list[ResultRow]] = {}
    for row in rows:
        setting = ANY if row.is_baseline else setting_of(row.protocol)
        together.setdefault((row.stage, setting, row.protocol.context), []).append(row)
    table: dict[tuple[str, str, str], dict[str, Share]] = {}
    for (stage, setting, context), members in together.items():
        for share in _pooled([predictions.get(row.tag, ()) for row in members], seen):
            table.setdefault((share.name, stage, setting), {})[context] = share
    lines = [Line(*key, tuple(cells.get(context) for context in contexts)) for key, cells in table.items()]
    return Ablation(contexts, tuple(sorted(lines, key=lambda line: PARTS.index(line.part))))


def closely(found: Ablation, protocol: EvalProtocol) -> tuple[tuple[str, str, Share], ...]:
    """Part, model and figures under one protocol, and of the rows that none changes."""
    place, setting = found.contexts.index(protocol.context), setting_of(protocol)
    rows = []
    for line in found.lines:
        cells = line.cells if line.setting == ANY else line.cells[place : place + 1] if line.setting == setting else ()
        rows += [(line.part, line.model, cell) for cell in cells if cell is not None]
    return tuple(rows)


def setting_of(protocol: EvalProtocol) -> str:
    """What a protocol says besides its context."""
    expert = "expert" if protocol.expert else "no expert"
    plain = f"{protocol.shots}-shot, {expert}, {protocol.answering}"
    if protocol.context == "routed" and (protocol.routing, protocol.orders) != ("hybrid", 1):
        plain += f", routed by {protocol.routing} over {protocol.orders} orders"
    return plain if protocol.scoring == "strict" else f"{plain}, {protocol.scoring}"


def cell_text(share: Share | None) -> str:
    """A cell for the terminal: average, its interval, Overkill and Miss."""
    if share is None or share.average is None:
        return ""
    span = f"{share.average.value:.1f} [{share.average.low:.1f}, {share.average.high:.1f}]"
    return f"{span} {figure_text(share.overkill) or '-'}/{figure_text(share.miss) or '-'}"


def to_csv(found: Ablation) -> str:
    """Every cell as a row of CSV, with its sub-tasks and the averages of its seeds."""
    heads = ("Average", "low", "high", "Overkill", "Miss", "Questions", "Seeds", "Average of each seed")
    rows: list[tuple[object, ...]] = [("Objects", "Model", "Setting", "Context", *SHORT.values(), *heads)]
    for line in found.lines:
        for context, share in zip(found.contexts, line.cells, strict=True):
            if share is not None and share.average is not None:
                span = (share.average.value, share.average.low, share.average.high)
                figures = map(figure_text, (*share.subtasks, *span, share.overkill, share.miss))
                seeds = " ".join(map(figure_text, share.seeds))
                count = max(1, len(share.seeds))
                rows.append((line.part, line.model, line.setting, context, *figures, share.questions, count, seeds))
    return csv_text(rows)


def _pooled(of_seeds: Sequence[Sequence[Prediction]], seen: Collection[str]) -> list[Share]:
    """Shares over the answers of all seeds; all were asked the same questions, so that the mean is the seeds' mean."""
    whole = shares([prediction for rows in of_seeds for prediction in rows], seen)
    if len(of_seeds) < 2:
        return list(whole)
    found = []
    for share in whole:
        objects = set(share.objects)
        alone = [metrics.average([p for p in rows if p.object in objects]) for rows in of_seeds]
        means = tuple(value for value in alone if value is not None)
        found.append(replace(share, questions=share.questions // len(of_seeds), seeds=means))
    return found
