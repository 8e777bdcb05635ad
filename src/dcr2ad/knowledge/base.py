"""The knowledge base K: its entries, and how names, labels and words lead to them.

Reads and writes JSONL files of `KnowledgeEntry`; returns entries. Knows nothing about images, models or prompts: which entry
applies to a photograph is the router's question (`dcr2ad.routing`), the wording in which a model reads it is `dcr2ad.prompts`'.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from functools import cached_property
from importlib import resources
from pathlib import Path

from dcr2ad.artifacts import digest_records, read_records, write_records
from dcr2ad.errors import RecordError, UnknownNameError
from dcr2ad.knowledge import agnostic, objects
from dcr2ad.knowledge.labels import LabelTable
from dcr2ad.knowledge.search import SearchIndex
from dcr2ad.types import KnowledgeEntry, LookAlike, Question

BUILTIN_SOURCE = "builtin"

EVERYDAY = (
    "General.surface.scratch",
    "General.surface.abrasion",
    "General.surface.dent",
    "General.surface.pit",
    "General.structural.crack",
    "General.structural.breakage",
    "General.structural.hole",
    "General.geometric.deformation",
    "General.colour.discolouration",
    "General.contamination.dirt",
    "General.contamination.foreign_object",
    "General.assembly.missing_part",
    "General.general.normal",
)
"""Entries for an object that nothing is known about."""


class KnowledgeBase:
    """Object-agnostic knowledge entries, immutable and in a fixed order (Section 3.3).

    Args:
        entries: the entries; keys must be unique, and so must titles up to case and blanks.

    Raises:
        RecordError: two entries share a key or a title.
    """

    def __init__(self, entries: Iterable[KnowledgeEntry]) -> None:
        self._entries = tuple(entries)
        self._applicable: dict[tuple[str, str], tuple[KnowledgeEntry, ...]] = {}
        self._names: dict[str, KnowledgeEntry] = {}
        for kind in ("key", "title"):
            seen: dict[str, KnowledgeEntry] = {}
            for entry in self._entries:
                name = _plain(getattr(entry, kind))
                if name in seen:
                    raise RecordError(
                        f"two knowledge entries share the {kind} {getattr(entry, kind)!r}",
                        f"Give one of them another {kind}: {seen[name].key}, {entry.key}",
                    )
                seen[name] = entry
            self._names = {**seen, **self._names}

    @classmethod
    def builtin(cls) -> KnowledgeBase:
        """The built-in entries, written by us."""
        with resources.as_file(resources.files("dcr2ad.knowledge") / "builtin.jsonl") as path:
            return cls.load(path)

    @classmethod
    def load(cls, path: str | Path) -> KnowledgeBase:
        """Entries of a JSONL file.

        Raises:
            RecordError: no such file, a line that is no entry (names file and line), no entry at all, or a shared key or title.
        """
        base = cls(read_records(path, KnowledgeEntry))
        if not base:
            raise RecordError(f"{path} holds no knowledge entry", "Build the file again, or check the path")
        return base

    def save(self, path: str | Path) -> None:
        """Write the entries to a JSONL file in one step."""
        write_records(path, self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[KnowledgeEntry]:
        return iter(self._entries)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key in self._by_key

    @property
    def entries(self) -> tuple[KnowledgeEntry, ...]:
        """All entries, in order."""
        return self._entries

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the entries' canonical JSON, whatever their order."""
        ordered: list[KnowledgeEntry] = sorted(self, key=lambda entry: entry.key)
        return digest_records(ordered)

    def get(self, key: str) -> KnowledgeEntry:
        """The entry with this key.

        Raises:
            UnknownNameError: there is none; names the closest ones.
        """
        if key in self._by_key:
            return self._by_key[key]
        near = difflib.get_close_matches(_plain(key), self._names, n=3, cutoff=0.5)
        keys = dict.fromkeys(self._names[name].key for name in near)
        fix = f"Did you mean {' or '.join(keys)}?" if keys else "`dcr2ad knowledge list` shows every key"
        raise UnknownNameError(f"no knowledge entry {key!r}", fix.rstrip("?"))

    def resolve(self, name: str) -> KnowledgeEntry | None:
        """The entry with this key or title, case and blanks aside; None where there is none. Never guesses."""
        return self._names.get(_plain(name))

    def resolve_label(self, dataset: str, object_name: str, defect: str | None, is_anomalous: bool) -> KnowledgeEntry | None:
        """The entry a data set's label means (k_w is known from the label, Section 3.3).

        Aliases decide, ``dataset/object/label`` before ``object/label``, ``dataset/label`` and plain ``label``. A good part
        without an alias of its own gets the normal entry of the object's first domain that has one, else the general one.

        Returns:
            The entry, or None for a defect without a label or with an unknown one.
        """
        labels = self._labels
        if is_anomalous:
            found = labels.find(dataset, object_name, defect) if defect else None
            return found if found is not None and not found.is_normal else None
        own = labels.find(dataset, object_name, "good", qualified=True)
        if own is not None and own.is_normal:
            return own
        for domain in (*objects.domains(object_name), "general", "surface"):
            for entry in self._entries:
                if entry.is_normal and entry.source == BUILTIN_SOURCE and entry.category == domain:
                    return entry
        fallback = labels.find(dataset, object_name, "good")
        return fallback if fallback is not None and fallback.is_normal else None

    def listed(self, question: Question) -> tuple[KnowledgeEntry, ...]:
        """The entries that a question's prompt lists, in order, causes and effects exchanged where the question says so.

        Raises:
            UnknownNameError: a candidate that is not in the base.
        """
        entries = [self.get(key) for key in question.candidates]
        if not question.exchanged:
            return tuple(entries)
        facts = [self.get(key) for key in question.exchanged]
        return tuple(
            entry.model_copy(update={"cause": fact.cause, "effect": fact.effect})
            for entry, fact in zip(entries, facts, strict=True)
        )

    def category(self, object_name: str, dataset: str | None = None) -> tuple[KnowledgeEntry, ...]:
        """Every entry of the object's category: MMAD's domain-knowledge setting, the context ``category``.

        The first that holds decides: (1) imported and own entries of this object, in file order, those of `dataset` alone
        where it has any; (2) built-in entries that the object's known labels lead to, then its normal entry, where at least
        one label names a kind of defect; (3) built-in entries of the object's first domain; (4) for an object that nothing is
        known about, thirteen everyday entries. Rules 2 to 4 are not in the paper; they keep the prompt short.
        """
        name = objects.normalise(object_name)
        imported = [entry for entry in self if objects.normalise(entry.category) == name and entry.source != BUILTIN_SOURCE]
        if dataset is not None:
            of_set = [entry for entry in imported if _dataset_of(entry) == objects.normalise_dataset(dataset)]
            imported = of_set or imported
        if imported:
            return tuple(imported)
        labelled = self._labels.of_object(object_name, dataset)
        if any(entry.category != "general" for entry in labelled):
            normal = self.resolve_label(dataset or "", object_name, None, False)
            return tuple(dict.fromkeys([*labelled, normal] if normal is not None else labelled))
        if objects.look_up(object_name) is None:
            return tuple(self._by_key[key] for key in EVERYDAY if key in self)
        first = objects.domains(object_name)[0]
        return tuple(entry for entry in self if entry.source == BUILTIN_SOURCE and entry.category == first)

    def applicable(self, object_name: str, dataset: str = "") -> tuple[KnowledgeEntry, ...]:
        """Entries that can apply to an object, in order: what a router need tell apart. Not in the paper.

        Of the built-in ones those that the object's known labels lead to stay, its own normal state alone, and of all others
        those of its domains and of domains that are no material; less any whose name means another entry on this object (a
        cookie's crack is the food's). Imported and own entries stay, and so does everything for an object that the table of
        objects does not hold.
        """
        known = (objects.normalise(object_name), objects.normalise_dataset(dataset))
        if known not in self._applicable:
            self._applicable[known] = tuple(self._find_applicable(object_name, dataset))
        return self._applicable[known]

    def _find_applicable(self, object_name: str, dataset: str) -> Iterator[KnowledgeEntry]:
        listed = objects.look_up(object_name) is not None
        labelled = set(self._labels.of_object(object_name))
        normal = self.resolve_label(dataset, object_name, None, False)
        foreign = objects.foreign_materials(object_name)
        for entry in self:
            if not listed or entry.source != BUILTIN_SOURCE or entry == normal:
                yield entry
            elif not entry.is_normal:
                meant = self.resolve_label(dataset, object_name, entry.key.rpartition(".")[2], True)
                if entry in labelled or (entry.category not in foreign and meant in (None, entry)):
                    yield entry

    def search(self, text: str, k: int = 5) -> list[tuple[KnowledgeEntry, float]]:
        """The at most `k` entries whose words answer `text` best, with BM25 scores; not in the paper."""
        return [(self._entries[position], score) for position, score in self._index.top(text, k)]

    def look_alikes(self, key: str) -> tuple[tuple[KnowledgeEntry, LookAlike], ...]:
        """Entries that deceive for `key`, each with what tells the two apart; those left out of the base are left out here.

        Raises:
            UnknownNameError: no entry has this key.
        """
        return tuple((self._by_key[like.key], like) for like in self.get(key).look_alikes if like.key in self)

    def without_sources(self, *sources: str) -> KnowledgeBase:
        """The base without the entries of some sources: an evaluation must not see a benchmark's own texts.

        Raises:
            UnknownNameError: a source that no importer writes.
        """
        known = {BUILTIN_SOURCE, "mmad", "real-iad", "own", *(entry.source for entry in self)}
        for source in sources:
            if source not in known:
                raise UnknownNameError(f"no knowledge source {source!r}", f"Sources: {', '.join(sorted(known))}")
        return KnowledgeBase(entry for entry in self if entry.source not in sources)

    def render(self, entry: KnowledgeEntry | str, object_name: str) -> str:
        """An entry's text for a prompt, with the object's name where the placeholder stands.

        Raises:
            UnknownNameError: no entry has this key.
        """
        found = self.get(entry) if isinstance(entry, str) else entry
        return agnostic.name_object(found.text, object_name)

    @cached_property
    def _by_key(self) -> dict[str, KnowledgeEntry]:
        return {entry.key: entry for entry in self._entries}

    @cached_property
    def _labels(self) -> LabelTable:
        return LabelTable(self._entries)

    @cached_property
    def _index(self) -> SearchIndex:
        return SearchIndex(self._entries)


def _plain(name: str) -> str:
    """A key or title without case and with single blanks."""
    return " ".join(name.casefold().split())


def _dataset_of(entry: KnowledgeEntry) -> str:
    """Data set named by an imported entry's key."""
    return objects.normalise_dataset(entry.key.split(".")[0])
