"""An answer file of the field to the field's table, and to an honest one (Section 4.2).

Reads answers in MMAD's format; writes ``accuracy.csv``, tables by object and defect, and what was not
answered. Asks no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dcr2ad import metrics
from dcr2ad.artifacts import csv_text, digest_file, versions, write_records, write_text
from dcr2ad.datasets.mmad import answers_to_predictions, read_answers
from dcr2ad.mmad_scorer import Table, accuracy_csv, official_table, table_csv
from dcr2ad.stages.evaluate import summarise, write_report
from dcr2ad.types import EvalProtocol, EvalReport, Prediction, Scoring, Subtask


def score_answers(path: Path, out: Path, scoring: Scoring) -> tuple[Table, EvalReport]:
    """Count an answer file.

    Args:
        path: a JSON list, or one JSON object a line.
        out: folder to write to: ``accuracy.csv``, ``objects.csv``, ``defects.csv``, ``not_answered.csv``, ``report.json``,
            ``predictions.jsonl``.
        scoring: ``mmad-official`` counts as MMAD's script does, its faults included; ``strict`` leaves nothing out.

    Returns:
        the table in ``accuracy.csv``, and the strict report, which is written beside it under either scoring.

    Raises:
        RecordError: it is no such file.
    """
    answers = read_answers(path)
    predictions = answers_to_predictions(answers)
    table = official_table(answers) if scoring == "mmad-official" else strict_table(predictions)
    model = {"name": path.name, "digest": digest_file(path), "backend": "answers", **versions()}
    report = summarise(predictions, EvalProtocol(shots=1, expert=False, answering="reason", scoring=scoring), model, "")
    write_text(out / "accuracy.csv", accuracy_csv(table))
    write_text(out / "objects.csv", _csv(report.objects))
    write_text(out / "defects.csv", _csv(report.defects))
    write_text(out / "not_answered.csv", _not_answered(predictions))
    write_records(out / "predictions.jsonl", predictions)
    write_report(out, report)
    return table, report


def strict_table(predictions: Sequence[Prediction]) -> Table:
    """The same columns counted strictly: fixed denominators, MVTec once, a sub-task without a question left empty."""
    kinds = [subtask.value for subtask in Subtask]
    cells = metrics.group_table(predictions, lambda p: p.dataset)
    table: Table = {}
    for dataset, row in cells.items():
        own = [p for p in predictions if p.dataset == dataset]
        shown = {kind: row[kind] for kind in kinds if kind in row}
        table[dataset] = {**shown, "Average": sum(shown.values()) / len(shown), **metrics.detection_rates(own)}
    columns = dict.fromkeys(name for row in table.values() for name in row)
    means = {name: [row[name] for row in table.values() if name in row] for name in columns}
    table["Average"] = {name: sum(found) / len(found) for name, found in means.items()}
    return table


def _csv(table: dict[str, dict[str, float]]) -> str:
    columns = [subtask.value for subtask in Subtask if any(subtask.value in row for row in table.values())]
    return table_csv(table, columns)


def _not_answered(predictions: Sequence[Prediction]) -> str:
    lost = [(p.question_id, p.status, p.error, p.raw) for p in predictions if p.status != "answered"]
    return csv_text([("question", "status", "why", "raw"), *lost])
