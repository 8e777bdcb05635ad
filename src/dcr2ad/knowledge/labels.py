"""From a data set's labels to entries: the table of aliases.

Reads the aliases of `KnowledgeEntry` records; returns entries. Knows nothing about files. An alias is ``label``,
``dataset/label``, ``object/label`` or ``dataset/object/label``; case, blanks and hyphens do not count. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

from dcr2ad.knowledge.objects import look_up, normalise, normalise_dataset
from dcr2ad.types import KnowledgeEntry

_RANK = {"own": 0, "mmad": 1, "real-iad": 1, "builtin": 2}
"""Who wins when two sources hold the same alias: the user's own entry, then the imported, then the built-in one."""


def normalise_alias(alias: str) -> str:
    """An alias with each of its parts normalised.

    >>> normalise_alias("DS-MVTec/Metal Nut/bent"), normalise_alias("Pin-hole")
    ('mvtec/metal_nut/bent', 'pin_hole')
    """
    *qualifiers, label = alias.split("/")
    return "/".join([normalise_dataset(part) for part in qualifiers] + [normalise(label)])


class LabelTable:
    """Aliases of a list of entries, the most trusted source first."""

    def __init__(self, entries: Sequence[KnowledgeEntry]) -> None:
        self._table: dict[str, KnowledgeEntry] = {}
        for entry in sorted(entries, key=lambda entry: _RANK.get(entry.source, 1)):
            for alias in entry.aliases:
                self._table.setdefault(normalise_alias(alias), entry)

    def find(
        self, dataset: str, object_name: str, label: str, *, qualified: bool = False
    ) -> KnowledgeEntry | None:
        """The entry a label means, the most specific alias first; `qualified` leaves the plain label out."""
        data, word = normalise_dataset(dataset), normalise(label)
        names = _object_forms(object_name)
        forms = [f"{data}/{name}/{word}" for name in names] + [f"{name}/{word}" for name in names]
        forms.append(f"{data}/{word}")
        if not qualified:
            forms.append(word)
        for form in forms:
            if form in self._table:
                return self._table[form]
        return None

    def claimed(self, dataset: str, object_name: str) -> list[KnowledgeEntry]:
        """Entries with an alias whose qualifiers name the object or the data set, in table order."""
        forms = {*_object_forms(object_name), normalise_dataset(dataset)} - {""}
        found = (entry for alias, entry in self._table.items() if forms & set(alias.split("/")[:-1]))
        return list(dict.fromkeys(found))


def _object_forms(name: str) -> list[str]:
    """The normalised names an object may be filed under: its own, then the table's."""
    row = look_up(name)
    return list(dict.fromkeys([normalise(name), *([row.name] if row else [])]))
