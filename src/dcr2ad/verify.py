"""Statements of place, size and number in free text, each checked against the defect's mask (Appendix B.1).

Reads texts and `Geometry`; returns the statements that the mask denies. Knows nothing about models or where a text comes from.
The paper verifies annotations against pixel masks without saying how; the rules and thresholds here are ours.

A place holds where its cells have `SHARE` of the mask, or most of one of several defects; all places named of the mark
together must have `TOGETHER` of the mask, or its chief cell. A size holds within a factor `SLACK` of its class; a number where
the mask, with small gaps open or closed, has that many regions. What a clause says of the expert, denies, or quotes is not a
statement about the mark. "Near the rim" is checked against the part's outline where it is known, else against the picture's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from dcr2ad.geometry import Geometry
from dcr2ad.places import PLACES, named_cells
from dcr2ad.prompts import SIZES
from dcr2ad.types import Question, Subtask, Trajectory

SHARE = 0.15
"""Least share of the mask in a place that is named."""
TOGETHER = 1 / 3
"""Least share of the mask in all places named."""
SLACK = 2.0
"""Factor by which an area may lie outside its size word's class: masks of one defect by two annotators differ by as much."""
RIM = 1 / 6
"""Depth of the rim, as a share of the outline's shorter side."""

_UP_DOWN, _SIDES, _MID = "top|upper|bottom|lower", "left|right", "middle|centre|center|central"
_NOUN = "(?:hand )?(?:side|half|edge|corner|part|area|region|third|quarter|quadrant|portion|section|end)"
_PLACE = re.compile(
    rf"\b(?:(?:{_UP_DOWN}|{_MID})[ -](?:{_SIDES}|{_MID})|(?:{_SIDES})[ -](?:{_UP_DOWN})"
    rf"|(?:{_UP_DOWN}|{_SIDES}|{_MID})[ -]{_NOUN}"
    rf"|(?<=the )(?:{_UP_DOWN}|{_SIDES}|middle|centre|center)(?= *(?:[,.;:)]|$|of |and |or ))"
    rf"|(?:(?<=in the )|(?<=at the )|(?<=on the ))(?:{_UP_DOWN}|{_SIDES}|middle|centre|center)(?! (?:option|answer|letter|one))"
    rf"|(?<=at )(?:top|bottom)|(?<=, )(?:{_UP_DOWN})(?=[,.;]))\b",
    re.IGNORECASE,
)
_RIM = re.compile(
    r"\b(?:near|at|on|along|by|close to) (?:the|its|an) (?:\w+ )?(?:rim|edge|border|margin|outline)\b", re.IGNORECASE
)
_MARK = (
    r"(?:scratch|crack|pit|dent|hole|spot|stain|mark|defect|blemish|chip|line|blotch|speck|flaw|anomal(?:y|ies)|gouge|patch"
    r"|region)"
)
_SIZE = re.compile(
    rf"\b(tiny|minute|small|medium|large|big|huge)(?:[ -]sized)?"
    rf"(?=(?:,| and| or)? (?:[\w-]+,? ){{0,3}}{_MARK}|, [\w-]+(?:,| and| mark))",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    rf"\b(a single|single|only one|one|two|three|four|five|several|multiple|many|both)(?: [\w-]+)? {_MARK}(?:es|s)?\b",
    re.IGNORECASE,
)
_NUMBERS = {"a single": 1, "single": 1, "only one": 1, "one": 1, "two": 2, "both": 2, "three": 3, "four": 4, "five": 5}
_SAME = {"minute": "tiny", "big": "large", "huge": "large"}
_QUOTED = re.compile(r'"[^"]*"|“[^”]*”')
_CLAUSE = re.compile(r"[.;!?]\s|,\s*(?=(?:yet|but|and the|while|whereas)\b)|\b(?:yet|but|while|whereas)\b", re.IGNORECASE)
_THE_EXPERTS = re.compile(r"\b(?:hottest|hot spot|expert|reference)\b", re.IGNORECASE)
_DENIAL = re.compile(
    r"\b(?:no(?! doubt)|not(?! only)|nothing|never|none|without|neither|nor|rather than|instead of)\b|n't\b", re.IGNORECASE
)


def false_statements(text: str, geometry: Geometry, foreground: np.ndarray | None = None) -> list[str]:
    """What a text says of the mark that its mask denies, one phrase each.

    Args:
        text: free text about a defective part.
        geometry: of its mask.
        foreground: boolean outline of the part, of the mask's shape, for "near the rim"; None takes the picture's border.
    """
    found: list[str] = []
    said: set[int] = set()
    for clause in _clauses(text):
        for match in _stated(_PLACE, clause):
            cells = named_cells(match.group())
            said |= cells
            if not _covers(geometry, cells, SHARE):
                found.append(f"place {match.group()!r}: the mask is {_where(geometry)}")
        found += [
            f"place {m.group()!r}: the mask lies inside" for m in _stated(_RIM, clause) if not _at_rim(geometry, foreground)
        ]
        found += _false_sizes(clause, geometry)
        found += _false_numbers(clause, geometry)
    if said and not found and geometry.cell not in said and sum(geometry.shares[cell] for cell in said) < TOGETHER:
        found.append(f"the places named hold less than a third of the mask, which is {_where(geometry)}")
    return found


def check_response(question: Question, response: Trajectory, geometry: Geometry | None) -> list[str]:
    """What a response, or the option called right, says of the mark that the mask denies; empty without a mask."""
    if geometry is None:
        return []
    option = question.options[question.answer]
    # The why sentence quotes the entry's cues, whose sizes are the knowledge's: of it only places are statements.
    found = [phrase for phrase in false_statements(response.why, geometry) if "place" in phrase]
    found += false_statements(response.reasoning, geometry)
    if question.subtask is Subtask.LOCALIZATION or question.provenance.get("verified") == "mask":
        found += false_statements(f"It is at the {option}." if option in PLACES else option, geometry)
    return list(dict.fromkeys(found))


def _clauses(text: str) -> Iterator[str]:
    for clause in _CLAUSE.split(_QUOTED.sub(" ", text)):
        if clause and not _THE_EXPERTS.search(clause):
            yield clause.strip()


def _stated(pattern: re.Pattern[str], clause: str) -> Iterator[re.Match[str]]:
    """Matches that no denial before them in the clause takes back."""
    return (match for match in pattern.finditer(clause) if not _DENIAL.search(clause, 0, match.start()))


def _covers(geometry: Geometry, cells: frozenset[int], share: float) -> bool:
    if sum(geometry.shares[cell] for cell in cells) >= share:
        return True
    return any(sum(part[cell] for cell in cells) > 0.5 for part in geometry.parts)


def _false_sizes(clause: str, geometry: Geometry) -> Iterator[str]:
    bounds = [0.0, *(limit for _, limit in SIZES[:-1]), 1.0]
    words = [word for word, _ in SIZES]
    for match in _stated(_SIZE, clause):
        word = match.group(1).lower()
        index = words.index(_SAME.get(word, word))
        if not bounds[index] / SLACK <= geometry.extent <= bounds[index + 1] * SLACK:
            yield f"size {word!r}: the mask is {geometry.extent:.2%} of the picture"


def _false_numbers(clause: str, geometry: Geometry) -> Iterator[str]:
    fewest, most = geometry.regions
    for match in _stated(_NUMBER, clause):
        word = match.group(1).lower()
        wanted = _NUMBERS.get(word)
        holds = most >= 2 if wanted is None else fewest <= wanted <= most
        if not holds:
            yield f"number {word!r}: the mask has {fewest if fewest == most else f'{fewest} to {most}'} regions"


def _at_rim(geometry: Geometry, foreground: np.ndarray | None) -> bool:
    """Whether enough of the mask's points lie in the rim of the outline's bounding box."""
    top, left, bottom, right = 0.0, 0.0, 1.0, 1.0
    if foreground is not None and foreground.any():
        rows, columns = np.nonzero(foreground)
        height, width = foreground.shape
        top, bottom, left, right = (
            rows.min() / height,
            (rows.max() + 1) / height,
            columns.min() / width,
            (columns.max() + 1) / width,
        )
    depth = RIM * min(bottom - top, right - left)
    near = [min(y - top, bottom - y, x - left, right - x) <= depth for y, x in geometry.points]
    return sum(near) >= SHARE * len(near)


def _where(geometry: Geometry) -> str:
    held = sorted((cell for cell in range(9) if geometry.shares[cell] >= SHARE), key=lambda cell: -geometry.shares[cell])
    return "at " + " and ".join(f"{PLACES[cell]} ({geometry.shares[cell]:.0%})" for cell in held or [geometry.cell])
