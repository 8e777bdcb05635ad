"""Run folders as one self-contained HTML page: results, curves, counts, and the questions that went worst.

Reads ``runs/NAME/``; returns HTML. Stages that are missing are named at the top and the rest is shown. Figures of unlike
protocols never share a table. Knows nothing about how stages work or how numbers are measured.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from markupsafe import Markup

from dcr2ad.errors import InputError
from dcr2ad.report import compare, figures, origins, paired
from dcr2ad.report.ablation import Ablation, ablation, closely
from dcr2ad.report.breakdown import Share, by_dataset
from dcr2ad.report.counts import stage_counts
from dcr2ad.report.latex import grouped, to_latex
from dcr2ad.report.page import render
from dcr2ad.report.run_folder import Log, Run, read_predictions, read_run
from dcr2ad.report.tables import SHORT, ResultRow, protocol_label, result_rows, seeds_named, trained_rank
from dcr2ad.report.worst import worst_questions
from dcr2ad.types import EvalReport, Prediction

_MARGIN, _RATE = "Reward margin, chosen minus rejected", "Learning rate"
_ROUTING = "Right entry among the policy's first, dev photographs"
_NAME = re.compile(r"[A-Za-z0-9_./ -]{1,40}")


@dataclass(frozen=True)
class Group:
    """Results under one protocol."""

    label: str
    rows: tuple[ResultRow, ...]


def render_run(run_folder: Path) -> str:
    """The page over one run folder; see `render_runs`."""
    return render_runs([run_folder]).html


@dataclass(frozen=True)
class Report:
    """A report in its three forms."""

    html: str
    csv: str
    latex: str
    ablation: Ablation
    """Models by context, seeds together."""
    main: str
    """Protocol, in words, of the evaluations that the page shows closely; empty where there is none."""
    subtasks: tuple[tuple[str, str, Share], ...]
    """Under that protocol, for each part and model, its figures a sub-task."""
    differences: paired.Paired
    """Paired differences between the models of each protocol."""

    @property
    def paired_csv(self) -> str:
        """Paired differences as CSV; empty where nothing is to be paired."""
        return paired.to_csv(self.differences.lines) if self.differences.lines else ""


def render_runs(folders: Sequence[Path], *, unseen: Collection[str] = ()) -> Report:
    """The report over run folders, or single evaluations, side by side.

    Args:
        folders: ``runs/NAME`` with any of its stage folders, or folders that `evaluate` wrote.
        unseen: objects or data sets that were not trained on. Where left out, the seen ones are those that the models'
            manifests record, else the objects of a run's instruct stage; without both nothing is told apart.

    Returns:
        HTML that loads nothing from anywhere and runs no script, and the results as CSV and LaTeX.

    Raises:
        InputError: there is no such folder.
    """
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"no such run folder: {folder}", "Name a folder under runs/")
    runs = [read_run(folder) for folder in folders]
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    reports, places = _joined(runs, names)
    rows = result_rows(reports)
    predictions = {tag: read_predictions(*places[tag]) for tag in reports}
    seen = _seen(runs, reports, predictions, unseen)
    shown_tag = main_tag(rows)
    rows = _named(
        rows,
        {tag: name for tag, (path, _) in places.items() for name, run in zip(names, runs, strict=True) if run.path == path},
    )
    found = ablation(rows, predictions, seen)
    pairs = paired.paired_differences(rows, reports, predictions, seen)
    rows = seeds_named(rows)
    main = next((row for row in rows if row.tag == shown_tag), None)
    routed_tag, routed = compare.routing_of(rows, predictions)
    html = render(
        "run.html.j2",
        title=f"Run {names[0]}" if len(runs) == 1 else "Runs " + ", ".join(names),
        runs=list(zip(names, runs, strict=True)),
        n_reports=len(reports),
        problems=[
            problem if len(runs) == 1 else f"{name}: {problem}"
            for name, run in zip(names, runs, strict=True)
            for problem in run.problems
        ],
        heads=list(SHORT.values()),
        names=[subtask.value for subtask in SHORT],
        groups=result_groups(rows),
        averages=_averages(rows),
        pairs=pairs,
        contexts=found.contexts,
        lines=found.lines,
        blocks=compare.paper_blocks(rows) if rows else (),
        radar=None if main is None else compare.radar_of(rows, main),
        reliability=None if main is None else compare.reliability_of(rows, main, predictions),
        datasets={} if main is None else by_dataset(predictions[main.tag]),
        dataset_sizes=Counter(p.dataset for p in predictions[main.tag]) if main else {},
        joined=figures.JOINED,
        routed_tag=routed_tag,
        routed=routed,
        curves=[
            (name if len(runs) == 1 else f"{run_name}: {name}", _trained_by(run, name), training_curves(name, log))
            for run_name, run in zip(names, runs, strict=True)
            for name, log in run.logs.items()
            if log.steps
        ],
        counts=[(name, [stage_counts(stage) for stage in run.stages]) for name, run in zip(names, runs, strict=True)],
        shown_tag=shown_tag,
        shown_label="" if main is None else protocol_label(main.protocol),
        wrong=() if main is None else worst_questions(places[main.tag][0], predictions[main.tag], main.protocol),
        notes=_notes(reports),
        origins=[origins.origin(tag, report) for tag, report in reports.items()],
        shown_digits=origins.SHOWN,
        versions=tuple(sorted({version for run in runs for version in _versions(run)})),
    )
    label = "" if main is None else protocol_label(main.protocol)
    close = () if main is None else closely(found, main.protocol)
    latex = "\n".join(filter(None, (to_latex(grouped(rows)), paired.to_latex(pairs.lines))))
    return Report(html, origins.to_csv(rows, reports), latex, found, label, close, pairs)


def _joined(runs: Sequence[Run], names: Sequence[str]) -> tuple[dict[str, EvalReport], dict[str, tuple[Path, str]]]:
    """Reports of all runs by tag, and for each its run folder and folder name; several runs' tags carry the run's name."""
    reports, places = {}, {}
    for name, run in zip(names, runs, strict=True):
        for tag, report in run.reports.items():
            shown = tag if len(runs) == 1 or tag == name else f"{name}/{tag}"
            reports[shown], places[shown] = report, (run.path, tag)
    return reports, places


def _named(rows: Sequence[ResultRow], run_of: Mapping[str, str]) -> tuple[ResultRow, ...]:
    """Rows with the run's name where there are several, and the tag where that is not enough; seeds of a model share a name."""
    several = len(set(run_of.values())) > 1
    # A single evaluation's folder is its run too: one name is enough.
    named = [
        replace(row, stage=f"{row.stage} ({run_of[row.tag]})") if several and row.stage != run_of[row.tag] else row
        for row in rows
    ]
    seeds: dict[tuple[str, str], list[int | None]] = {}
    for row in named:
        seeds.setdefault((row.stage, row.protocol.model_dump_json()), []).append(row.seed)
    # One model once, or several seeds of it; anything else is several models that nothing but their tags tells apart.
    alike = {key for key, found in seeds.items() if len(found) == 1 or (None not in found and len(set(found)) == len(found))}
    return tuple(row if (row.stage, row.protocol.model_dump_json()) in alike else replace(row, stage=row.tag) for row in named)


def _seen(
    runs: Sequence[Run],
    reports: Mapping[str, EvalReport],
    predictions: Mapping[str, Sequence[Prediction]],
    unseen: Collection[str],
) -> set[str]:
    """Objects trained on by any of the models, as `breakdown.parts` takes them."""
    if unseen:
        every = {p for rows in predictions.values() for p in ((q.object, q.dataset) for q in rows)}
        return {name for name, dataset in every if name not in unseen and dataset not in unseen}
    if recorded := {name for report in reports.values() for name in report.trained_on}:
        return recorded
    stages = [stage for run in runs for stage in run.stages if stage.name == "instruct"]
    return {name for stage in stages for name in dict(stage.summary.get("objects") or {})}


def result_groups(rows: Sequence[ResultRow]) -> tuple[Group, ...]:
    """Rows in groups of one protocol each."""
    groups = []
    for protocol, members in groupby(rows, key=lambda row: row.protocol):
        groups.append(Group(protocol_label(protocol), tuple(members)))
    return tuple(groups)


def main_tag(rows: Sequence[ResultRow]) -> str | None:
    """The evaluation whose wrong answers are shown: the model trained furthest, with routed knowledge where measured."""

    def rank(row: ResultRow) -> tuple[int, bool]:
        trained = trained_rank(row.stage)
        return (-1 if trained is None else trained, row.protocol.context == "routed")

    return max(rows, key=rank).tag if rows else None


def _trained_by(run: Run, name: str) -> str:
    """A training stage's name with its equation."""
    manifest = next((stage.manifest for stage in run.stages if stage.name == name), None)
    if name == "krdpo" and manifest is not None and manifest.config.get("objective") == "dpo":
        return "DPO, Equation (4)"
    return {"sft": "SFT, Equation (2)", "krdpo": "KR-DPO, Equation (5)"}[name]


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
    curves = [
        figures.curve(title, stage, log.steps, series, zero=title == _MARGIN, smooth=title != _RATE)
        for title, series in families
        if series
    ]
    routing = _family(known, "routing")
    if routing:  # measured at some steps only
        at = [number for number in range(len(log.steps)) if not all(math.isnan(values[number]) for values in routing.values())]
        series = {name: tuple(values[number] for number in at) for name, values in routing.items()}
        curves.append(figures.curve(_ROUTING, stage, [log.steps[number] for number in at], series, smooth=False))
    return tuple(curves)


def _notes(reports: Mapping[str, EvalReport]) -> tuple[str, ...]:
    """What the reports say a reader must know, and training images found in the benchmark; evaluations of one note together."""
    found: dict[str, list[str]] = {}
    for tag, report in reports.items():
        overlap = report.leaks.get("overlap", 0)
        leak = (f"{overlap} of {report.leaks.get('looked_at')} images of the benchmark were trained on",) if overlap else ()
        for note in (*report.notes, *leak):
            found.setdefault(note, []).append(tag)
    return tuple(f"{note} ({', '.join(tags)})." for note, tags in found.items())


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


def _family(series: Mapping[str, tuple[float, ...]], prefix: str) -> dict[str, tuple[float, ...]]:
    """Series whose name begins with a pattern, under the rest of their name."""
    found = {}
    for name, values in series.items():
        match = re.match(prefix, name)
        if match:
            found[name[match.end() :].strip("_").replace("_", " ") or "all"] = values
    return found


def _versions(run: Run) -> tuple[str, ...]:
    """Seeds and versions of all manifests, each once."""
    found: dict[str, None] = {}
    for stage in run.stages:
        if stage.manifest is not None:
            found[f"seed {stage.manifest.seed}"] = None
            found.update(dict.fromkeys(f"{name} {version}" for name, version in stage.manifest.versions.items()))
    return tuple(sorted(found))
