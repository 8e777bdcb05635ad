"""Rankings of photographs -> the router's figures; pure. Not in the paper.

Reads `RoutedPhotograph`s of one way to rank; returns `RoutingFigures`, and the temperature and threshold fitted to them. Knows
nothing about models, files or drawing.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from dcr2ad import rankings
from dcr2ad.artifacts import digest_json
from dcr2ad.types import Interval, Record, RouteMode, RoutingCalibration


class RoutedPhotograph(Record):
    """The ranking of one photograph in one mode."""

    image: str
    """Its path."""
    group: str
    """Physical part or place, or the image itself: what the intervals resample."""
    mode: str
    """Route mode."""
    right_key: str
    """The entry that its label leads to."""
    probabilities: dict[str, float]
    """Of every entry ranked, at temperature 1."""
    by_place: tuple[float, ...] = ()
    """Mean probability of each place of the list, over every order."""
    steady: bool = True
    """Whether all orders had the same best entry."""
    seconds: float = 0.0
    """Time of the routing."""


class RoutingFigures(Record):
    """What was measured of one way to rank; shares in per cent."""

    top1: Interval
    """Right entry first."""
    top3: Interval
    """Right entry among the first three."""
    mrr: Interval
    """Mean reciprocal rank."""
    ranked: float
    """Photographs whose right entry was among the candidates at all."""
    candidates: float
    """Entries ranked, mean."""
    chance: tuple[float, float, float]
    """Top-1, top-3 and reciprocal rank of a random order of the same candidates."""
    error_raw: float | None = None
    """Expected calibration error of the best entry at temperature 1."""
    error: float | None = None
    """The same with temperatures fitted on the other half of the photographs (two halves by part)."""
    temperature: float | None = None
    """Temperature fitted on all photographs."""
    threshold: float | None = None
    """Threshold fitted on all photographs: below it the router would abstain."""
    kept: float | None = None
    """Photographs it would not abstain on, with temperature and threshold of the other half."""
    top1_kept: float | None = None
    """Right entry first among those."""
    place_bias: float | None = None
    """Total variation from even of the places of a list, over all orders; 0: the order does not matter."""
    steady: float | None = None
    """Photographs whose best entry is the same in every order."""
    seconds: float | None = None
    """Time a photograph, every order of a list included."""


class RoutingReport(Record):
    """The figures of one routing evaluation."""

    model: dict[str, str]
    """Name, digest, backend and versions."""
    knowledge: str
    """Digest of the base."""
    entries: int
    """Its entries."""
    photographs: int
    """Photographs with a known right entry."""
    left_out: int
    """Photographs whose label leads to no entry of the base."""
    ways: dict[str, RoutingFigures]
    """Figures by route mode, and of the two rankings without a model."""
    calibration: dict[RouteMode, RoutingCalibration] = Field(default_factory=dict)
    """What `--calibrate` stores with the model."""


def calibrate(rows: Sequence[RoutedPhotograph], questions: str, knowledge: str) -> RoutingCalibration:
    """Temperature and threshold fitted on photographs of one mode."""
    temperature, threshold = _fit(rows)
    known = [(row.right_key, row.probabilities) for row in rows if row.right_key in row.probabilities]
    both = (rankings.likelihood(known, 1.0), rankings.likelihood(known, temperature)) if known else (0.0, 0.0)
    return RoutingCalibration(
        temperature=temperature,
        threshold=threshold,
        photographs=len(rows),
        ranked=len(known),
        nll=both,
        questions=questions,
        knowledge=knowledge,
    )


def best(probabilities: dict[str, float]) -> str:
    """Key of the entry ranked first; among equals the last by name."""
    return max(probabilities, key=lambda key: (probabilities[key], key))


def _sure(rows: Sequence[RoutedPhotograph], temperature: float) -> tuple[list[float], list[bool]]:
    """Probability of the best entry of each photograph, and whether it is right."""
    scaled = [rankings.at_temperature(row.probabilities, temperature) for row in rows]
    return [max(p.values()) for p in scaled], [best(p) == row.right_key for p, row in zip(scaled, rows, strict=True)]


def _fit(rows: Sequence[RoutedPhotograph]) -> tuple[float, float]:
    temperature = rankings.fit_temperature([(row.right_key, row.probabilities) for row in rows])
    return temperature, rankings.fit_threshold(*_sure(rows, temperature))


def figures(rows: Sequence[RoutedPhotograph], by_model: bool) -> RoutingFigures:
    """What is printed of one way to rank.

    Args:
        rows: one photograph each.
        by_model: whether a model ranked, so that calibration and places of a list mean something.
    """
    ranks = [rankings.rank_of(row.right_key, row.probabilities) for row in rows]
    groups = [row.group for row in rows]
    sizes = [len(row.probabilities) for row in rows]
    guesses = [rankings.chance(n) if r is not None else (0.0, 0.0, 0.0) for n, r in zip(sizes, ranks, strict=True)]
    found = RoutingFigures(
        top1=rankings.interval(rankings.hits(ranks, 1), groups),
        top3=rankings.interval(rankings.hits(ranks, 3), groups),
        mrr=rankings.interval(rankings.reciprocal(ranks), groups),
        ranked=100.0 * sum(rank is not None for rank in ranks) / len(rows),
        candidates=sum(sizes) / len(rows),
        chance=(_mean([g[0] for g in guesses]), _mean([g[1] for g in guesses]), _mean([g[2] for g in guesses])),
    )
    if not by_model:
        return found
    sure, right, kept = _crossed(rows)
    temperature, threshold = _fit(rows)
    places = [row.by_place for row in rows if row.by_place]
    even = [place for place in places if len(place) == len(places[0])]
    return found.model_copy(
        update={
            "error_raw": rankings.calibration_error(*_sure(rows, 1.0)),
            "error": rankings.calibration_error(sure, right) if sure else None,
            "temperature": temperature,
            "threshold": threshold,
            "kept": 100.0 * _mean([float(k) for k in kept]) if kept else None,
            "top1_kept": 100.0 * _mean([float(r) for r, k in zip(right, kept, strict=True) if k]) if any(kept) else None,
            "place_bias": rankings.place_bias(even) if even else None,
            "steady": 100.0 * _mean([float(row.steady) for row in rows]) if even else None,
            "seconds": _mean([row.seconds for row in rows]),
        }
    )


def _crossed(rows: Sequence[RoutedPhotograph]) -> tuple[list[float], list[bool], list[bool]]:
    """Confidence, correctness and whether kept, each photograph under what was fitted on the other half; by parts."""
    order = {group: i % 2 for i, group in enumerate(sorted({row.group for row in rows}, key=digest_json))}
    sure: list[float] = []
    right: list[bool] = []
    kept: list[bool] = []
    for half in (0, 1):
        mine = [row for row in rows if order[row.group] == half]
        other = [row for row in rows if order[row.group] != half]
        if mine and other:
            temperature, threshold = _fit(other)
            one, two = _sure(mine, temperature)
            sure, right, kept = [*sure, *one], [*right, *two], [*kept, *(p >= threshold for p in one)]
    return sure, right, kept


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
