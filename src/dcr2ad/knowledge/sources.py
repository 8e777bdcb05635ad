"""Knowledge files of others to entries: MMAD's file and a Real-IAD file; unique titles, merging, and what the build counted.

Reads JSON; returns entries and records of what was merged and dropped. Knows nothing about run folders or models. The texts
are MMAD's and Real-IAD's own (CC BY-NC-SA): they are read where the user has them and never shipped. The paper names these
sources and reports 147 entries (Section 3.3) but no rule of merging; ours is `merge`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from dcr2ad.errors import RecordError
from dcr2ad.knowledge.agnostic import PLACEHOLDER, rewrite
from dcr2ad.knowledge.check import own_object_names
from dcr2ad.knowledge.labels import normalise_alias
from dcr2ad.knowledge.objects import look_up, normalise
from dcr2ad.types import KnowledgeEntry, LookAlike, Record

NEAR = 0.8
"""Share of common four-word runs (Jaccard) from which two texts count as near duplicates; not in the paper."""

_MMAD_DATASETS = ("MVTec", "MVTec-LOCO", "VisA", "GoodsAD")
_REAL_IAD_CODES = {
    "pit": "AK",
    "deformation": "BX",
    "abrasion": "CH",
    "scratch": "HS",
    "damage": "PS",
    "missing_parts": "QS",
    "foreign_objects": "YW",
    "contamination": "ZW",
}
_HEADER = re.compile(r"^\s*<\s*([^<>\n]+?)\s*>\s*(?:Description:\s*)?")


class Merged(Record):
    """Two entries that became one."""

    kept: str
    """Key of the entry that stays and takes over the other's aliases."""
    dropped: str
    """Key of the entry that goes."""
    likeness: float
    """Share of common four-word runs; 1 for equal texts."""


class Dropped(Record):
    """A text that became no entry."""

    key: str
    """Key it would have had."""
    reason: str
    """Why not."""


class Leak(Record):
    """A word that still names the object after rewriting."""

    key: str
    """Entry it stands in."""
    word: str
    """The word."""


class BuildReport(Record):
    """What building the knowledge base counted."""

    read: dict[str, int]
    """Texts read, a source."""
    kept: dict[str, int]
    """Entries in the base, a source."""
    merged: tuple[Merged, ...] = ()
    """Exact and near duplicates."""
    dropped: tuple[Dropped, ...] = ()
    """Texts left out, with the reason."""
    leaks: tuple[Leak, ...] = ()
    """Object names left in imported texts and titles; should be empty."""
    entries: int
    """Entries in the base."""
    digest: str
    """Digest of the base."""


class Imported(Record):
    """What an importer returns."""

    entries: tuple[KnowledgeEntry, ...]
    """The entries, rewritten."""
    dropped: tuple[Dropped, ...] = ()
    """Texts left out, with the reason."""


def read_domain_knowledge(path: str | Path) -> Imported:
    """Entries of a file in MMAD's schema, ``{data set: {object: {defect or "good": text}}}``, rewritten (Section 3.3).

    Reads MMAD's ``domain_knowledge.json`` and the public Real-IAD file alike. The first line of a text, ``<Title>``, gives the
    title. Source of an entry: ``mmad`` for MMAD's four data sets, else the data set in lower case (``real-iad``, ``mpdd``).

    Raises:
        RecordError: no such file, no JSON, or another schema; names the place.
    """
    path = Path(path)
    data = _read_json(path)
    entries, dropped = [], []
    for dataset, object_name, label, text in _walk(data, path):
        key = ".".join([dataset, normalise(object_name), normalise(label)])
        if not isinstance(text, str):
            raise RecordError(f"{path}: {key}: expected a text, found {type(text).__name__}", "Check the file")
        if not text.strip():
            dropped.append(Dropped(key=key, reason="empty text"))
            continue
        entries.append(_imported_entry(key, dataset, object_name, label, text))
    return Imported(entries=tuple(entries), dropped=tuple(dropped))


def unique_titles(entries: Sequence[KnowledgeEntry]) -> list[KnowledgeEntry]:
    """The entries with titles made unique: by an object-agnostic word on the kind of part, then by a number.

    Built-in and own titles are never changed.
    """
    taken = {entry.title.casefold() for entry in entries if entry.source in ("builtin", "own")}
    often = Counter(entry.title.casefold() for entry in entries)
    named = []
    for entry in entries:
        title = entry.title
        if entry.source not in ("builtin", "own"):
            if often[title.casefold()] > 1 or title.casefold() in taken:
                row = look_up(entry.category)
                title = f"{title} ({row.kind})" if row else title
            stem, number = title, 2
            while title.casefold() in taken:
                title, number = f"{stem} {number}", number + 1
            taken.add(title.casefold())
        named.append(entry if title == entry.title else entry.model_copy(update={"title": title}))
    return named


def merge(entries: Iterable[KnowledgeEntry]) -> tuple[list[KnowledgeEntry], list[Merged]]:
    """Entries without exact and near duplicates.

    Two entries are duplicates when both or neither describe a normal state and their texts, without case and punctuation,
    are equal or share at least `NEAR` of their four-word runs. The earlier entry stays and takes over the aliases of the later.
    """
    kept: list[KnowledgeEntry] = []
    runs: list[frozenset[tuple[str, ...]]] = []
    merged = []
    for entry in entries:
        own = _runs(entry.text)
        for position, other in enumerate(kept):
            likeness = _jaccard(own, runs[position]) if other.is_normal == entry.is_normal else 0.0
            if likeness >= NEAR:
                merged.append(Merged(kept=other.key, dropped=entry.key, likeness=round(likeness, 3)))
                kept[position] = other.model_copy(update={"aliases": tuple(dict.fromkeys(other.aliases + entry.aliases))})
                break
        else:
            kept.append(entry)
            runs.append(own)
    gone = {pair.dropped: pair.kept for pair in merged}
    return [_without_gone(entry, gone) for entry in kept], merged


def find_leaks(entries: Iterable[KnowledgeEntry]) -> list[Leak]:
    """Object names left in the texts and titles of imported and own entries, each against its own object."""
    return [Leak(key=entry.key, word=word) for entry in entries for word in own_object_names(entry)]


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise RecordError(f"no such file: {path}", "Check the path of the knowledge file") from None
    except ValueError as error:
        raise RecordError(
            f"{path} is not JSON ({error})", "Give a file in the schema of MMAD's domain_knowledge.json"
        ) from None


def _walk(data: object, path: Path) -> Iterable[tuple[str, str, str, object]]:
    """Data set, object, label and text of every leaf."""
    fix = 'The schema is {data set: {object: {defect or "good": text}}}'
    if not isinstance(data, dict):
        raise RecordError(f"{path}: the file holds no JSON object", fix)
    for dataset, by_object in data.items():
        if not isinstance(by_object, dict):
            raise RecordError(f"{path}: {dataset}: no objects", fix)
        for object_name, by_label in by_object.items():
            if not isinstance(by_label, dict):
                raise RecordError(f"{path}: {dataset}.{object_name}: no defects", fix)
            for label, text in by_label.items():
                yield dataset, object_name, label, text


def _imported_entry(key: str, dataset: str, object_name: str, label: str, text: str) -> KnowledgeEntry:
    header = _HEADER.match(text)
    raw_title = header.group(1) if header else label.replace("_", " ").capitalize()
    aliases = [f"{dataset}/{object_name}/{label}"]
    if dataset == "Real-IAD" and (code := _REAL_IAD_CODES.get(normalise(label))):
        aliases.append(f"{dataset}/{object_name}/{code}")
    return KnowledgeEntry(
        key=key,
        title=_title(raw_title, object_name),
        text=" ".join(rewrite(text, object_name).split()),
        is_normal=normalise(label) == "good",
        source="mmad" if dataset in _MMAD_DATASETS else dataset.lower(),
        aliases=tuple(normalise_alias(alias) for alias in aliases),
    )


def _title(header: str, object_name: str) -> str:
    """A header as a title: no colon, no object name ("Part" stands for the placeholder)."""
    plain = rewrite(header, object_name).replace(PLACEHOLDER, "Part")
    return " ".join(re.sub(r"\s*[:<>]\s*", ", ", plain).replace("_", " ").split()).strip(", ")


def _runs(text: str, length: int = 4) -> frozenset[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return frozenset(tuple(words[i : i + length]) for i in range(max(1, len(words) - length + 1)))


def _jaccard(a: frozenset[tuple[str, ...]], b: frozenset[tuple[str, ...]]) -> float:
    return len(a & b) / len(a | b) if a or b else 1.0


def _without_gone(entry: KnowledgeEntry, gone: dict[str, str]) -> KnowledgeEntry:
    """The entry with look-alikes pointing to what was kept of a merged entry."""
    if not any(like.key in gone for like in entry.look_alikes):
        return entry
    likes: dict[str, LookAlike] = {}
    for like in entry.look_alikes:
        key = like.key
        while key in gone:
            key = gone[key]
        if key != entry.key:
            likes.setdefault(key, like.model_copy(update={"key": key}))
    return entry.model_copy(update={"look_alikes": tuple(likes.values())})
