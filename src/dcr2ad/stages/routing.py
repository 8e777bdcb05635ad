"""Does the router find the right knowledge? Questions in, a folder of figures out. Not in the paper.

Reads a benchmark, a model and a knowledge base; ranks the base for each photograph in each mode; writes ``rankings.jsonl``
(continued after a stop), ``routing.json``, ``routing.csv`` and a confusion picture a mode. Compared with chance, with always
naming the most frequent entry, and with text search from the expert's description. Fits temperature and threshold.
"""

from __future__ import annotations

import csv
import io
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from dcr2ad import rankings
from dcr2ad.artifacts import RecordWriter, StageFolder, digest_json, read_records, versions, write_bytes, write_text
from dcr2ad.errors import InputError
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.base import ChatModel
from dcr2ad.report.figures import confusion_picture
from dcr2ad.routing import LISTED, route_sample, search_words
from dcr2ad.types import Interval, Question, Record, RouteMode, RoutingCalibration, Sample

MODES: tuple[RouteMode, ...] = ("recall", "listed", "hybrid")
SEARCH, FREQUENT = "text search", "most frequent"
_SHOWN = 14
"""Routed entries that get a column of their own in a confusion picture."""


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


def evaluate_routing(
    model: ChatModel,
    questions: Sequence[Question],
    knowledge_base: KnowledgeBase,
    out: Path,
    *,
    modes: Sequence[RouteMode] = MODES,
    expert: bool = True,
    shots: int = 1,
    orders: int = LISTED,
    fresh: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> RoutingReport:
    """Rank the base for every photograph of a benchmark, and measure.

    Args:
        model: the model.
        questions: the benchmark; only its photographs and labels are used.
        knowledge_base: K.
        out: folder to write to.
        modes: route modes.
        expert: whether the expert's findings are in the prompts.
        shots: references shown.
        orders: orders of a list that are averaged over; position bias is measured over them.
        fresh: throw earlier rankings away.
        progress: called with rankings done and rankings in all.

    Raises:
        InputError: no photograph has a known right entry.
        RunError: `out` holds rankings of another model, benchmark or base.
        CannotScoreError: the model gives no probabilities.
    """
    every = list({question.sample.image: question.sample for question in questions}.values())
    samples = [sample for sample in every if sample.right_key in knowledge_base]
    if not samples:
        raise InputError("no photograph has a label that leads to a knowledge entry", "Build the benchmark on this base")
    digest = digest_json([sample.model_dump(mode="json") for sample in samples])
    config: dict[str, Any] = {"model": model.info.digest, "knowledge": knowledge_base.digest, "modes": list(modes)}
    config |= {"expert": expert, "shots": shots, "orders": orders}
    with StageFolder(out, stage="routing", config=config, inputs={"samples": digest}, fresh=fresh) as folder:
        file = out / "rankings.jsonl"
        with RecordWriter(file) as writer:
            seen = {(row.image, row.mode) for row in read_records(file, RoutedPhotograph)}
            jobs = [(sample, mode) for sample in samples for mode in modes]
            for number, (sample, mode) in enumerate(jobs, 1):
                if (sample.image, mode) not in seen:
                    writer.write(_ranked(model, sample, knowledge_base, mode, expert, shots, orders))
                if progress:
                    progress(number, len(jobs))
        rows = [*read_records(file, RoutedPhotograph), *_without_model(samples, knowledge_base)]
        by_way = {way: [row for row in rows if row.mode == way] for way in (*modes, SEARCH, FREQUENT)}
        report = RoutingReport(
            model={"name": model.info.name, "digest": model.info.digest, "backend": model.info.backend, **versions()},
            knowledge=knowledge_base.digest,
            entries=len(knowledge_base),
            photographs=len(samples),
            left_out=len(every) - len(samples),
            ways={way: _figures(found, way in modes) for way, found in by_way.items()},
            calibration={mode: calibrate(by_way[mode], digest, knowledge_base.digest) for mode in modes},
        )
        write_text(out / "routing.json", report.model_dump_json(indent=2) + "\n")
        write_text(out / "routing.csv", _csv(report))
        for way in (*modes, SEARCH):
            write_bytes(out / f"confusion-{way.replace(' ', '-')}.png", _confusion(way, by_way[way], knowledge_base))
        folder.finish({"photographs": len(samples), "left_out": report.left_out, "rankings": len(jobs)})
    return report


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


def _ranked(
    model: ChatModel, sample: Sample, base: KnowledgeBase, mode: RouteMode, expert: bool, shots: int, orders: int
) -> RoutedPhotograph:
    begun = time.perf_counter()
    found = route_sample(model, sample, base, mode=mode, expert=expert, shots=shots, orders=orders)
    # What is stored with the model is undone, so that a fit never builds on another one.
    raw = rankings.at_temperature({r.key: r.probability for r in found.ranking}, 1 / found.note.temperature)
    return RoutedPhotograph(
        image=sample.image,
        group=sample.item,
        mode=mode,
        right_key=sample.right_key or "",
        probabilities=raw,
        by_place=found.by_place,
        steady=found.steady,
        seconds=time.perf_counter() - begun,
    )


def _without_model(samples: Sequence[Sample], base: KnowledgeBase) -> list[RoutedPhotograph]:
    """Rankings by text search from the expert's description, and by how often an entry is right in this benchmark."""
    often = Counter(sample.right_key for sample in samples)
    rows = []
    for sample in samples:
        scores = dict.fromkeys((entry.key for entry in base), 0.0)
        scores |= {entry.key: score for entry, score in base.search(search_words(sample), len(base))}
        counts = {entry.key: float(often[entry.key]) for entry in base}
        for mode, values in ((SEARCH, scores), (FREQUENT, counts)):
            rows.append(
                RoutedPhotograph(
                    image=sample.image, group=sample.item, mode=mode, right_key=sample.right_key or "", probabilities=values
                )
            )
    return rows


def _best(probabilities: dict[str, float]) -> str:
    return max(probabilities, key=lambda key: (probabilities[key], key))


def _sure(rows: Sequence[RoutedPhotograph], temperature: float) -> tuple[list[float], list[bool]]:
    """Probability of the best entry of each photograph, and whether it is right."""
    scaled = [rankings.at_temperature(row.probabilities, temperature) for row in rows]
    return [max(p.values()) for p in scaled], [_best(p) == row.right_key for p, row in zip(scaled, rows, strict=True)]


def _fit(rows: Sequence[RoutedPhotograph]) -> tuple[float, float]:
    temperature = rankings.fit_temperature([(row.right_key, row.probabilities) for row in rows])
    return temperature, rankings.fit_threshold(*_sure(rows, temperature))


def _figures(rows: Sequence[RoutedPhotograph], by_model: bool) -> RoutingFigures:
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


def _csv(report: RoutingReport) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    single = [name for name in RoutingFigures.model_fields if name not in {"top1", "top3", "mrr", "chance"}]
    heads = [f"{name}{end}" for name in ("top1", "top3", "mrr") for end in ("", "_low", "_high", "_chance")]
    writer.writerow(["way", "photographs", *heads, *single])
    for way, found in report.ways.items():
        cells = [
            f"{value:.2f}"
            for name, guess in zip(("top1", "top3", "mrr"), found.chance, strict=True)
            for value in (getattr(found, name).value, getattr(found, name).low, getattr(found, name).high, guess)
        ]
        rest = ["" if (value := getattr(found, name)) is None else f"{value:.4f}" for name in single]
        writer.writerow([way, found.top1.n, *cells, *rest])
    return buffer.getvalue()


def _confusion(way: str, rows: Sequence[RoutedPhotograph], base: KnowledgeBase) -> bytes:
    """Right entries by the entry ranked first; routed entries beyond the most frequent are one column."""
    pairs = [(row.right_key, _best(row.probabilities)) for row in rows]
    true = sorted({right for right, _ in pairs})
    often = Counter(routed for _, routed in pairs)
    shown = [key for key, _ in often.most_common(_SHOWN)]
    columns = [*(key for key in true if key in shown), *(key for key in shown if key not in true)]
    others = [key for key in often if key not in columns]
    counts = [[sum(p == (right, routed) for p in pairs) for routed in columns] for right in true]
    names = [base.get(key).title for key in columns]
    if others:
        counts = [[*line, sum(r == right and w in others for r, w in pairs)] for line, right in zip(counts, true, strict=True)]
        names.append(f"{len(others)} others")
    hits = [(i, columns.index(key)) for i, key in enumerate(true) if key in columns]
    return confusion_picture(
        f"Routed by {way}: true entry by entry ranked first", [base.get(k).title for k in true], names, counts, hits
    )
