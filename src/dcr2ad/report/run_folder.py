"""What a run folder holds, read without insisting on any of it.

Reads ``runs/NAME/`` with its stage folders; returns plain records. A stage that is missing, unfinished or unreadable is named
in `problems`, never skipped in silence. Knows nothing about pages or figures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dcr2ad.artifacts import read_manifest, read_records
from dcr2ad.errors import RecordError
from dcr2ad.types import EvalReport, Prediction, Question, RunManifest

STAGES: tuple[str, ...] = ("knowledge", "instruct", "sft", "mine", "synthesize", "krdpo", "bench")
"""Stage folders in the order of the method, and the benchmark's; evaluations lie in ``evaluate/TAG``."""


@dataclass(frozen=True)
class Stage:
    """One stage's folder: how far it came and what it counted."""

    name: str
    state: str
    manifest: RunManifest | None
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class Log:
    """A training log: the steps, and each number logged, NaN where a line lacks it."""

    steps: tuple[float, ...] = ()
    series: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    unreadable: int = 0


@dataclass(frozen=True)
class Run:
    """Everything found in a run folder."""

    path: Path
    stages: tuple[Stage, ...]
    reports: Mapping[str, EvalReport]
    logs: Mapping[str, Log]
    problems: tuple[str, ...]


def read_run(folder: Path) -> Run:
    """Read what a run folder holds; the folder of one evaluation counts as a run of that alone."""
    problems: list[str] = []
    if (folder / "predictions.jsonl").is_file():
        return Run(folder, (), _reports(folder.parent, problems, only=folder.name), {}, tuple(problems))
    stages = tuple(_stage(folder / name, problems) for name in STAGES)
    reports = _reports(folder / "evaluate", problems)
    logs = {name: read_log(folder / name / "log.jsonl") for name in ("sft", "krdpo")}
    problems += [
        f"{name}: lines of log.jsonl that could not be read: {log.unreadable}." for name, log in logs.items() if log.unreadable
    ]
    return Run(folder, stages, reports, logs, tuple(problems))


def read_log(path: Path) -> Log:
    """Read a training log of one JSON object a line; lines without a step or that are no object are counted."""
    if not path.is_file():
        return Log()
    rows: list[dict[str, Any]] = []
    unreadable = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict) and _is_number(row.get("step")):
            rows.append(row)
        elif line.strip():
            unreadable += 1
    names = dict.fromkeys(key for row in rows for key, value in row.items() if key != "step" and _is_number(value))
    series = {key: tuple(float(row[key]) if _is_number(row.get(key)) else math.nan for row in rows) for key in names}
    return Log(tuple(float(row["step"]) for row in rows), series, unreadable)


def read_predictions(folder: Path, tag: str) -> tuple[Prediction, ...]:
    """Predictions of an evaluation; what can be read of them."""
    found: list[Prediction] = []
    place = folder if (folder / "predictions.jsonl").is_file() else folder / "evaluate" / tag
    try:
        found.extend(read_records(place / "predictions.jsonl", Prediction))
    except RecordError:
        return tuple(found)
    return tuple(found)


def find_questions(folder: Path, wanted: Iterable[str]) -> dict[str, Question]:
    """Questions by id, from any ``questions.jsonl`` up to two folders below the run."""
    missing = set(wanted)
    found: dict[str, Question] = {}
    near = {*folder.glob("*/questions.jsonl"), *folder.glob("*/*/questions.jsonl")}
    if (folder / "predictions.jsonl").is_file():
        near |= {*folder.parent.glob("*/questions.jsonl"), *folder.parent.parent.glob("*/questions.jsonl")}
    for file in sorted(near):
        try:
            for question in read_records(file, Question):
                if question.id in missing:
                    found[question.id] = question
                    missing.discard(question.id)
        except RecordError:
            continue
        if not missing:
            break
    return found


def _stage(path: Path, problems: list[str]) -> Stage:
    name = path.name
    if not path.is_dir():
        problems.append(f"{name}: not run.")
        return Stage(name, "not run", None, {})
    try:
        manifest = read_manifest(path)
    except RecordError as error:
        summary = _report_summary(path)
        if summary:
            return Stage(name, "done", None, summary)
        problems.append(f"{name}: {error}")
        return Stage(name, "unreadable", None, {})
    if not manifest.done:
        problems.append(f"{name}: begun, not finished.")
    return Stage(name, "done" if manifest.done else "not finished", manifest, manifest.summary)


def _report_summary(path: Path) -> dict[str, Any]:
    """Counts of a stage that writes ``report.json`` and no manifest."""
    try:
        data = json.loads((path / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _reports(path: Path, problems: list[str], only: str = "") -> dict[str, EvalReport]:
    reports: dict[str, EvalReport] = {}
    folders = sorted(item for item in path.iterdir() if item.is_dir() and only in {"", item.name}) if path.is_dir() else []
    for item in folders:
        file = item / "report.json"
        if not file.is_file():
            problems.append(f"evaluate/{item.name}: begun, not finished.")
            continue
        try:
            reports[item.name] = EvalReport.model_validate_json(file.read_text(encoding="utf-8", errors="replace"))
        except ValidationError as error:
            problems.append(f"evaluate/{item.name}: report.json cannot be read ({error.errors()[0]['msg']}).")
    if not reports:
        problems.append("evaluate: no finished evaluation.")
    return reports


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
