"""Object names to the placeholder ``[object]``, and back (Section 3.3, Figure 3).

Reads and returns text. Knows nothing about entries, files or models.

Rewriting replaces every mention of the object, singular, plural, possessive, hyphenated, with underscores, capitalised or as
part of a compound, by the bare placeholder, as Figure 3 prints it ("The examined [object] exhibit multiple defects"): number
and the words around it stay. The article before it becomes "an", since the placeholder is read "an object".
"""

from __future__ import annotations

import re
from functools import cache

from dcr2ad.knowledge.objects import look_up, normalise, plural, singular, spoken

PLACEHOLDER = "[object]"

_NOUN_ONLY = {"can": r"(?<=\bthe )|(?<=\ba )|(?<=\beach )|(?<=\bthis )|(?<=\bof )|(?<=\bdrink )|(?<=\bbeverage )"}
"""Names that are also everyday verbs: replaced in the singular only after these words."""

_NOT_NAMES = frozenset({"applicable", "impracticable", "textile", "textiles", "packaged", "screwdriver", "screwdrivers"})
"""Words that begin or end like an object's name without naming it."""


def rewrite(text: str, object_name: str) -> str:
    """The text with the placeholder for every mention of the object (Section 3.3).

    >>> rewrite("A zipper is good. The zippers' teeth (Zipper-like) shine.", "zipper")
    "An [object] is good. The [object]'s teeth ([object]-like) shine."
    """
    out = _pattern(normalise(object_name)).sub(PLACEHOLDER, text)
    out = re.sub(r"\[object\](?:[\s_-]*\(?\[object\]\)?)+", PLACEHOLDER, out)
    out = re.sub(r"(?<!['‘])\[object\](['’])(?![a-z'’])(?=\s)", r"[object]\1s", out)
    return re.sub(r"\b([Aa])\s+(?=\[object\])", lambda match: f"{match.group(1)}n ", out)


def names(object_name: str) -> tuple[str, ...]:
    """What a text may call the object, in the singular and with blanks, longest first: its name and the table's words."""
    row = look_up(object_name)
    raw = spoken(normalise(object_name)).lower()
    found = {raw, singular(raw), *(row.words if row else ())}
    return tuple(sorted(found - {""}, key=lambda name: (-len(name), name)))


def leaks(text: str, object_name: str) -> list[str]:
    """Words of the text that still name the object, in order; empty when the text is object-agnostic.

    Looks at words, not at the patterns that `rewrite` uses. A word counts that is one of the object's names, singular or
    plural, or begins or ends with a name of six letters or more ("toothbrushing"); so do two words that make up a name.

    >>> leaks("The zip-fastener is a [object].", "zipper"), leaks("A can can leak.", "drink_can")
    (['zip'], ['can'])
    """
    words = re.findall(r"[a-z0-9]+", text.lower().replace(PLACEHOLDER, " . "))
    singles = {name for name in names(object_name) if " " not in name}
    compounds = {name.replace(" ", "") for name in names(object_name)}
    long_names = tuple(name for name in compounds if len(name) >= 6)
    found = []
    for position, word in enumerate(words):
        base = singular(word)
        pair = word + singular(words[position + 1]) if position + 1 < len(words) else ""
        named = base in singles or base in compounds or pair in compounds
        if word in _NOUN_ONLY and position and words[position - 1] not in ("the", "a", "each", "this", "of"):
            named = False
        if named or (word not in _NOT_NAMES and long_names and (word.startswith(long_names) or word.endswith(long_names))):
            found.append(word)
    return found


@cache
def _pattern(object_name: str) -> re.Pattern[str]:
    """Matches any of the object's names, singular or plural, its parts joined by blank, hyphen, underscore or nothing."""
    alternatives = []
    for name in names(object_name):
        for form in sorted({name, plural(name)}, key=len, reverse=True):
            body = r"[\s_-]*".join(re.escape(part) for part in form.split())
            guard = _NOUN_ONLY.get(form)
            alternatives.append(f"(?:{guard}){body}(?!\\s+(?:be|also|have|lead|not)\\b)" if guard else body)
    number = r"(?:_?\d+)?" if re.search(r"\d$", object_name) else ""
    return re.compile(rf"(?<![A-Za-z])(?:{'|'.join(alternatives)}){number}(?![A-Za-z])", re.IGNORECASE)


_PLURAL_BEFORE = re.compile(
    r"\b(these|those|both|many|several|multiple|various|all|numerous|few|two|three|four)(\s+[\w-]+){0,2}\s+$", re.IGNORECASE
)
_SINGULAR_BEFORE = re.compile(r"\b(a|an|this|that|each|every|one|single|another|any|per)(\s+[\w-]+){0,2}\s+$", re.IGNORECASE)
_IN_PHRASE = re.compile(
    r"\b(of|in|on|from|with|within|across|along|to|for|at|over|by|between)\s+(the\s+)?([\w-]+\s+)?$", re.IGNORECASE
)
_PLURAL_VERB = re.compile(
    r"^\s+(are|were|have|exhibit|show|appear|display|consist|look|do|come|feature|lie|sit)\b", re.IGNORECASE
)
_VOWEL_SOUND = re.compile(r"(?!u[sn]|u\b|one|eu)[aeiou]|[FHLMNRSX][A-Z]")
_SENTENCE_END = re.compile(r"[.!?>]\s+$|<$")


def name_object(text: str, object_name: str) -> str:
    """The text with the object's name for every placeholder, in readable grammar; the inverse of `rewrite` for prompts.

    "a" and "an" follow the name; the number follows the words around the placeholder ("these", "an", a plural verb).

    >>> name_object("An [object] is whole. Cracks cross the [object]'s face.", "magnetic_tile")
    "A magnetic tile is whole. Cracks cross the magnetic tile's face."
    >>> name_object("The examined [object] exhibit defects. An [object] is torn.", "usb")
    'The examined USBs exhibit defects. A USB is torn.'
    """
    name = spoken(object_name) or "object"
    first, *rest = text.split(PLACEHOLDER)
    out = first
    for after in rest:
        word = _inflected(name, out, after)
        if not out.strip() or _SENTENCE_END.search(out):
            word = word[:1].upper() + word[1:]
        ending = "n" if _VOWEL_SOUND.match(word) else ""
        out = re.sub(r"\b([Aa])n?(?=\s+$)", rf"\g<1>{ending}", out) + word + after
    return out


def _inflected(name: str, before: str, after: str) -> str:
    """The name in the number its place asks for."""
    if after.startswith("-") or _SINGULAR_BEFORE.search(before):
        return singular(name)
    if _PLURAL_BEFORE.search(before) or (_PLURAL_VERB.match(after) and not _IN_PHRASE.search(before)):
        return plural(name)
    return name
