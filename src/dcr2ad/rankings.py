"""Rankings of knowledge -> numbers; pure. Not in the paper.

Reads probabilities of entries and which entry is right; returns ranks, calibration errors, a fitted temperature and a fitted
threshold. A right entry that is not in a ranking counts as not found. Knows nothing about models, files or drawing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from dcr2ad.models.base import softmax
from dcr2ad.types import Interval

RESAMPLES = 1000
_GRID = np.geomspace(0.05, 20.0, 121)
"""Temperatures tried, each 5 % above the one before."""
FEWEST = 5
"""Right and wrong selections a threshold needs each; with fewer the router never abstains."""

Probabilities = Mapping[str, float]


def at_temperature(probabilities: Probabilities, temperature: float) -> dict[str, float]:
    """Probabilities to the power 1/temperature, renormalised."""
    if temperature == 1.0:
        return dict(probabilities)
    logs = [math.log(max(value, 1e-30)) for value in probabilities.values()]
    return dict(zip(probabilities, softmax(logs, temperature), strict=True))


def rank_of(right: str, probabilities: Probabilities) -> int | None:
    """Rank of the right entry, 1 the best; among equals the mean place, rounded up; None where it is not ranked."""
    if right not in probabilities:
        return None
    better = sum(p > probabilities[right] for p in probabilities.values())
    equal = sum(p == probabilities[right] for p in probabilities.values())
    return better + math.ceil((equal + 1) / 2)


def hits(ranks: Sequence[int | None], within: int) -> list[float]:
    """1 for each rank up to `within`, else 0."""
    return [float(rank is not None and rank <= within) for rank in ranks]


def reciprocal(ranks: Sequence[int | None]) -> list[float]:
    """One over each rank; 0 where there is none."""
    return [0.0 if rank is None else 1.0 / rank for rank in ranks]


def chance(candidates: int) -> tuple[float, float, float]:
    """Top-1, top-3 and mean reciprocal rank of a random order of some candidates that hold the right one, in per cent."""
    return (
        100.0 / candidates,
        100.0 * min(3, candidates) / candidates,
        100.0 * sum(1 / r for r in range(1, candidates + 1)) / candidates,
    )


def interval(values: Sequence[float], groups: Sequence[str], *, seed: int = 0) -> Interval:
    """Mean in per cent with a bootstrap interval over groups (a photograph, or the photographs of one physical part)."""
    index = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    sums, counts = np.zeros(len(index)), np.zeros(len(index))
    for value, group in zip(values, groups, strict=True):
        sums[index[group]] += value
        counts[index[group]] += 1
    drawn = np.random.default_rng(seed).multinomial(len(index), np.full(len(index), 1 / len(index)), size=RESAMPLES)
    low, high = np.quantile(100.0 * (drawn @ sums) / (drawn @ counts), [0.025, 0.975])
    return Interval(value=100.0 * float(np.mean(values)), low=float(low), high=float(high), n=len(values))


def calibration_error(confidence: Sequence[float], correct: Sequence[bool], bins: int = 10) -> float:
    """Expected calibration error in per cent, `bins` equal bins."""
    sure, right = np.array(confidence), np.array(correct, dtype=float)
    which = np.minimum((sure * bins).astype(int), bins - 1)
    parts = [(which == b, (which == b).mean()) for b in range(bins) if (which == b).any()]
    return 100.0 * float(sum(share * abs(right[inside].mean() - sure[inside].mean()) for inside, share in parts))


def likelihood(rows: Sequence[tuple[str, Probabilities]], temperature: float) -> float:
    """Mean negative log-likelihood of the right entries, nats; rows whose right entry is not ranked are left out."""
    known = [(right, p) for right, p in rows if right in p]
    return float(np.mean([-math.log(max(at_temperature(p, temperature)[right], 1e-30)) for right, p in known]))


def fit_temperature(rows: Sequence[tuple[str, Probabilities]]) -> float:
    """The temperature, of a fixed grid from 0.05 to 20, under which the right entries are most likely; 1 without rows.

    Args:
        rows: the right entry and the probabilities at temperature 1 of each photograph.
    """
    logs = [
        (np.log(np.maximum(list(p.values()), 1e-30)), list(p).index(right)) for right, p in rows if right in p and len(p) > 1
    ]
    if not logs:
        return 1.0
    losses = []
    for temperature in _GRID:
        scaled = [(values / temperature, place) for values, place in logs]
        losses.append(np.mean([np.logaddexp.reduce(values) - values[place] for values, place in scaled]))
    return float(_GRID[int(np.argmin(losses))])


def fit_threshold(confidence: Sequence[float], correct: Sequence[bool]) -> float:
    """The threshold that best tells right from wrong selections (largest Youden's J); 0 with fewer than `FEWEST` of either."""
    sure, right = np.array(confidence), np.array(correct, dtype=bool)
    if right.sum() < FEWEST or (~right).sum() < FEWEST:
        return 0.0
    levels = np.unique(sure)
    gain = [(sure[right] >= level).mean() - (sure[~right] >= level).mean() for level in levels]
    return float(levels[int(np.argmax(gain))]) if max(gain) > 0 else 0.0


def place_bias(by_place: Sequence[Sequence[float]]) -> float:
    """How far the places of a list are from sharing alike: total variation from even of their mean shares, in per cent."""
    mean = np.mean(np.array(by_place), axis=0)
    return 50.0 * float(np.abs(mean / mean.sum() - 1 / len(mean)).sum())
