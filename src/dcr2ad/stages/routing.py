"""Does the router find the right knowledge? Questions in, a folder of figures out. Not in the paper.

Reads a benchmark, a model and a knowledge base; ranks the base for each photograph in each mode; writes ``rankings.jsonl``
(continued after a stop), ``routing.json``, ``routing.csv`` and a confusion picture a mode. Compared with chance, with always
naming the most frequent entry, and with text search from the expert's description. Fits temperature and threshold.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dcr2ad import rankings
from dcr2ad.artifacts import (
    RecordWriter,
    StageFolder,
    csv_text,
    digest_json,
    digest_records,
    read_records,
    versions,
    write_bytes,
    write_text,
)
from dcr2ad.errors import InputError
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.base import ChatModel
from dcr2ad.prompts import DEFAULT_WORDING, Wording
from dcr2ad.report.figures import confusion_picture
from dcr2ad.routing import LISTED, route_sample, search_words
from dcr2ad.stages.routing_figures import RoutedPhotograph, RoutingFigures, RoutingReport, best, calibrate, figures
from dcr2ad.types import Question, RouteMode, Sample

MODES: tuple[RouteMode, ...] = ("recall", "listed", "hybrid")
SEARCH, FREQUENT = "text search", "most frequent"
_SHOWN = 14
"""Routed entries that get a column of their own in a confusion picture."""


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
    whole_base: bool = False,
    wording: Wording = DEFAULT_WORDING,
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
        whole_base: whether entries that the object cannot have are ranked too, by recall, hybrid and text search.
        wording: the fixed texts of the prompts.
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
    digest = digest_records(samples)
    config: dict[str, Any] = {"model": model.info.digest, "knowledge": knowledge_base.digest, "modes": list(modes)}
    config |= {"expert": expert, "shots": shots, "orders": orders, "whole_base": whole_base}
    if wording != DEFAULT_WORDING:
        config["wording"] = digest_json(wording.model_dump())

    def ranked(sample: Sample, mode: RouteMode) -> RoutedPhotograph:
        how = {"expert": expert, "shots": shots, "orders": orders, "whole_base": whole_base, "wording": wording}
        return _ranked(model, sample, knowledge_base, mode, **how)

    with StageFolder(out, stage="routing", config=config, inputs={"samples": digest}, fresh=fresh) as folder:
        file = out / "rankings.jsonl"
        with RecordWriter(file) as writer:
            seen = {(row.image, row.mode) for row in read_records(file, RoutedPhotograph)}
            jobs = [(sample, mode) for sample in samples for mode in modes]
            for number, (sample, mode) in enumerate(jobs, 1):
                if (sample.image, mode) not in seen:
                    writer.write(ranked(sample, mode))
                if progress:
                    progress(number, len(jobs))
        rows = [*read_records(file, RoutedPhotograph), *_without_model(samples, knowledge_base, whole_base)]
        by_way = {way: [row for row in rows if row.mode == way] for way in (*modes, SEARCH, FREQUENT)}
        report = RoutingReport(
            model={"name": model.info.name, "digest": model.info.digest, "backend": model.info.backend, **versions()},
            knowledge=knowledge_base.digest,
            entries=len(knowledge_base),
            photographs=len(samples),
            left_out=len(every) - len(samples),
            ways={way: figures(found, way in modes) for way, found in by_way.items()},
            calibration={mode: calibrate(by_way[mode], digest, knowledge_base.digest) for mode in modes},
        )
        write_text(out / "routing.json", report.model_dump_json(indent=2) + "\n")
        write_text(out / "routing.csv", _csv(report))
        for way in (*modes, SEARCH):
            write_bytes(out / f"confusion-{way.replace(' ', '-')}.png", _confusion(way, by_way[way], knowledge_base))
        folder.finish({"photographs": len(samples), "left_out": report.left_out, "rankings": len(jobs)})
    return report


def _ranked(model: ChatModel, sample: Sample, base: KnowledgeBase, mode: RouteMode, **how: Any) -> RoutedPhotograph:
    begun = time.perf_counter()
    found = route_sample(model, sample, base, mode=mode, **how)
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


def _without_model(samples: Sequence[Sample], base: KnowledgeBase, whole_base: bool) -> list[RoutedPhotograph]:
    """Rankings by text search from the expert's description, and by how often an entry is right in this benchmark."""
    often = Counter(sample.right_key for sample in samples)
    rows = []
    for sample in samples:
        keys = [entry.key for entry in (base if whole_base else base.applicable(sample.object, sample.dataset))]
        found = {entry.key: score for entry, score in base.search(search_words(sample), len(base))}
        scores = {key: found.get(key, 0.0) for key in keys}
        counts = {key: float(often[key]) for key in keys}
        for mode, values in ((SEARCH, scores), (FREQUENT, counts)):
            rows.append(
                RoutedPhotograph(
                    image=sample.image, group=sample.item, mode=mode, right_key=sample.right_key or "", probabilities=values
                )
            )
    return rows


def _csv(report: RoutingReport) -> str:
    single = [name for name in RoutingFigures.model_fields if name not in {"top1", "top3", "mrr", "chance"}]
    heads = [f"{name}{end}" for name in ("top1", "top3", "mrr") for end in ("", "_low", "_high", "_chance")]
    lines: list[list[object]] = [["way", "photographs", *heads, *single]]
    for way, found in report.ways.items():
        cells = [
            f"{value:.2f}"
            for name, guess in zip(("top1", "top3", "mrr"), found.chance, strict=True)
            for value in (getattr(found, name).value, getattr(found, name).low, getattr(found, name).high, guess)
        ]
        rest = ["" if (value := getattr(found, name)) is None else f"{value:.4f}" for name in single]
        lines.append([way, found.top1.n, *cells, *rest])
    return csv_text(lines)


def _confusion(way: str, rows: Sequence[RoutedPhotograph], base: KnowledgeBase) -> bytes:
    """Right entries by the entry ranked first; routed entries beyond the most frequent are one column."""
    pairs = [(row.right_key, best(row.probabilities)) for row in rows]
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
