"""Finds the entries whose words answer a query: BM25 with a precomputed inverted index.

Reads `KnowledgeEntry` records, returns positions and scores. Knows nothing about files, labels or models. The paper
routes with the model itself; search by words is not in the paper and serves people, near neighbours and baselines.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from dcr2ad.types import KnowledgeEntry

K1, B = 1.2, 0.6
"""Saturation and length correction of BM25; the usual values, B a little lower because entries are of like length."""

_WORD = re.compile(r"[a-z0-9]+")
_STOP_WORDS = """
a an and are as at be been but by can for from has have if in into is it its no not of on one or that the their them there
these this those to was were where which while with without object
"""
_STOP = frozenset(_STOP_WORDS.split())
_SPELLING = {"color": "colour", "colors": "colour", "discoloration": "discolour", "gray": "grey", "center": "centre"}
_FIELDS = (("title", 3), ("category", 3), ("aliases", 2), ("cues", 2), ("text", 1), ("place", 1))
"""Fields searched and how often each of their words counts."""


def tokens(text: str) -> list[str]:
    """Lower-case word stems of `text`, stop words and the placeholder left out, in order.

    >>> tokens("Dark round holes in the [object] surface")
    ['dark', 'round', 'hole', 'surfac']
    """
    return [stem(word) for word in _WORD.findall(text.lower()) if word not in _STOP]


def stem(word: str) -> str:
    """A crude stem that joins singular, plural, ``-ed`` and ``-ing``; British spelling."""
    word = _SPELLING.get(word, word)
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 4 and not word.endswith("ss"):
            word = word[: -len(ending)]
            break
    if len(word) > 4 and word[-1] == word[-2]:
        return word[:-1]
    return word[:-1] if len(word) > 4 and word.endswith("e") else word


_MATERIALS = {
    "metal": "metal",
    "steel": "metal",
    "aluminium": "metal",
    "polymer": "polymer",
    "plastic": "polymer",
    "glass": "glass",
    "wood": "wood",
    "wooden": "wood",
    "ceramic": "ceramic",
    "porcelain": "ceramic",
    "textile": "textile",
    "fabric": "textile",
    "food": "food",
}
"""Words that name a material, and its domain."""
NAMED_MATERIAL, OTHER_MATERIAL = 1.5, 0.5
"""Factors on built-in entries of a material's domain when the query names that material, or another one."""


class SearchIndex:
    """Inverted index: for each stem the entries that hold it and what it adds to their score."""

    def __init__(self, entries: Sequence[KnowledgeEntry]) -> None:
        counts = [_weighted_counts(entry) for entry in entries]
        lengths = np.array([sum(count.values()) for count in counts], dtype=np.float64)
        mean = lengths.mean() if len(lengths) else 1.0
        self._size = len(counts)
        self._domains = np.array([entry.category if entry.source == "builtin" else "" for entry in entries])
        postings: dict[str, list[int]] = {}
        for position, count in enumerate(counts):
            for word in count:
                postings.setdefault(word, []).append(position)
        self._postings: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for word, positions in postings.items():
            where = np.array(positions)
            often = np.array([counts[position][word] for position in positions], dtype=np.float64)
            rarity = np.log1p((self._size - len(positions) + 0.5) / (len(positions) + 0.5))
            damping = K1 * (1 - B + B * lengths[where] / mean)
            self._postings[word] = (where, rarity * often * (K1 + 1) / (often + damping))

    def scores(self, words: Iterable[str]) -> np.ndarray:
        """BM25 score of every entry for the given stems; zero where no stem occurs."""
        total = np.zeros(self._size)
        for word in words:
            if word in self._postings:
                where, gain = self._postings[word]
                total[where] += gain
        return total

    def top(self, query: str, k: int) -> list[tuple[int, float]]:
        """Positions and scores of the at most `k` best entries with a score above zero, ties in base order.

        A material named in the query only says where to look: it is not matched itself unless nothing else is asked for.
        """
        asked = _WORD.findall(query.lower())
        named = {_MATERIALS[word] for word in asked if word in _MATERIALS}
        words = tokens(" ".join(word for word in asked if word not in _MATERIALS)) or tokens(query)
        scores = self.scores(words)
        if named:
            others = [domain for domain in _MATERIALS.values() if domain not in named]
            scores = scores * np.where(np.isin(self._domains, others), OTHER_MATERIAL, 1.0)
            scores = scores * np.where(np.isin(self._domains, list(named)), NAMED_MATERIAL, 1.0)
        best = np.argsort(-scores, kind="stable")[: max(k, 0)]
        return [(int(position), float(scores[position])) for position in best if scores[position] > 0]


def _weighted_counts(entry: KnowledgeEntry) -> Counter[str]:
    """How often each stem counts in an entry, by field."""
    counts: Counter[str] = Counter()
    for field, weight in _FIELDS:
        value = getattr(entry, field)
        for word in tokens(value if isinstance(value, str) else " ".join(value)):
            counts[word] += weight
    return counts
