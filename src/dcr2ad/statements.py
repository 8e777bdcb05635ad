"""What entries and places say in a few words, as options of questions; and whether two texts say much the same.

Reads `KnowledgeEntry`s; returns strings. Knows nothing about questions, samples or masks. Not in the paper.
"""

from __future__ import annotations

from dcr2ad.knowledge.agnostic import name_object
from dcr2ad.knowledge.search import tokens
from dcr2ad.places import PLACES
from dcr2ad.types import KnowledgeEntry


def at_place(cell: int) -> str:
    """A cell's name with its preposition: ``at the top left``, ``in the centre``."""
    return f"{'in' if cell == 4 else 'at'} the {PLACES[cell]}"


def statement(entry: KnowledgeEntry, kind: str, object_name: str) -> str:
    """What an entry says of one kind, as an option's text; empty where it says nothing."""
    if kind == "title":
        return entry.title
    text = ", ".join(entry.cues[:2]) if kind == "cues" else entry.effect if kind == "effect" else entry.cause
    return capital(name_object(text, object_name))


_GENERIC = frozenset(
    tokens("surface part area region edge local small large deep circuit copper track board metal object defect")
)


def kind_words(entry: KnowledgeEntry) -> frozenset[str]:
    """Stems of the words an entry's kind of defect goes by: of its title and of its aliases."""
    names = " ".join((entry.title, *(alias.rpartition("/")[2].replace("_", " ") for alias in entry.aliases)))
    return frozenset(word for word in tokens(names) if len(word) > 2) - _GENERIC


def alike(one: str, other: str, limit: float) -> bool:
    """Whether two texts share more than `limit` of the shorter one's words."""
    a, b = set(tokens(one)), set(tokens(other))
    return len(a & b) > limit * max(1, min(len(a), len(b)))


def capital(text: str) -> str:
    """The text with a capital at its beginning; the rest stays."""
    return text[:1].upper() + text[1:]
