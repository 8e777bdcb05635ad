"""What several verbs share: opening what is named, printing counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast, get_args

from dcr2ad import console
from dcr2ad.config import Recipe, load_recipe
from dcr2ad.errors import InputError, UnknownNameError
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.types import RouteMode


def load_knowledge(path: Path | None) -> KnowledgeBase:
    """The built-in base, or the one in a file or in a stage's folder."""
    if path is None:
        return KnowledgeBase.builtin()
    return KnowledgeBase.load(path / "entries.jsonl" if path.is_dir() else path)


def read_recipe(path: Path | None) -> Recipe:
    """The recipe in a file, or the defaults, which are the paper's."""
    return Recipe(name="default") if path is None else load_recipe(path)


def route_mode(name: str) -> RouteMode:
    """A route mode by its name."""
    for mode in get_args(RouteMode):
        if mode == name:
            return cast(RouteMode, mode)
    raise UnknownNameError(f"no route mode {name!r}", f"Use {', '.join(get_args(RouteMode))}")


def must_exist(data: Path) -> None:
    """Refuse a data folder that is not there."""
    if not data.exists():
        raise InputError(f"no such folder: {data}", "Name a folder of labelled photographs")


def say(line: str) -> None:
    """One line for a person, on standard error."""
    console.err.print(line, markup=False)


def print_counts(stage: str, counts: dict[str, Any], result: Path) -> None:
    """What a stage made and dropped, as a table, and where it lies."""
    console.out.print(console.table(stage, ("count", ""), count_rows(counts)))
    console.err.print(f"written: {result}", markup=False)


def count_rows(counts: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of a table of counts: what is counted by name gets a row a name; what is empty gets none."""
    rows: list[tuple[str, str]] = []
    for name, value in counts.items():
        spoken = name.replace("_", " ")
        if isinstance(value, dict):
            rows += [(f"{spoken}: {key}", _shown(each)) for key, each in value.items()]
        elif value not in ([], (), None):
            rows.append((spoken, _shown(value)))
    return rows


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
