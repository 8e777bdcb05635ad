"""Paired differences between evaluations of unlike models under one protocol: rows for the report, its CSV and its LaTeX.

Reads result rows, reports and predictions; returns records and text. Only like is paired with like: one protocol, one
benchmark, one knowledge base; what cannot be paired is named. Not in the paper, which gives no intervals.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from dcr2ad.artifacts import csv_text
from dcr2ad.errors import InputError
from dcr2ad.pairing import differences, pair
from dcr2ad.report.breakdown import parts
from dcr2ad.report.latex import escape
from dcr2ad.report.tables import SHORT, ResultRow, protocol_label, seeds_named
from dcr2ad.types import EvalReport, Interval, PairedResult, Prediction

ALL_PAIRS = 5
"""Models under one protocol up to which each is paired with each; a later one is with the first and with the one before it."""
HEAD = ("protocol", "questions on", "first", "second", "questions", "sub-task", "difference", "low", "high")
_TAIL = ("only first right", "only second right", "McNemar p", "Overkill", "Miss", "difference of each seed")


@dataclass(frozen=True)
class Difference:
    """Second minus first under one protocol, over one part of the questions."""

    protocol: str
    part: str
    result: PairedResult

    @property
    def sure(self) -> bool:
        """Whether the interval of the average leaves zero out."""
        return self.result.average.low > 0 or self.result.average.high < 0

    @property
    def models(self) -> str:
        """The two models, and how many trainings of them are taken together."""
        seeds = f", {len(self.result.trainings)} seeds" if self.result.trainings else ""
        return f"{self.result.second} minus {self.result.first}{seeds}"


@dataclass(frozen=True)
class Paired:
    """All differences of a report, and the pairs that could not be made, with the reason."""

    lines: tuple[Difference, ...] = ()
    refused: tuple[str, ...] = ()

    @property
    def groups(self) -> list[tuple[str, list[Difference]]]:
        """Lines by protocol, in order."""
        return _grouped(self.lines)


def paired_differences(
    rows: Sequence[ResultRow],
    reports: Mapping[str, EvalReport],
    predictions: Mapping[str, Sequence[Prediction]],
    seen: Collection[str],
) -> Paired:
    """Differences between the models of each protocol, in the order of training.

    Of a protocol's pairs those of several seeds, each with its own, come first, taken together; then each pair by itself.

    Args:
        rows: the report's rows, those of one protocol next to each other, the seeds of one model under one name.
        reports: reports by tag.
        predictions: predictions by tag.
        seen: what was trained on, as `breakdown.parts` takes it.
    """
    lines, refused = [], []
    shown = {row.tag: row.stage for row in seeds_named(rows)}
    parted = {row.tag: parts(predictions[row.tag], seen) for row in rows}
    for protocol, members in groupby(rows, key=lambda row: row.protocol):
        label = protocol_label(protocol)
        single = list(_pairs(list(members)))
        together: dict[tuple[str, str], list[tuple[ResultRow, ResultRow]]] = {}
        for one, two in single:
            together.setdefault((one.stage, two.stage), []).append((one, two))
        sought = [(names, pairs) for names, pairs in together.items() if len(pairs) > 1]
        sought += [((shown[one.tag], shown[two.tag]), [(one, two)]) for one, two in single]
        for names, pairs in sought:
            try:
                found = _differences(names, pairs, reports, parted)
            except InputError as error:
                refused.append(f"{names[1]} and {names[0]} ({label}): {error.what}")
            else:
                lines += [Difference(label, part, result) for part, result in found.items()]
    return Paired(tuple(lines), tuple(refused))


def to_csv(lines: Sequence[Difference]) -> str:
    """A line for each sub-task and for the average, with McNemar's test on the line of the average."""
    rows: list[tuple[object, ...]] = [(*HEAD, *_TAIL)]
    for line in lines:
        found = line.result
        about = (line.protocol, line.part, found.first, found.second)
        for name, span in found.subtasks.items():
            rows.append((*about, span.n, name, *_figures(span), *[""] * len(_TAIL)))
        rates = [f"{found.detection[name]:.2f}" if name in found.detection else "" for name in ("Overkill", "Miss")]
        p_value = "" if found.p_value is None else f"{found.p_value:.4g}"
        each = " ".join(f"{value:.2f}" for value in found.trainings)
        counts = (found.only_first, found.only_second, p_value, *rates, each)
        rows.append((*about, found.questions, "Average", *_figures(found.average), *counts))
    return csv_text(rows)


def to_latex(lines: Sequence[Difference]) -> str:
    """One ``tabular`` (booktabs), a protocol a block; empty without a line."""
    if not lines:
        return ""
    heads = ("Second minus first", "on", *SHORT.values(), "Average", "95\\,\\%", "$p$", "Overkill", "Miss")
    text = [f"\\begin{{tabular}}{{ll{'r' * (len(heads) - 2)}}}", "\\toprule", " & ".join(heads) + r" \\"]
    for label, members in _grouped(lines):
        text += ["\\midrule", f"\\multicolumn{{{len(heads)}}}{{l}}{{\\emph{{{escape(label)}}}}} \\\\"]
        text += [_latex_line(line) for line in members]
    return "\n".join([*text, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _latex_line(line: Difference) -> str:
    found = line.result
    spans = [found.subtasks.get(subtask.value) for subtask in SHORT]
    cells = ["--" if span is None else f"{span.value:+.1f}" for span in spans]
    rates = [f"{found.detection[name]:+.1f}" if name in found.detection else "--" for name in ("Overkill", "Miss")]
    average = f"[{found.average.low:+.1f}, {found.average.high:+.1f}]"
    name = escape(line.models)
    whole = [f"{found.average.value:+.1f}", average, "--" if found.p_value is None else f"{found.p_value:.3g}"]
    return " & ".join([name, line.part, *cells, *whole, *rates]) + r" \\"


def _grouped(lines: Sequence[Difference]) -> list[tuple[str, list[Difference]]]:
    return [(label, list(members)) for label, members in groupby(lines, key=lambda line: line.protocol)]


def _pairs(members: Sequence[ResultRow]) -> Iterator[tuple[ResultRow, ResultRow]]:
    """Pairs to compare: rows without a seed with every row, those of a training with rows of the same seed."""
    for number, later in enumerate(members):
        like = [row for row in members[:number] if None in (row.seed, later.seed) or row.seed == later.seed]
        for earlier in like if len(like) < ALL_PAIRS else (like[0], like[-1]):
            yield earlier, later


def _differences(
    names: tuple[str, str],
    pairs: Sequence[tuple[ResultRow, ResultRow]],
    reports: Mapping[str, EvalReport],
    parted: Mapping[str, Mapping[str, Sequence[Prediction]]],
) -> dict[str, PairedResult]:
    differ: dict[str, None] = {}
    for one, two in pairs:
        found = differences(reports[one.tag], reports[two.tag])
        unlike = sorted(set(found) - {"model", "pixels"})
        if unlike:
            raise InputError(f"they differ in {', '.join(unlike)}", "Compare like with like")
        differ |= dict.fromkeys(found)
    sides = [[parted[row.tag] for row in both] for both in pairs]
    wanted = ("all", *(name for name in sides[0][0] if name != "all"))
    return {
        name: pair([(one.get(name, ()), two.get(name, ())) for one, two in sides], names, differ=tuple(differ))
        for name in wanted
    }


def _figures(span: Interval) -> tuple[str, str, str]:
    return f"{span.value:.2f}", f"{span.low:.2f}", f"{span.high:.2f}"
