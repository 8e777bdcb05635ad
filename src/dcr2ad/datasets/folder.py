"""Folders of photographs to `Sample`s: an index file, the MVTec layout, or plain ``good/`` and ``bad/`` folders.

Reads file names and an index's lines, never pixels; returns samples lazily and says what was skipped and why. Knows nothing
about questions, models or findings; knowledge is asked only for the entry a label means. Not in the paper, which names its
data sets (Section 4.1) and no reader.

    index.jsonl   one row an image: image, label good|defect; optional dataset, category, part, defect, mask, ref, group, split
    MVTec         <category>/{train/good, test/good, test/<defect>, ground_truth/<defect>/<stem>_mask.png}; one or several
                  the test part's folder may be named as in DS-MVTec (image/, rbg_mask/), whose references come from MVTec-AD
                  beside it where there is one; a mask may be a folder of masks (LOCO)
    Real-IAD, VisA  by their lists, see `dcr2ad.datasets.layouts`
    plain         good/, bad/ or bad/<defect>/
"""

from __future__ import annotations

import random
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Protocol

from dcr2ad.datasets.layouts import Part, Row
from dcr2ad.datasets.listing import list_rows
from dcr2ad.errors import InputError
from dcr2ad.types import KnowledgeEntry, Record, Sample

_MADE_SPLITS = ("train", "dev")
_WORDS = {"pcb": "printed circuit board", "solar_cell_mono": "solar cell", "solar_cell_poly": "solar cell"}


class Skipped(Record):
    """A file that could not be used."""

    path: str
    """The file."""
    why: str
    """Why, one phrase; for a mask or a reference the image itself may still be used, and the phrase says so."""


class ResolvesLabels(Protocol):
    """What `with_knowledge` needs of a knowledge base."""

    def resolve_label(self, dataset: str, object_name: str, defect: str | None, is_anomalous: bool) -> KnowledgeEntry | None:
        """The entry a label means, or None."""


class FolderReading:
    """The samples of one folder: iterate for samples; `skipped` tells what the last iteration left out.

    Rows are listed at once, so that an unusable folder fails early; each image's files are looked at only when its sample is
    asked for.
    """

    def __init__(
        self, root: Path, rows: Sequence[Row], *, layout: str, wanted: Sequence[Row], references: int, name: str | None
    ) -> None:
        self.layout = layout
        """``index``, ``mvtec`` or ``plain``."""
        self._root = root
        self._wanted = wanted
        self._count = references
        self._name = name
        self._skipped: dict[Path, Skipped] = {}
        self._pools: dict[tuple[str, str, str, str, Part], list[Row]] = defaultdict(list)
        for row in rows:
            if row.label == "good" and row.serves:
                for split in (row.split,) if row.asked else _MADE_SPLITS:  # what is lent lies in no split
                    self._pools[row.dataset, row.category, row.view, split, row.part].append(row)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """What the last iteration left out, in order."""
        return tuple(self._skipped.values())

    def __iter__(self) -> Iterator[Sample]:
        self._skipped = {}
        seen: set[str] = set()
        for row in self._wanted:
            if row.image in seen:
                path = self._root / row.image
                self._skipped[path] = Skipped(path=str(path), why="listed twice; the first row is used")
                continue
            seen.add(row.image)
            if self._usable(row.image, "the image is left out"):
                yield self._sample(row)

    def _sample(self, row: Row) -> Sample:
        named = row.masks or ((row.mask,) if row.mask else ())
        masks = tuple(name for name in named if self._usable(name, "the image is kept without its mask"))
        return Sample(
            id=row.image,
            image=str(self._root / row.image),
            references=tuple(str(self._root / name) for name in self._references(row)),
            masks=tuple(str(self._root / name) for name in masks),
            dataset=row.dataset,
            object=self._name or object_words(row.category),
            defect=row.defect if row.label == "defect" else None,
            is_anomalous=row.label == "defect",
            group=row.group,
            split=row.split,
        )

    def _references(self, row: Row) -> list[str]:
        """The row's own reference, then good images of the same category and split from other groups.

        The order is fixed for each image and begins at another place for each, so that not all share one reference.
        """
        chosen: list[str] = []
        for name in self._candidates(row):
            if len(chosen) == self._count:
                break
            if name not in chosen and self._usable(name, "another reference is used"):
                chosen.append(name)
        return chosen

    def _candidates(self, row: Row) -> Iterator[str]:
        if row.ref:
            yield row.ref
        # A split the layout did not make itself may be crossed for want of another reference; an index's never.
        splits = [row.split] + ([other for other in _MADE_SPLITS if other != row.split] if self.layout != "index" else [])
        parts: tuple[Part, ...] = ("train", "test")
        start = zlib.crc32(row.image.encode())
        for split, part in product(splits, parts):
            pool = self._pools.get((row.dataset, row.category, row.view, split, part), [])
            for offset in range(len(pool)):
                other = pool[(start + offset) % len(pool)]
                if other.image != row.image and (row.group is None or other.group != row.group):
                    yield other.image

    def _usable(self, name: str, otherwise: str) -> bool:
        path = self._root / name
        why = "no such file" if not path.is_file() else "empty file" if path.stat().st_size == 0 else ""
        if why:
            self._skipped.setdefault(path, Skipped(path=str(path), why=f"{why}; {otherwise}"))
        return not why


def read_folder(
    path: str | Path,
    *,
    split: str = "",
    references: int = 1,
    object_name: str | None = None,
    parts: Sequence[Part] = ("test", "train"),
    datasets: Sequence[str] = (),
) -> FolderReading:
    """Open a folder of photographs.

    Args:
        path: an index file, a folder that holds one, an MVTec category or a folder of them, or a folder with ``good/``.
        split: ``train`` or ``dev``; empty for all. A layout without splits gets one: of each category and defect the second
            of every three images is ``dev``.
        references: how many normal images each sample gets, at most.
        object_name: name of the object in words; None reads it off the category's folder.
        parts: which parts give samples, in this order; the ``train`` part of a layout holds good images only, which serve as
            references whether or not they are samples.
        datasets: names of data sets to keep; empty for all.

    Returns:
        the reading; iterate it for samples, then ask it what was ``skipped``.

    Raises:
        InputError: no such path, no known layout, or no image left under `split`, `parts` and `datasets`.
        RecordError: a line of an index is no row; names file and line.
    """
    root, layout, rows = list_rows(Path(path).absolute())
    wanted = [
        row
        for part in parts
        for row in rows
        if row.asked and row.part == part and split in {"", row.split} and (not datasets or row.dataset in datasets)
    ]
    if not wanted:
        known = ", ".join(sorted({row.split for row in rows} - {""})) or "none"
        raise InputError(f"{path} holds no image of split {split!r}, parts {'/'.join(parts)}", f"Splits there: {known}")
    return FolderReading(root, rows, layout=layout, wanted=wanted, references=references, name=object_name)


def with_knowledge(samples: Iterable[Sample], knowledge_base: ResolvesLabels) -> Iterator[Sample]:
    """The samples with `right_key` set to the entry their label means (k_w, Section 3.3); None where there is none."""
    for sample in samples:
        entry = knowledge_base.resolve_label(sample.dataset, sample.object, sample.defect, sample.is_anomalous)
        yield sample.model_copy(update={"right_key": entry.key if entry else None})


def balanced_subset(samples: Iterable[Sample], max_images: int | None, seed: int) -> list[Sample]:
    """At most `max_images` samples: one from each object in turn, defective and good alternately.

    Of an object's defective images the kinds take turns too. Where an object runs out of one side the other fills in. Any
    beginning of the list is as balanced as the whole. None keeps all, in the order given.
    """
    everything = list(samples)
    if max_images is None:
        return everything
    objects: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in everything:
        objects[sample.dataset, sample.object].append(sample)
    queues = [iter(_alternate(members, random.Random(f"{seed}/{key}"))) for key, members in sorted(objects.items())]
    return [sample for sample, _ in zip(_take_turns(queues), range(max_images), strict=False)]


def object_words(category: str) -> str:
    """A category's name as one says it.

    >>> object_words("magnetic_tile"), object_words("pcb"), object_words("solar_cell_mono")
    ('magnetic tile', 'printed circuit board', 'solar cell')
    """
    plain = re.sub(r"(?<=[a-z])_*\d+$", "", category.strip().lower().replace("-", "_").replace(" ", "_"))
    return _WORDS.get(plain, plain.replace("_", " "))


def _alternate(members: Sequence[Sample], rng: random.Random) -> Iterator[Sample]:
    """Defective and good in turn, each seeded; the kinds of defect take turns."""
    shuffled = rng.sample(members, len(members))
    kinds: dict[str, list[Sample]] = defaultdict(list)
    for sample in shuffled:
        kinds[(sample.defect or "") if sample.is_anomalous else "good"].append(sample)
    good = kinds.pop("good", [])
    defective = list(_take_turns([iter(kinds[kind]) for kind in rng.sample(sorted(kinds), len(kinds))]))
    first, second = (defective, good) if rng.random() < 0.5 else (good, defective)
    return _take_turns([iter(first), iter(second)])


def _take_turns(queues: Sequence[Iterator[Sample]]) -> Iterator[Sample]:
    """One item of each queue in turn until all are empty."""
    waiting = list(queues)
    while waiting:
        still = []
        for queue in waiting:
            item = next(queue, None)
            if item is not None:
                yield item
                still.append(queue)
        waiting = still
