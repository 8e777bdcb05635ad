"""Whether the responses of preference pairs tell by their texts alone which one is chosen.

Reads `PreferencePair`s, never an image or question; returns how often a reader of both responses is right. Length, style and
position leaks are what it would find. Not in the paper.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from dcr2ad.blind import shown_part
from dcr2ad.choice_model import SLOTS, cross_validate, group_folds
from dcr2ad.knowledge.search import tokens
from dcr2ad.parsing import write_response
from dcr2ad.types import PreferencePair, Record

PAIRS_ALLOWED = 60.0
"""Per cent of pairs up to which telling chosen from rejected by their texts passes."""
FEWEST_PAIRS = 40
"""Pairs below which the figure says nothing."""


class PairReading(Record):
    """How often a reader of the two responses alone, without image or question, tells chosen from rejected."""

    pairs: int
    """Pairs read."""
    accuracy: float
    """In per cent, on images it was not trained on; 50 is chance."""
    error: float
    """Standard error of the accuracy."""
    length_alone: float
    """Per cent of pairs whose chosen response is the longer one, equal ones counted half."""
    allowed: float = PAIRS_ALLOWED
    """Accuracy up to which length, style and wording count as no leak."""

    @property
    def verdict(self) -> str:
        """``too few``, ``leaks`` or ``passes``."""
        if self.pairs < FEWEST_PAIRS:
            return "too few"
        return "leaks" if self.accuracy > self.allowed else "passes"


def read_pairs(pairs: Sequence[PreferencePair], *, seed: int = 0) -> PairReading | None:
    """Train and test a reader that is shown both responses of a pair, unordered, and must name the chosen one.

    It sees words, neighbouring words and which is longer. A pair's two responses and all pairs about one image stay on one side
    of each split.

    Args:
        pairs: preference pairs.
        seed: seed of the folds.

    Returns:
        None where there are fewer than two images.
    """
    texts = [[write_response(trajectory) for trajectory in (pair.chosen, pair.rejected)] for pair in pairs]
    folds = group_folds([shown_part(pair.question) for pair in pairs], seed)
    if folds is None:
        return None
    slots = [[_response_slots(text, other) for text, other in (both, both[::-1])] for both in texts]
    features = np.zeros((len(pairs), 2, max(len(s) for row in slots for s in row)), dtype=np.int32)
    for number, row in enumerate(slots):
        for which, found in enumerate(row):
            features[number, which, : len(found)] = found
    right = cross_validate(features, np.ones(features.shape[:2], dtype=bool), np.zeros(len(pairs), dtype=np.int64), folds)
    longer = [0.5 + 0.5 * np.sign(len(chosen) - len(rejected)) for chosen, rejected in texts]
    return PairReading(
        pairs=len(pairs),
        accuracy=100 * float(right.mean()),
        error=100 * float(right.std() / np.sqrt(len(right))),
        length_alone=100 * float(np.mean(longer)),
    )


def _response_slots(text: str, other: str) -> list[int]:
    words = tokens(text)
    names = {f"word {word}" for word in words} | {f"next {a} {b}" for a, b in pairwise(words)}
    names |= {f"length {np.sign(len(text) - len(other))}"}
    return [1 + zlib.crc32(name.encode()) % (SLOTS - 1) for name in sorted(names)]
