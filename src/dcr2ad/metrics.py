"""Predictions -> numbers; pure.

Reads `Prediction` records; returns accuracies, rates and intervals in per cent. Unanswered questions stay in every denominator
and count as wrong. Knows nothing about files, models or drawing.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

from dcr2ad.types import Interval, Prediction, Subtask

RESAMPLES = 1000
_BLOCK = 100
"""Resamples computed at a time."""


def subtask_accuracy(predictions: Sequence[Prediction], subtask: Subtask) -> float | None:
    """Accuracy of one sub-task in per cent, plain mean over data sets; None without a question.

    Anomaly Detection is the mean of the accuracies on normal and on abnormal images, as in MMAD; with one kind alone, that
    kind's accuracy.
    """
    found = _estimates([p for p in predictions if p.subtask == subtask], None)
    return float(found[subtask][0]) if subtask in found else None


def average(predictions: Sequence[Prediction]) -> float | None:
    """Plain mean of the sub-tasks that have questions, in per cent (the paper's "Average")."""
    found = _estimates(predictions, None)
    return float(np.mean([values[0] for values in found.values()])) if found else None


def detection_rates(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Overkill, Miss, Precision, Recall and F1 of Anomaly Detection in per cent, abnormal being positive.

    Overkill is the share of normal images called abnormal, Miss the share of abnormal images not found; an unanswered question
    counts against its image. Rates without an image of their kind are left out.
    """
    asked = [p for p in predictions if p.subtask == Subtask.DETECTION]
    hits = sum(p.is_correct for p in asked if p.is_anomalous)
    misses = sum(not p.is_correct for p in asked if p.is_anomalous)
    alarms = sum(not p.is_correct for p in asked if not p.is_anomalous)
    passed = sum(p.is_correct for p in asked if not p.is_anomalous)
    rates: dict[str, float] = {}
    if alarms + passed:
        rates["Overkill"] = 100.0 * alarms / (alarms + passed)
    if hits + misses:
        rates["Miss"] = 100.0 * misses / (hits + misses)
        rates["Recall"] = 100.0 * hits / (hits + misses)
        rates["Precision"] = 100.0 * hits / (hits + alarms) if hits + alarms else 0.0
        rates["F1"] = 100.0 * 2 * hits / (2 * hits + misses + alarms)
    return rates


def intervals(predictions: Sequence[Prediction], *, seed: int = 0) -> dict[Subtask | None, Interval]:
    """Accuracy of every sub-task present, and their average under None, each with a bootstrap interval.

    Images are resampled with all their questions, `RESAMPLES` times (percentile interval).
    """
    if not predictions:
        return {}
    return _spans(_estimates(predictions, None), _estimates(predictions, _draws(predictions, seed)), predictions)


def paired_differences(
    first: Sequence[Prediction], second: Sequence[Prediction], *, seed: int = 0
) -> dict[Subtask | None, Interval]:
    """Second minus first, a sub-task and on average (under None), in per cent; both are resampled by the same images.

    Args:
        first: predictions.
        second: predictions of the same questions in the same order.
        seed: seed of the bootstrap.
    """
    drawn = _draws(first, seed)
    sets = [(_estimates(rows, None), _estimates(rows, drawn)) for rows in (first, second)]
    points = {subtask: sets[1][0][subtask] - sets[0][0][subtask] for subtask in sets[0][0]}
    draws = {subtask: sets[1][1][subtask] - sets[0][1][subtask] for subtask in sets[0][1]}
    return _spans(points, draws, first)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int, float]:
    """Pairs only the first has right, pairs only the second has, and the exact two-sided p-value (binomial, 1/2)."""
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    n = only_first + only_second
    tail = sum(math.comb(n, i) for i in range(min(only_first, only_second) + 1))
    return only_first, only_second, min(1.0, float(Fraction(2 * tail, 2**n)))


def _draws(predictions: Sequence[Prediction], seed: int) -> np.ndarray:
    """How often each image counts in each resample; drawn and kept small, since a benchmark has thousands of images."""
    clusters = len({p.image for p in predictions})
    rng, even = np.random.default_rng(seed), np.full(clusters, 1 / clusters)
    blocks = (rng.multinomial(clusters, even, size=size).astype(np.uint16) for size in [_BLOCK] * (RESAMPLES // _BLOCK))
    return np.concatenate(list(blocks))


def _spans(
    points: dict[Subtask, np.ndarray], draws: dict[Subtask, np.ndarray], predictions: Sequence[Prediction]
) -> dict[Subtask | None, Interval]:
    """Points with the percentile intervals of their draws, and the mean over sub-tasks under None."""
    rows: dict[Subtask | None, tuple[np.ndarray, np.ndarray]] = {s: (points[s], draws[s]) for s in points}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        rows[None] = (np.mean(list(points.values()), axis=0), np.nanmean(list(draws.values()), axis=0))
    counts = Counter(p.subtask for p in predictions)
    found = {}
    for subtask, (value, drawn_values) in rows.items():
        low, high = np.nanquantile(drawn_values, [0.025, 0.975])
        n = len(predictions) if subtask is None else counts[subtask]
        found[subtask] = Interval(value=float(value[0]), low=float(low), high=float(high), n=n)
    return found


def object_table(predictions: Sequence[Prediction]) -> dict[str, dict[str, float]]:
    """Accuracy in per cent for each object (``dataset/object``) and sub-task."""
    return group_table(predictions, lambda p: f"{p.dataset}/{p.object}")


def group_table(predictions: Sequence[Prediction], key: Callable[[Prediction], str]) -> dict[str, dict[str, float]]:
    """Accuracy in per cent for each group of predictions and each sub-task it has, groups in order of name."""
    groups: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        groups[key(prediction)].append(prediction)
    return {
        name: {subtask.value: float(found[0]) for subtask, found in _estimates(groups[name], None).items()}
        for name in sorted(groups)
    }


def routing_accuracy(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Top-1, top-3 and mean reciprocal rank of the right key in per cent, an image counted once; empty if none was routed."""
    by_image = {p.image: p for p in predictions if p.routed and p.right_key is not None}
    if not by_image:
        return {}
    ranks = [[entry.key for entry in p.routed].index(p.right_key) + 1 if p.right_key in {e.key for e in p.routed} else None
             for p in by_image.values()]  # fmt: skip
    return {
        "top1": 100.0 * float(np.mean([rank == 1 for rank in ranks])),
        "top3": 100.0 * float(np.mean([rank is not None and rank <= 3 for rank in ranks])),
        "mrr": 100.0 * float(np.mean([1.0 / rank if rank is not None else 0.0 for rank in ranks])),
        "n": float(len(ranks)),
    }


def calibration_error(predictions: Sequence[Prediction], bins: int = 10) -> float | None:
    """Expected calibration error of the most probable option, in per cent; None where nothing has probabilities."""
    rows = [(max(p.probabilities), p.is_correct) for p in predictions if p.probabilities]
    if not rows:
        return None
    confidence = np.array([row[0] for row in rows])
    correct = np.array([row[1] for row in rows], dtype=float)
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        (which == b).mean() * abs(correct[which == b].mean() - confidence[which == b].mean())
        for b in range(bins)
        if (which == b).any()
    ]
    return 100.0 * float(sum(gaps))


def _estimates(predictions: Sequence[Prediction], weights: np.ndarray | None) -> dict[Subtask, np.ndarray]:
    """Accuracy in per cent of every sub-task present, under weights of the images.

    Args:
        predictions: the predictions.
        weights: how often each image counts, shape ``(draws, images)``, images in order of first occurrence; None: each once.

    Returns:
        for each sub-task an array of shape ``(draws,)``; NaN where a draw holds none of its questions.
    """
    images = {image: i for i, image in enumerate(dict.fromkeys(p.image for p in predictions))}
    cells = sorted({_cell(p) for p in predictions})
    column = {cell: i for i, cell in enumerate(cells)}
    correct, count = np.zeros((len(images), len(cells))), np.zeros((len(images), len(cells)))
    for p in predictions:
        place = images[p.image], column[_cell(p)]
        correct[place] += p.is_correct
        count[place] += 1
    drawn = np.ones((1, len(images))) if weights is None else weights
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        blocks = (drawn[start : start + _BLOCK].astype(float) for start in range(0, len(drawn), _BLOCK))
        accuracy = np.concatenate([100.0 * (block @ correct) / (block @ count) for block in blocks])
        found = {}
        for subtask in Subtask:
            datasets = sorted({dataset for name, dataset, _ in cells if name == subtask.value})
            if datasets:
                kinds = [[column[c] for c in cells if c[:2] == (subtask.value, d)] for d in datasets]
                found[subtask] = np.nanmean([np.nanmean(accuracy[:, k], axis=1) for k in kinds], axis=0)
    return found


def _cell(p: Prediction) -> tuple[str, str, bool]:
    """Cell of the table a prediction counts in; Anomaly Detection has one for normal and one for abnormal images."""
    return p.subtask.value, p.dataset, p.is_anomalous if p.subtask is Subtask.DETECTION else False
