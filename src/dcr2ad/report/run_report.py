"""A run folder as one self-contained HTML page: results, curves, counts, and the questions that went worst.

Reads ``runs/NAME/``; returns HTML. Stages that are missing are named at the top and the rest is shown. Figures of unlike
protocols never share a table. Knows nothing about how stages work or how numbers are measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dcr2ad.errors import ImageError, InputError
from dcr2ad.images import load_image
from dcr2ad.report import figures
from dcr2ad.report.page import picture_uri, render, shrink
from dcr2ad.report.paper_tables import paper_tables
from dcr2ad.report.run_folder import Log, Run, Stage, find_questions, read_predictions, read_run
from dcr2ad.report.tables import SHORT, STAGES, ResultRow, paper_row, protocol_label, result_rows
from dcr2ad.types import EvalProtocol, Prediction, Question

WORST = 10
"""Wrong answers shown."""

PAPER_ROWS = ("Qwen2.5-VL-Instruct", "Qwen2.5-VL-7B-Instruct(SFT)", "DCR²-AD-7B")
"""The paper's 7B rows: base, SFT and the full method."""

DROPPED = re.compile(r"reject|drop|skip|fail|unparsed|refused|leak")
"""Summary fields that count what was not used."""

_SIDE = 320
_MARGIN, _RATE = "Reward margin, chosen minus rejected", "Learning rate"
_NAME = re.compile(r"[A-Za-z0-9_./ -]{1,40}")


@dataclass(frozen=True)
class Group:
    """Results under one protocol, with the paper's rows under the same shots and context."""

    label: str
    rows: tuple[ResultRow, ...]
    paper: tuple[ResultRow, ...]


@dataclass(frozen=True)
class Count:
    """One counted thing: a name, and a number or a short breakdown."""

    name: str
    text: str


@dataclass(frozen=True)
class StageCounts:
    """One stage's line in the table of counts."""

    stage: Stage
    made: tuple[Count, ...]
    dropped: tuple[Count, ...]


@dataclass(frozen=True)
class Wrong:
    """A question that was answered wrongly or not at all."""

    prediction: Prediction
    question: Question | None
    uri: str | None
    problem: str


def render_run(run_folder: Path) -> str:
    """The page over a run folder.

    Args:
        run_folder: ``runs/NAME`` with any of its stage folders.

    Returns:
        HTML that loads nothing from anywhere and runs no script.

    Raises:
        InputError: there is no such folder.
    """
    if not run_folder.is_dir():
        raise InputError(f"no such run folder: {run_folder}", "Name a folder under runs/")
    run = read_run(run_folder)
    rows = result_rows(run.reports)
    shown_tag = main_tag(rows)
    return render(
        "run.html.j2",
        title=f"Run {run_folder.resolve().name}",
        run=run,
        heads=list(SHORT.values()),
        groups=result_groups(rows),
        averages=_averages(rows),
        curves={name: training_curves(name, log) for name, log in run.logs.items() if log.steps},
        counts=[stage_counts(stage) for stage in run.stages],
        shown_tag=shown_tag,
        shown_label="" if shown_tag is None else protocol_label(run.reports[shown_tag].protocol),
        wrong=worst_questions(run, shown_tag) if shown_tag is not None else (),
        versions=_versions(run),
    )


def result_groups(rows: Sequence[ResultRow]) -> tuple[Group, ...]:
    """Rows in groups of one protocol each."""
    groups = []
    for protocol, members in groupby(rows, key=lambda row: row.protocol):
        groups.append(Group(protocol_label(protocol), tuple(members), _paper_rows(protocol)))
    return tuple(groups)


def main_tag(rows: Sequence[ResultRow]) -> str | None:
    """The evaluation whose wrong answers are shown: the model trained furthest, with routed knowledge where measured."""
    names = list(STAGES.values())

    def rank(row: ResultRow) -> tuple[int, bool]:
        return (names.index(row.stage) if row.stage in names else -1, row.protocol.context == "routed")

    return max(rows, key=rank).tag if rows else None


def training_curves(stage: str, log: Log) -> tuple[Markup, ...]:
    """One figure for the loss, one each for families of numbers that share a unit, one for the learning rate."""
    known = {name: values for name, values in log.series.items() if _NAME.fullmatch(name)}
    families = (
        ("Loss", _family(known, r"(?=loss|eval_loss)")),
        (_MARGIN, _family(known, r"(?:reward_)?margin")),
        ("Reward of each response", _family(known, r"reward(?=_chosen|_rejected)")),
        ("Share of pairs ranked rightly", _family(known, "accuracy")),
        (_RATE, _family(known, "learning_rate")),
    )
    return tuple(
        figures.curve(title, stage, log.steps, series, zero=title == _MARGIN, smooth=title != _RATE)
        for title, series in families
        if series
    )


def stage_counts(stage: Stage) -> StageCounts:
    """A stage's summary in two lists: what it made, and what it dropped and why."""
    made: list[Count] = []
    dropped: list[Count] = []
    for name, value in stage.summary.items():
        text = _count_text(value)
        if text and not name.endswith("digest"):
            (dropped if DROPPED.search(name) else made).append(Count(name.replace("_", " "), text))
    return StageCounts(stage, tuple(made), tuple(dropped))


def worst_questions(run: Run, tag: str) -> tuple[Wrong, ...]:
    """Wrong answers, those with the least probability on the right option first, one an image; then some without an answer."""
    predictions = read_predictions(run.path, tag)
    answered = [p for p in predictions if p.status == "answered" and not p.is_correct]
    silent = [p for p in predictions if p.status != "answered"]
    chosen: dict[str, Prediction] = {}
    for prediction in sorted(answered, key=_gold_probability):
        chosen.setdefault(prediction.image, prediction)
    kept = [*list(chosen.values())[: WORST - min(3, len(silent))], *silent[:3]]
    questions = find_questions(run.path, [p.question_id for p in kept])
    return tuple(_wrong(prediction, questions.get(prediction.question_id)) for prediction in kept)


def _gold_probability(prediction: Prediction) -> float:
    return prediction.probabilities[prediction.gold] if prediction.probabilities else 0.0


def _wrong(prediction: Prediction, question: Question | None) -> Wrong:
    try:
        return Wrong(prediction, question, picture_uri(shrink(load_image(prediction.image), _SIDE)), "")
    except ImageError as error:
        return Wrong(prediction, question, None, str(error))


def _averages(rows: Sequence[ResultRow]) -> Markup | None:
    points = [
        (protocol_label(row.protocol), row.stage, row.average, row.low, row.high)
        for row in rows
        if row.average is not None and row.low is not None and row.high is not None
    ]
    return (
        figures.intervals("Average over sub-tasks, per cent, with 95 % intervals clustered by image", points)
        if points
        else None
    )


def _paper_rows(protocol: EvalProtocol) -> tuple[ResultRow, ...]:
    for table in paper_tables().tables:
        if (table.shots, table.context) == (protocol.shots, protocol.context):
            return tuple(paper_row(table.row(name, "7B"), protocol) for name in PAPER_ROWS)
    return ()


def _family(series: Mapping[str, tuple[float, ...]], prefix: str) -> dict[str, tuple[float, ...]]:
    """Series whose name begins with a pattern, under the rest of their name."""
    found = {}
    for name, values in series.items():
        match = re.match(prefix, name)
        if match:
            found[name[match.end() :].strip("_").replace("_", " ") or "all"] = values
    return found


def _count_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_nested(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        plain = all(isinstance(item, int | float) for item in value)
        return ", ".join(_count_text(item) for item in value) if plain else str(len(value))
    return "" if value is None else str(value)


def _nested(value: Any) -> str:
    return f"({_count_text(value)})" if isinstance(value, dict | list | tuple) else _count_text(value)


def _versions(run: Run) -> tuple[str, ...]:
    """Seeds and versions of all manifests, each once."""
    found: dict[str, None] = {}
    for stage in run.stages:
        if stage.manifest is not None:
            found[f"seed {stage.manifest.seed}"] = None
            found.update(dict.fromkeys(f"{name} {version}" for name, version in stage.manifest.versions.items()))
    return tuple(sorted(found))
