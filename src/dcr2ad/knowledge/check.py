"""What is wrong with a list of knowledge entries.

Reads `KnowledgeEntry` records or a JSONL file of them, returns one line a problem. Used by the tests and by the verb
``dcr2ad knowledge check``. Knows nothing about models or labels of photographs. Not in the paper.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dcr2ad.artifacts import read_records
from dcr2ad.knowledge.agnostic import PLACEHOLDER, leaks
from dcr2ad.knowledge.labels import normalise_alias
from dcr2ad.knowledge.objects import DOMAINS, singular, table
from dcr2ad.types import KnowledgeEntry

BUILTIN_WORDS = (35, 80)
"""Words in the text of a built-in entry: what a small model can read and still tell apart."""
MOST_LOOK_ALIKES = 6
"""Look-alikes of a built-in entry; common defects, as a scratch or dirt, are taken for many things."""
MOST_WORDS = 500
"""Words in any text; the longest of MMAD's and Real-IAD's have fewer."""

_KEY = re.compile(r"[\w-]+(\.[\w-]+){2}")
_FEATURE_WORDS = frozenset(
    {"base", "bead", "block", "board", "can", "cell", "hide", "mesh", "pin", "plate", "plug", "spindle", "stick", "terminal"}
)
"""Names in the table that are also everyday words or features of a class; as such they may stand in a built-in text."""


def check_file(path: str | Path) -> list[str]:
    """As `check`, for a JSONL file; problems that keep a base from loading, such as a shared key, are listed too.

    Raises:
        RecordError: no such file, or a line that is no entry.
    """
    return check(read_records(path, KnowledgeEntry))


def check(entries: Iterable[KnowledgeEntry]) -> list[str]:
    """Problems of the entries, one line each; empty when all is well.

    Holds: unique keys and titles; titles without colon, angle bracket and placeholder; keys of three parts; look-alikes that
    exist and point back; no object names; texts of reasonable length; every alias with one meaning within a source.
    """
    listed = list(entries)
    return [*_names(listed), *_look_alikes(listed), *_texts(listed), *_aliases(listed)]


def _names(entries: Sequence[KnowledgeEntry]) -> Iterator[str]:
    """Problems of keys and titles."""
    for kind in ("key", "title"):
        often = Counter(" ".join(getattr(entry, kind).casefold().split()) for entry in entries)
        for name, count in often.items():
            if count > 1:
                yield f"{kind} {name!r} is used {count} times"
    for entry in entries:
        if not _KEY.fullmatch(entry.key):
            yield f"{entry.key}: a key has three parts, Source.category.defect"
        if not entry.title.strip() or re.search(r"[:<>\[\]\n]", entry.title):
            yield f"{entry.key}: title {entry.title!r} is empty or holds a colon, bracket or line break"
        if entry.source == "builtin" and len(entry.title.split()) > 4:
            yield f"{entry.key}: title {entry.title!r} has more than four words"


def _look_alikes(entries: Sequence[KnowledgeEntry]) -> Iterator[str]:
    """Look-alikes that do not exist, point to their own entry, are listed twice, or do not point back."""
    by_key = {entry.key: entry for entry in entries}
    for entry in entries:
        keys = [like.key for like in entry.look_alikes]
        if len(set(keys)) < len(keys):
            yield f"{entry.key}: a look-alike is listed twice"
        if entry.source == "builtin" and not 1 <= len(keys) <= MOST_LOOK_ALIKES:
            yield f"{entry.key}: {len(keys)} look-alikes; a built-in entry has one to {MOST_LOOK_ALIKES}"
        for like in entry.look_alikes:
            if like.key == entry.key:
                yield f"{entry.key}: is its own look-alike"
            elif like.key not in by_key:
                yield f"{entry.key}: look-alike {like.key} does not exist"
            elif entry.key not in {back.key for back in by_key[like.key].look_alikes}:
                yield f"{entry.key}: look-alike {like.key} does not point back"
            if not like.difference.strip():
                yield f"{entry.key}: look-alike {like.key} has no difference"


def _texts(entries: Sequence[KnowledgeEntry]) -> Iterator[str]:
    """Lengths, and object names left in texts."""
    for entry in entries:
        words = len(entry.text.split())
        low, high = BUILTIN_WORDS if entry.source == "builtin" else (1, MOST_WORDS)
        if not low <= words <= high:
            yield f"{entry.key}: text of {words} words; {low} to {high} are allowed"
        if entry.source != "builtin":
            for word in dict.fromkeys(own_object_names(entry)):
                yield f"{entry.key}: names the object: {word!r}"
            continue
        if PLACEHOLDER not in entry.text:
            yield f"{entry.key}: text without {PLACEHOLDER}"
        if not 3 <= len(entry.cues) <= 5:
            yield f"{entry.key}: {len(entry.cues)} cues; three to five are asked for"
        for field in ("place", "cause", "effect"):
            if not getattr(entry, field).strip():
                yield f"{entry.key}: no {field}"
        for word in object_names(entry):
            yield f"{entry.key}: names an object: {word!r}"


def own_object_names(entry: KnowledgeEntry) -> list[str]:
    """Words of an imported or own entry's title and text that name its own object, the category of its key.

    An own entry filed under a domain of the built-in ones ("Own.surface.stain") has no object.
    """
    if entry.source == "builtin" or (entry.source == "own" and entry.category in DOMAINS):
        return []
    return leaks(f"{entry.title} . {entry.text}", entry.category)


def object_names(entry: KnowledgeEntry) -> list[str]:
    """Names of any object of the table in the readable fields of an entry, words for features and materials aside."""
    differences = (like.difference for like in entry.look_alikes)
    readable = " . ".join([entry.title, entry.text, *entry.cues, entry.place, entry.cause, entry.effect, *differences])
    found = {word for name in table() if not name.isdigit() for word in leaks(readable, name)}
    return sorted(word for word in found if singular(word) not in _FEATURE_WORDS)


def _aliases(entries: Sequence[KnowledgeEntry]) -> Iterator[str]:
    """Aliases that two entries of one source claim, or that normalise to nothing."""
    owners: dict[tuple[str, str], list[str]] = defaultdict(list)
    for entry in entries:
        for alias in entry.aliases:
            plain = normalise_alias(alias)
            if not all(plain.split("/")):
                yield f"{entry.key}: alias {alias!r} has an empty part"
            elif entry.key not in owners[entry.source, plain]:
                owners[entry.source, plain].append(entry.key)
    for (_, alias), keys in owners.items():
        if len(keys) > 1:
            yield f"alias {alias!r} means {' and '.join(keys)}"
