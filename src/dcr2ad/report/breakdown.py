"""Predictions of an evaluation in the breakdowns a report shows: data sets, seen and unseen objects, routing, calibration.

Reads `Prediction` records; returns plain numbers in per cent, None where nothing was measured. Pure: no files, no figures. The
paper reports sub-tasks only (Tables 1 to 4); the rest is not in the paper.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from dcr2ad import metrics
from dcr2ad.types import Interval, Prediction, Subtask

BINS = 10
"""Bins of confidence in a reliability diagram."""
KEYS_SHOWN = 14
"""Right entries shown in the routing table, the most frequent first."""


@dataclass(frozen=True)
class Share:
    """Figures over a part of the questions, for example those on unseen objects."""

    name: str
    objects: tuple[str, ...]
    questions: int
    average: Interval | None
    overkill: float | None
    miss: float | None
    subtasks: tuple[float | None, ...] = ()
    """Accuracy of each sub-task in the order of `Subtask`."""
    seeds: tuple[float, ...] = ()
    """Average of each seed, where several are taken together."""


@dataclass(frozen=True)
class Bin:
    """Answers of like confidence: mean confidence and accuracy as shares, and their number."""

    confidence: float
    accuracy: float
    n: int


@dataclass(frozen=True)
class Routed:
    """Where images of one right entry were routed."""

    right: str
    images: int
    hits: int
    taken_for: tuple[tuple[str, int], ...]


def by_dataset(predictions: Sequence[Prediction]) -> dict[str, tuple[float | None, ...]]:
    """Accuracy of every data set in the order of `Subtask`."""
    names = sorted({p.dataset for p in predictions})
    of = {name: [p for p in predictions if p.dataset == name] for name in names}
    return {name: tuple(metrics.subtask_accuracy(rows, subtask) for subtask in Subtask) for name, rows in of.items()}


def shares(predictions: Sequence[Prediction], seen: Collection[str]) -> tuple[Share, ...]:
    """Figures over the parts that `parts` makes."""
    return tuple(_share(name, rows) for name, rows in parts(predictions, seen).items())


def parts(predictions: Sequence[Prediction], seen: Collection[str]) -> dict[str, list[Prediction]]:
    """All questions, then those on what was trained on, then the others; a part without questions is left out.

    Args:
        predictions: the predictions.
        seen: names of objects, of data sets, or ``dataset/object``; where it is empty nothing is told apart.
    """
    known = [not {p.object, p.dataset, f"{p.dataset}/{p.object}"}.isdisjoint(seen) for p in predictions]
    found = {"all": list(predictions)}
    if seen:
        found |= {"seen": [p for p, k in zip(predictions, known, strict=True) if k]}
        found |= {"unseen": [p for p, k in zip(predictions, known, strict=True) if not k]}
    return {name: rows for name, rows in found.items() if rows}


def reliability(predictions: Sequence[Prediction]) -> tuple[Bin, ...]:
    """Answers by the probability of the option given, in `BINS` bins of equal width; empty bins are left out."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for p in predictions:
        if p.status == "answered" and p.probabilities and p.answer is not None:
            confidence = p.probabilities[p.answer]
            bins.setdefault(min(int(confidence * BINS), BINS - 1), []).append((confidence, p.is_correct))
    return tuple(
        Bin(sum(c for c, _ in rows) / len(rows), sum(right for _, right in rows) / len(rows), len(rows))
        for _, rows in sorted(bins.items())
    )


def routing_confusion(predictions: Sequence[Prediction]) -> tuple[Routed, ...]:
    """For each right entry what it was taken for, an image counted once; the most frequent entries first."""
    images = {p.image: p for p in predictions if p.routed and p.right_key}
    taken: dict[str, Counter[str]] = {}
    for p in images.values():
        taken.setdefault(str(p.right_key), Counter())[p.routed[0].key] += 1
    order = sorted(taken, key=lambda key: (-taken[key].total(), key))
    return tuple(
        Routed(
            key,
            taken[key].total(),
            taken[key][key],
            tuple((other, n) for other, n in taken[key].most_common() if other != key)[:3],
        )
        for key in order[:KEYS_SHOWN]
    )


def _share(name: str, rows: Sequence[Prediction]) -> Share:
    rates = metrics.detection_rates(rows)
    return Share(
        name=name,
        objects=tuple(sorted({p.object for p in rows})),
        questions=len(rows),
        average=metrics.intervals(rows).get(None),
        overkill=rates.get("Overkill"),
        miss=rates.get("Miss"),
        subtasks=tuple(metrics.subtask_accuracy(rows, subtask) for subtask in Subtask),
    )
