"""Object names to the placeholder ``[object]``, and back.

Reads and returns text. Knows nothing about entries, files or models.
"""

from __future__ import annotations

import re

from dcr2ad.knowledge.objects import plural, singular, spoken

PLACEHOLDER = "[object]"

_PLURAL_BEFORE = re.compile(r"\b(these|those|both|many|several|multiple|various|all|numerous|few|two|three|four)(\s+[\w-]+)?\s+$", re.I)
_SINGULAR_BEFORE = re.compile(r"\b(a|an|this|that|each|every|one|single|another|any|per)(\s+[\w-]+)?\s+$", re.I)
_INSIDE_PHRASE = re.compile(r"\b(of|in|on|from|with|within|across|along|to|for|at|over|by|between)\s+(the\s+)?([\w-]+\s+)?$", re.I)
_PLURAL_VERB = re.compile(r"^\s+(are|were|have|exhibit|show|appear|display|consist|look|do|come|feature|lie|sit)\b", re.I)


def name_object(text: str, object_name: str) -> str:
    """The text with the object's name for every placeholder, in readable grammar.

    "a" and "an" follow the name; the number follows the words around the placeholder (``these``, ``an``, a plural verb).

    >>> name_object("An [object] is whole. Cracks cross the [object]'s face.", "magnetic_tile")
    "A magnetic tile is whole. Cracks cross the magnetic tile's face."
    """
    name = spoken(object_name)
    pieces = text.split(PLACEHOLDER)
    out = pieces[0]
    for after in pieces[1:]:
        word = _inflected(name, out, after)
        if not out.strip() or re.search(r"[.!?:>]\s+$", out):
            word = word[:1].upper() + word[1:]
        out = re.sub(r"\b([Aa])n?(\s+)$", lambda match: _article(match, word), out) + word + after
    return out


def _inflected(name: str, before: str, after: str) -> str:
    """The name in the number its place asks for."""
    if _SINGULAR_BEFORE.search(before):
        return singular(name)
    if _PLURAL_BEFORE.search(before):
        return plural(name)
    if _PLURAL_VERB.match(after) and not _INSIDE_PHRASE.search(before):
        return plural(name)
    return name


def _article(match: re.Match[str], word: str) -> str:
    """"a" or "an" before a word, keeping its case and blank."""
    vowel = re.match(r"(?!u(sb|ni|_)|one)[aeiou]", word, re.I)
    return match.group(1) + ("n" if vowel else "") + match.group(2)
