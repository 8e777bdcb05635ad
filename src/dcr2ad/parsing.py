"""The form of a response: a trajectory written as text, and text read back as a trajectory or `Unparsed`.

    <knowledge>TITLE: one sentence why it applies</knowledge><think>reasoning</think><answer>B</answer>

This module alone writes and reads that form, and alone turns letters into indices. It never guesses: what cannot be read for
certain is `Unparsed`. Knows nothing about models, prompts or scoring.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from dcr2ad.types import Trajectory, Unparsed

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Letter of each option index."""

KNOWLEDGE_OPENING = "<knowledge>"
ANSWER_OPENING = "<answer>"
KNOWLEDGE_CLOSING = "</knowledge>"
ANSWER_CLOSING = "</answer>"

_TAGS = re.compile(r"</?\s*(?:knowledge|think|answer)\s*/?>", re.IGNORECASE)
_LETTER = re.compile(r"^\W*([A-Z])\W*$|^\W*([A-Z])\s*[.):\-]\s+\S", re.IGNORECASE)
_STATED = re.compile(r"\b(?:answer|option|choice)(?:\s+is)?\s*[:=]?\s*\(?([A-Z])\b(?!')", re.IGNORECASE)
_ALONE = re.compile(r"(?<![\w'])([A-Z])(?![\w'])")


class Segments(NamedTuple):
    """A response cut at the seams of y = (p, c, A); joined they are the response."""

    path: str
    """p: the knowledge tag."""
    reasoning: str
    """c: the think tag."""
    answer: str
    """A: the answer tag."""


def response_segments(trajectory: Trajectory) -> Segments:
    """Write a trajectory, in its three segments.

    A trajectory without entry and reasoning is a direct answer: its first two segments are empty.
    """
    path = reasoning = ""
    if trajectory.entry:
        why = f": {_plain(trajectory.why)}" if trajectory.why else ""
        path = f"{KNOWLEDGE_OPENING}{_plain(trajectory.entry)}{why}{KNOWLEDGE_CLOSING}"
    if trajectory.reasoning:
        reasoning = f"<think>{_plain(trajectory.reasoning)}</think>"
    return Segments(path, reasoning, f"{ANSWER_OPENING}{LETTERS[trajectory.answer]}{ANSWER_CLOSING}")


def write_response(trajectory: Trajectory) -> str:
    """Write a trajectory as one response; `parse_response` reads it back."""
    return "".join(response_segments(trajectory))


def parse_response(text: str, options: Sequence[str]) -> Trajectory | Unparsed:
    """Read a response; never raises.

    Order of the tags, white space and letter case around them do not matter. Without an answer tag the whole text is read
    by `read_answer`.

    Args:
        text: the response as written.
        options: option texts in the order shown.
    """
    tagged = {tag: _content(text, tag) for tag in ("knowledge", "think", "answer")}
    raw_answer = tagged["answer"]
    answer = read_answer(text if raw_answer is None else raw_answer, options)
    if isinstance(answer, Unparsed):
        return answer
    entry, _, why = (tagged["knowledge"] or "").partition(":")
    return Trajectory(entry=_plain(entry), why=_plain(why), reasoning=_plain(tagged["think"] or ""), answer=answer)


def read_answer(text: str, options: Sequence[str]) -> int | Unparsed:
    """The `strict` reading of an answer: an unambiguous letter, else a unique option text, else `Unparsed`.

    Letters count when the text is a letter ("B", "(b)"), begins with one ("B. A scratch"), states one ("the answer is B"), or
    holds just one stand-alone capital that is an option's letter.
    """
    body = _plain(text)
    if not body:
        return Unparsed(reason="the response is empty")
    known = LETTERS[: len(options)]
    opening = _LETTER.match(body)
    if opening:
        letter = (opening.group(1) or opening.group(2)).upper()
        if letter in known:
            return known.index(letter)
    exact = [i for i, option in enumerate(options) if _key(option) == _key(body)]
    if len(exact) == 1:
        return exact[0]
    stated = {m.upper() for m in _STATED.findall(body) if m.upper() in known}
    if len(stated) == 1:
        return known.index(stated.pop())
    alone = {m for m in _ALONE.findall(body) if m in known and not (m in "AI" and _is_word(body, m))}
    if len(alone) == 1 and not stated:
        return known.index(alone.pop())
    if alone or stated:
        return Unparsed(reason=f"several letters in the response: {', '.join(sorted(alone | stated))}")
    named = [i for i, option in enumerate(options) if _key(option) and f" {_key(option)} " in f" {_key(body)} "]
    longest = [i for i in named if not any(j != i and _key(options[i]) in _key(options[j]) for j in named)]
    if len(longest) == 1:
        return longest[0]
    return Unparsed(reason="several options named" if named else "no option letter and no option text in the response")


def read_answer_official(text: str, options: Sequence[str]) -> int | Unparsed:
    """MMAD's own reading: the last stand-alone capital A to E, else the closest option text.

    Kept for comparison under the name ``mmad-official``; it always answers something ("I cannot see the image" reads as the
    nearest option). `Unparsed` only where the letter found is not an option's.
    """
    from difflib import get_close_matches

    letters = re.findall(r"\b([A-E])\b", text)
    if letters:
        index = LETTERS.index(letters[-1])
        return index if index < len(options) else Unparsed(reason=f"letter {letters[-1]} is no option")
    closest = get_close_matches(text, list(options), n=1, cutoff=0.0)
    return list(options).index(closest[0]) if closest else Unparsed(reason="no option is close")


def _content(text: str, tag: str) -> str | None:
    """Content of the last complete tag, or of an opened one that the end of the text cut off."""
    found = re.findall(rf"<\s*{tag}\s*>(.*?)<\s*/\s*{tag}\s*>", text, re.IGNORECASE | re.DOTALL)
    if found:
        return str(found[-1])
    opened = re.search(rf"<\s*{tag}\s*>((?:(?!<\s*/?\s*(?:knowledge|think|answer)\s*>).)*)", text, re.IGNORECASE | re.DOTALL)
    return opened.group(1) if opened else None


def _is_word(body: str, letter: str) -> bool:
    """Whether "A" or "I" stands as an English word: followed by a lower-case word ("A scratch", "I see")."""
    return re.search(rf"(?<![\w']){letter}\s+[a-z]", body) is not None


def _plain(text: str) -> str:
    """Text without tags of the form and with single blanks."""
    return " ".join(_TAGS.sub(" ", text).split())


def _key(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))
