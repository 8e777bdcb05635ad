"""Good photographs of one line: found in a folder of any kind, kept apart from what is measured on, listed as an index.

Reads folders; returns samples and writes ``index.jsonl``. Knows nothing about questions or models. Not in the paper.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from dcr2ad.artifacts import write_records
from dcr2ad.datasets.folder import object_words, read_folder
from dcr2ad.datasets.layouts import Part, Row
from dcr2ad.datasets.listing import INDEX_NAME
from dcr2ad.errors import ImageError, InputError
from dcr2ad.images import SUFFIXES, load_image
from dcr2ad.leaks import Forbidden, read_forbidden
from dcr2ad.types import Sample

FEWEST = 4
"""Good photographs below which there is nothing to compare with, or to hold out."""
MOST = 60
"""Photographs used at most."""

T = TypeVar("T")


def good_photographs(folder: Path, object_name: str | None, datasets: Sequence[str]) -> list[Sample]:
    """Good photographs of a folder of plain images, or of any layout.

    Raises:
        InputError: no such folder, or no good photograph in it.
    """
    if not folder.exists():
        raise InputError(f"no such folder: {folder}", "Name a folder of good photographs")
    flat = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if flat and not (folder / INDEX_NAME).is_file():
        name = folder.resolve().name
        shown = object_name or object_words(name)
        return [Sample(id=p.name, image=str(p.absolute()), dataset=name, object=shown, is_anomalous=False) for p in flat]
    reading = read_folder(folder, datasets=datasets, object_name=object_name)
    found = [s for s in reading if not s.is_anomalous and not (reading.layout == "index" and s.split == "dev")]
    if not found:
        raise InputError(f"{folder} holds no good photograph", "Name a folder of good photographs")
    return found


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, evenly over them, in their order."""
    return [items[index * len(items) // most] for index in range(most)] if len(items) > most else list(items)


def usable(good: Sequence[Sample], guard: Forbidden | None) -> tuple[list[Sample], dict[str, int]]:
    """Photographs that open and that the benchmark does not hold, evenly `MOST` of them at most; and what was left out, why.

    Raises:
        InputError: fewer than `FEWEST` are left.
    """
    kept: list[Sample] = []
    left_out: Counter[str] = Counter()
    for sample in good:
        try:
            load_image(sample.image)
            match = guard.find(sample.image, sample.dataset) if guard is not None else None
        except ImageError:
            left_out["cannot be read"] += 1
            continue
        if match is None:
            kept.append(sample)
        else:
            left_out["in the benchmark"] += 1
    if len(kept) > MOST:
        left_out[f"more than {MOST}"] = len(kept) - MOST
        kept = evenly(kept, MOST)
    if len(kept) < FEWEST:
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "none"
        raise InputError(f"{len(kept)} good photographs can be used, {FEWEST} are needed (left out: {why})", "Add photographs")
    return kept, dict(left_out)


def forbid_bench(bench: Path, datasets: Sequence[str], progress: Callable[[int, int], None] | None = None) -> Forbidden:
    """Every image that is measured on, as forbidden to training.

    Raises:
        InputError, ImageError: the benchmark, or one of its images, cannot be read.
    """
    if bench.is_file():
        return read_forbidden([bench], progress)
    guard = Forbidden()
    samples = list(read_folder(bench, split=bench_split(bench, datasets), datasets=datasets, parts=("test",)))
    for number, sample in enumerate(samples, 1):
        guard.add_file(sample.image)
        if progress is not None:
            progress(number, len(samples))
    return guard


def bench_split(bench: Path, datasets: Sequence[str]) -> str:
    """``dev`` where an index tells splits, else all."""
    reading = read_folder(bench, datasets=datasets)
    return "dev" if reading.layout == "index" and any(sample.split == "dev" for sample in reading) else ""


def write_index(held: Sequence[Sample], line: Sequence[Sample], out: Path, *, beside: Sequence[Sample] = ()) -> None:
    """The photographs as an index whose splits are what is held out and what is trained with.

    `beside` are those that everything trained with is compared with, and none that it asks about; without any, they serve each
    other.
    """
    kept: tuple[tuple[str, Part, Sequence[Sample]], ...] = (
        ("dev", "test", held),
        ("train", "train", beside),
        ("train", "test", line),
    )
    rows = [
        Row(
            image=sample.image,
            label="good",
            dataset=sample.dataset,
            category=sample.object,
            part=part,
            group=sample.group,
            split=split,
            serves=not beside or part == "train",
        )
        for split, part, samples in kept
        for sample in samples
    ]
    write_records(out / "index.jsonl", rows)
