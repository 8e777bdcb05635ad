"""MMAD's own way of counting, its faults included; only under the name ``mmad-official``.

Reads rows of the field's answer files; returns the table that MMAD's script writes, column for column. The faults it keeps: a
data set is the first part of the path, so ``MVTec-AD`` stands beside ``DS-MVTec``; an answer outside A to E leaves the
denominator; and since rows are removed from the list that is being walked, each removal hides the next row. Pure. For honest
figures use `dcr2ad.metrics`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from dcr2ad.artifacts import csv_text

RATES = ("Overkill", "Miss", "Recall", "Precision", "F1")
"""Columns after the sub-tasks and their average, in per cent; of Anomaly Detection, abnormal being positive."""

_DETECTION = "Anomaly Detection"
_MERGED = {"Object Structure": "Object Analysis", "Object Details": "Object Analysis"}

Table = dict[str, dict[str, float]]
"""A row a data set, the last named ``Average``; figures in per cent by column."""


def official_table(answers: Iterable[Mapping[str, object]]) -> Table:
    """The official table of an answer file.

    Args:
        answers: rows with ``image``, ``question_type``, ``correct_answer`` and ``gpt_answer``.
    """
    rows = [(str(a["image"]), _type(a["question_type"]), str(a["correct_answer"]), str(a["gpt_answer"])) for a in answers]
    datasets = list(dict.fromkeys(_dataset(row[0]) for row in rows))
    types = list(dict.fromkeys(row[1] for row in rows))
    counted = list(_counted(rows))
    table: Table = {}
    for dataset in datasets:
        own = [row for row in counted if _dataset(row[0]) == dataset]
        normal, abnormal = (
            [row[2] == row[3] for row in own if row[1] == _DETECTION and ("good" in row[0]) is wanted]
            for wanted in (True, False)
        )
        cells = {kind: 100 * _share([row[2] == row[3] for row in own if row[1] == kind]) for kind in types}
        if _DETECTION in cells:
            cells[_DETECTION] = 100 * (_share(normal) + _share(abnormal)) / 2
        table[dataset] = {**cells, "Average": fmean(cells.values()), **_rates(normal, abnormal)}
    if table:
        columns = next(iter(table.values()))
        table["Average"] = {name: fmean(row[name] for row in list(table.values())) for name in columns}
    return table


def accuracy_csv(table: Table) -> str:
    """A table as MMAD's script writes it: data set first, under an empty head."""
    return table_csv(table, list(dict.fromkeys(name for row in table.values() for name in row)))


def table_csv(table: Table, columns: Sequence[str]) -> str:
    """Some columns of a table, its rows' names first under an empty head; what a row lacks is left empty."""
    return csv_text([["", *columns], *([name, *(row.get(column, "") for column in columns)] for name, row in table.items())])


def _counted(rows: Sequence[tuple[str, str, str, str]]) -> Iterable[tuple[str, str, str, str]]:
    """Rows that the official loop counts: after each one it removes, it never sees the next."""
    remaining = iter(rows)
    for row in remaining:
        if {row[2], row[3]} <= set("ABCDE"):
            yield row
        else:
            next(remaining, None)


def _rates(normal: Sequence[bool], abnormal: Sequence[bool]) -> dict[str, float]:
    hits, alarms = sum(abnormal), len(normal) - sum(normal)
    precision = hits / (hits + alarms) if hits + alarms else 0.0
    recall = _share(abnormal)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return dict(
        zip(RATES, (100 * (1 - _share(normal)), 100 * (1 - recall), 100 * recall, 100 * precision, 100 * f1), strict=True)
    )


def _share(found: Sequence[bool]) -> float:
    return sum(found) / len(found) if found else 0.0


def _dataset(image: str) -> str:
    return image.split("/")[0]


def _type(name: object) -> str:
    return _MERGED.get(str(name), str(name))
