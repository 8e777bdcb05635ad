"""A stage's summary in two lists: what it made, and what it dropped and why.

Reads `Stage` records; returns records for the page. Pure. Knows nothing about what the stages count.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from dcr2ad.report.run_folder import Stage

DROPPED = re.compile(r"reject|drop|skip|fail|unparsed|refused|leak")
"""Summary fields that count what was not used."""


@dataclass(frozen=True)
class Count:
    """One counted thing: a name, and a number or a short breakdown."""

    name: str
    text: str


@dataclass(frozen=True)
class StageCounts:
    """One stage's line in the table of counts."""

    stage: Stage
    made: tuple[Count, ...]
    dropped: tuple[Count, ...]


def stage_counts(stage: Stage) -> StageCounts:
    """A stage's summary in two lists: what it made, and what it dropped and why."""
    made: list[Count] = []
    dropped: list[Count] = []
    for name, value in stage.summary.items():
        text = _count_text(value)
        if text and not name.endswith("digest"):
            (dropped if DROPPED.search(name) else made).append(Count(name.replace("_", " "), text))
    return StageCounts(stage, tuple(made), tuple(dropped))


def _count_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_nested(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        plain = all(isinstance(item, int | float) for item in value)
        return ", ".join(_count_text(item) for item in value) if plain else str(len(value))
    return "" if value is None else str(value)


def _nested(value: Any) -> str:
    return f"({_count_text(value)})" if isinstance(value, dict | list | tuple) else _count_text(value)
