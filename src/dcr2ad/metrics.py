"""Predictions -> numbers; pure.

Reads `Prediction` records; returns accuracies, rates and intervals in per cent. Unanswered questions stay in every denominator
and count as wrong. Knows nothing about files, models or drawing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from dcr2ad.types import Interval, Prediction, Subtask

RESAMPLES = 1000


def subtask_accuracy(predictions: Sequence[Prediction], subtask: Subtask) -> float | None:
    """Accuracy of one sub-task in per cent, plain mean over data sets; None without a question.

    Anomaly Detection is the mean of the accuracies on normal and on abnormal images, as in MMAD; with one kind alone, that
    kind's accuracy.
    """
    by_dataset: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        if prediction.subtask == subtask:
            by_dataset[prediction.dataset].append(prediction)
    if not by_dataset:
        return None
    return float(np.mean([_cell(group, subtask) for group in by_dataset.values()]))


def average(predictions: Sequence[Prediction]) -> float | None:
    """Plain mean of the sub-tasks that have questions, in per cent (the paper's "Average")."""
    found = [value for subtask in Subtask if (value := subtask_accuracy(predictions, subtask)) is not None]
    return float(np.mean(found)) if found else None


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


def interval(predictions: Sequence[Prediction], subtask: Subtask | None, *, seed: int = 0) -> Interval | None:
    """Accuracy of a sub-task, or the average (None), with a bootstrap interval clustered by image.

    Images are resampled with their questions, `RESAMPLES` times. None without a question.
    """
    measure = average if subtask is None else (lambda rows: subtask_accuracy(rows, subtask))
    chosen = [p for p in predictions if subtask is None or p.subtask == subtask]
    value = measure(chosen)
    if value is None:
        return None
    clusters: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in chosen:
        clusters[prediction.image].append(prediction)
    groups = list(clusters.values())
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(RESAMPLES):
        picked = rng.integers(len(groups), size=len(groups))
        resampled = measure([p for i in picked for p in groups[i]])
        if resampled is not None:
            draws.append(resampled)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(value=value, low=float(low), high=float(high), n=len(chosen))


def object_table(predictions: Sequence[Prediction]) -> dict[str, dict[str, float]]:
    """Accuracy in per cent for each object (``dataset/object``) and sub-task."""
    table: dict[str, dict[str, float]] = {}
    for name in sorted({f"{p.dataset}/{p.object}" for p in predictions}):
        rows = [p for p in predictions if f"{p.dataset}/{p.object}" == name]
        table[name] = {subtask.value: value for subtask in Subtask if (value := subtask_accuracy(rows, subtask)) is not None}
    return table


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


def _cell(group: Sequence[Prediction], subtask: Subtask) -> float:
    if subtask is not Subtask.DETECTION:
        return 100.0 * float(np.mean([p.is_correct for p in group]))
    kinds = [[p.is_correct for p in group if p.is_anomalous is kind] for kind in (False, True)]
    return 100.0 * float(np.mean([np.mean(kind) for kind in kinds if kind]))
