"""What each evaluation was made with: model, knowledge, benchmark and versions, for the page and its CSV.

Reads `EvalReport` records; returns records of text. Pure. Knows nothing about figures or how they were measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dcr2ad.artifacts import csv_text
from dcr2ad.report.tables import HEAD, ResultRow, cells
from dcr2ad.types import EvalReport

SHOWN = 12
"""Digits of a digest that a page shows; the CSV holds them all."""
COLUMNS = ("Evaluation", "Opened as", "Model digest", "Backend", "Pixels", "Knowledge", "Benchmark", "Own prompts", "Versions")
"""Columns that the CSV has beyond the results'."""
_NAMED = ("name", "digest", "backend", "pixels")


@dataclass(frozen=True)
class Origin:
    """What one evaluation was made with; digests whole, empty where a report has none."""

    tag: str
    model: str
    digest: str
    backend: str
    pixels: str
    knowledge: str
    benchmark: str
    prompts: str
    versions: str
    training: str

    @property
    def texts(self) -> tuple[str, ...]:
        """In the order of `COLUMNS`."""
        made = (self.tag, self.model, self.digest, self.backend, self.pixels)
        return (*made, self.knowledge, self.benchmark, self.prompts, self.versions)


def origin(tag: str, report: EvalReport) -> Origin:
    """What an evaluation was made with.

    Args:
        tag: name of the evaluation.
        report: its report.
    """
    model = report.model
    return Origin(
        tag=tag,
        model=model.get("name", ""),
        digest=model.get("digest", ""),
        backend=model.get("backend", ""),
        pixels=model.get("pixels", ""),
        knowledge=report.knowledge_digest,
        benchmark=report.benchmark,
        prompts=report.protocol.prompts,
        versions=", ".join(f"{name} {version}" for name, version in model.items() if name not in _NAMED),
        training=_training(report.leaks),
    )


def to_csv(rows: Sequence[ResultRow], reports: Mapping[str, EvalReport]) -> str:
    """Results as CSV with a head line, each with what it was made with."""
    made = ([*cells(row), *origin(row.tag, reports[row.tag]).texts] for row in rows)
    return csv_text([[*HEAD, *COLUMNS], *made])


def _training(leaks: Mapping[str, Any]) -> str:
    """What the leak guard found, in a phrase."""
    if not leaks.get("recorded"):
        return "the model records no training images"
    overlap, looked_at = leaks.get("overlap", 0), leaks.get("looked_at", 0)
    told = f"{overlap} of {looked_at} are" if overlap else f"none of {looked_at} is"
    return f"{told} among the {leaks['recorded']} trained on"
