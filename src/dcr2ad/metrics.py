"""Predictions -> numbers; pure.

Reads `Prediction` records, once each and one at a time, so that they may come from a file of any length; returns accuracies,
rates and intervals in per cent. Unanswered questions stay in every denominator and count as wrong. Knows nothing about files,
models or drawing.
"""

from __future__ import annotations

import math
import warnings
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from dcr2ad.types import Interval, Prediction, Subtask

RESAMPLES = 1000
_DRAWN = 2**18
"""Numbers drawn at a time for the resamples: 2 MB, however many images there are."""


def subtask_accuracy(predictions: Iterable[Prediction], subtask: Subtask) -> float | None:
    """Accuracy of one sub-task in per cent, plain mean over data sets; None without a question.

    Anomaly Detection is the mean of the accuracies on normal and on abnormal images, as in MMAD; with one kind alone, that
    kind's accuracy.
    """
    found = _points(_tally(p for p in predictions if p.subtask == subtask))
    return float(found[subtask][0]) if subtask in found else None


def average(predictions: Iterable[Prediction]) -> float | None:
    """Plain mean of the sub-tasks that have questions, in per cent (the paper's "Average")."""
    found = _points(_tally(predictions))
    return float(np.mean([values[0] for values in found.values()])) if found else None


def detection_rates(predictions: Iterable[Prediction]) -> dict[str, float]:
    """Overkill, Miss, Precision, Recall and F1 of Anomaly Detection in per cent, abnormal being positive.

    Overkill is the share of normal images called abnormal, Miss the share of abnormal images not found; an unanswered question
    counts against its image. Rates without an image of their kind are left out.
    """
    asked = Counter((p.is_anomalous, p.is_correct) for p in predictions if p.subtask == Subtask.DETECTION)
    hits, misses, alarms, passed = asked[True, True], asked[True, False], asked[False, False], asked[False, True]
    rates: dict[str, float] = {}
    if alarms + passed:
        rates["Overkill"] = 100.0 * alarms / (alarms + passed)
    if hits + misses:
        rates["Miss"] = 100.0 * misses / (hits + misses)
        rates["Recall"] = 100.0 * hits / (hits + misses)
        rates["Precision"] = 100.0 * hits / (hits + alarms) if hits + alarms else 0.0
        rates["F1"] = 100.0 * 2 * hits / (2 * hits + misses + alarms)
    return rates


def intervals(predictions: Iterable[Prediction], *, seed: int = 0) -> dict[Subtask | None, Interval]:
    """Accuracy of every sub-task present, and their average under None, each with a bootstrap interval.

    Images are resampled with all their questions, `RESAMPLES` times (percentile interval).
    """
    tally = _tally(predictions)
    return _spans(_points(tally), _resampled(tally, seed), tally.asked) if tally.rows else {}


def paired_differences(
    first: Iterable[Prediction], second: Iterable[Prediction], *, seed: int = 0
) -> dict[Subtask | None, Interval]:
    """Second minus first, a sub-task and on average (under None), in per cent; both are resampled by the same images.

    Args:
        first: predictions.
        second: predictions of the same questions in the same order.
        seed: seed of the bootstrap.
    """
    one, two = _tally(first), _tally(second)
    (before, drawn_before), (after, drawn_after) = ((_points(each), _resampled(each, seed)) for each in (one, two))
    points = {subtask: after[subtask] - before[subtask] for subtask in before}
    draws = {subtask: drawn_after[subtask] - drawn_before[subtask] for subtask in before}
    return _spans(points, draws, one.asked)


def discordant(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int]:
    """Pairs only the first has right, and pairs only the second has."""
    pairs = list(zip(first, second, strict=True))
    return sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int, float]:
    """Pairs only the first has right, pairs only the second has, and the exact two-sided p-value (binomial, 1/2)."""
    only_first, only_second = discordant(first, second)
    n = only_first + only_second
    tail = sum(math.comb(n, i) for i in range(min(only_first, only_second) + 1))
    return only_first, only_second, min(1.0, float(Fraction(2 * tail, 2**n)))


def _spans(
    points: dict[Subtask, np.ndarray], draws: dict[Subtask, np.ndarray], asked: Counter[Subtask]
) -> dict[Subtask | None, Interval]:
    """Points with the percentile intervals of their draws, and the mean over sub-tasks under None."""
    rows: dict[Subtask | None, tuple[np.ndarray, np.ndarray]] = {s: (points[s], draws[s]) for s in points}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        rows[None] = (np.mean(list(points.values()), axis=0), np.nanmean(list(draws.values()), axis=0))
    found = {}
    for subtask, (value, drawn_values) in rows.items():
        low, high = np.nanquantile(drawn_values, [0.025, 0.975])
        n = asked.total() if subtask is None else asked[subtask]
        found[subtask] = Interval(value=float(value[0]), low=float(low), high=float(high), n=n)
    return found


def object_table(predictions: Iterable[Prediction]) -> dict[str, dict[str, float]]:
    """Accuracy in per cent for each object (``dataset/object``) and sub-task."""
    return group_table(predictions, lambda p: f"{p.dataset}/{p.object}")


def group_table(predictions: Iterable[Prediction], key: Callable[[Prediction], str]) -> dict[str, dict[str, float]]:
    """Accuracy in per cent for each group of predictions and each sub-task it has, groups in order of name."""
    tally = _tally(predictions, key)
    found = _accuracies(tally.correct, tally.questions, tally.cells)
    return {
        name: {subtask.value: float(values[row]) for subtask, values in found.items() if not np.isnan(values[row])}
        for name, row in sorted(tally.rows.items())
    }


def routing_accuracy(predictions: Iterable[Prediction]) -> dict[str, float]:
    """Top-1, top-3 and mean reciprocal rank of the right key in per cent, an image counted once; empty if none was routed."""
    by_image = {p.image: _rank(p) for p in predictions if p.routed and p.right_key is not None}
    if not by_image:
        return {}
    ranks = list(by_image.values())
    return {
        "top1": 100.0 * float(np.mean([rank == 1 for rank in ranks])),
        "top3": 100.0 * float(np.mean([rank is not None and rank <= 3 for rank in ranks])),
        "mrr": 100.0 * float(np.mean([1.0 / rank if rank is not None else 0.0 for rank in ranks])),
        "n": float(len(ranks)),
    }


def calibration_error(predictions: Iterable[Prediction], bins: int = 10) -> float | None:
    """Expected calibration error of the most probable option, in per cent; None where nothing has probabilities."""
    rows = array("d")
    for p in predictions:
        if p.probabilities:
            rows.extend((max(p.probabilities), p.is_correct))
    if not rows:
        return None
    confidence, correct = np.asarray(rows).reshape(-1, 2).T
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        (which == b).mean() * abs(correct[which == b].mean() - confidence[which == b].mean())
        for b in range(bins)
        if (which == b).any()
    ]
    return 100.0 * float(sum(gaps))


def _rank(p: Prediction) -> int | None:
    """Place of the right entry in an image's ranking, 1 the first; None where it is not in it."""
    keys = [entry.key for entry in p.routed]
    return keys.index(p.right_key) + 1 if p.right_key in keys else None


class _Tally(NamedTuple):
    """Predictions counted by row and cell; a row is an image, or whatever else they are grouped by."""

    rows: dict[str, int]
    """Rows in order of first occurrence, and the number of each."""
    cells: list[tuple[str, str, bool]]
    """Cells in order."""
    correct: np.ndarray
    """Right answers, shape ``(rows, cells)``."""
    questions: np.ndarray
    """Questions, of the same shape."""
    asked: Counter[Subtask]
    """Questions of each sub-task."""


def _tally(predictions: Iterable[Prediction], key: Callable[[Prediction], str] = lambda p: p.image) -> _Tally:
    """Count predictions in one pass; nothing of them is kept but three numbers each."""
    rows: dict[str, int] = {}
    seen: dict[tuple[str, str, bool], int] = {}
    asked: Counter[Subtask] = Counter()
    row, cell, right = array("q"), array("q"), array("b")
    for p in predictions:
        row.append(rows.setdefault(key(p), len(rows)))
        cell.append(seen.setdefault(_cell(p), len(seen)))
        right.append(p.is_correct)
        asked[p.subtask] += 1
    cells, shape = sorted(seen), (len(rows), len(seen))
    if not rows:
        return _Tally(rows, cells, np.zeros(shape), np.zeros(shape), asked)
    column = np.argsort([seen[name] for name in cells])  # of a cell by its first occurrence
    place = np.asarray(row) * len(cells) + column[np.asarray(cell)]
    correct = np.bincount(place, np.asarray(right, dtype=float), len(rows) * len(cells)).reshape(shape)
    count = np.bincount(place, minlength=len(rows) * len(cells)).reshape(shape)
    return _Tally(rows, cells, correct, count.astype(float), asked)


def _points(tally: _Tally) -> dict[Subtask, np.ndarray]:
    """Accuracy in per cent of every sub-task present, each of shape ``(1,)``."""
    return _accuracies(tally.correct.sum(0, keepdims=True), tally.questions.sum(0, keepdims=True), tally.cells)


def _resampled(tally: _Tally, seed: int) -> dict[Subtask, np.ndarray]:
    """As `_points` of each resample of the rows, shape ``(RESAMPLES,)``; NaN where one holds no question of a sub-task.

    Drawn and counted in blocks, which do not change what is drawn, since a benchmark has thousands of images.
    """
    images, rng = len(tally.rows), np.random.default_rng(seed)
    even, size = np.full(images, 1 / images), max(1, _DRAWN // images)
    parts = []
    for start in range(0, RESAMPLES, size):
        drawn = rng.multinomial(images, even, size=min(size, RESAMPLES - start)).astype(float)
        parts.append((drawn @ tally.correct, drawn @ tally.questions))
    correct, count = (np.concatenate(each) for each in zip(*parts, strict=True))
    return _accuracies(correct, count, tally.cells)


def _accuracies(correct: np.ndarray, count: np.ndarray, cells: Sequence[tuple[str, str, bool]]) -> dict[Subtask, np.ndarray]:
    """Accuracy in per cent of every sub-task that has cells, of numbers of shape ``(N, cells)``; NaN without a question."""
    found = {}
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        accuracy = 100.0 * correct / count
        for subtask in Subtask:
            datasets = sorted({dataset for name, dataset, _ in cells if name == subtask.value})
            if datasets:
                kinds = [[i for i, cell in enumerate(cells) if cell[:2] == (subtask.value, d)] for d in datasets]
                found[subtask] = np.nanmean([np.nanmean(accuracy[:, k], axis=1) for k in kinds], axis=0)
    return found


def _cell(p: Prediction) -> tuple[str, str, bool]:
    """Cell of the table a prediction counts in; Anomaly Detection has one for normal and one for abnormal images."""
    return p.subtask.value, p.dataset, p.is_anomalous if p.subtask is Subtask.DETECTION else False
