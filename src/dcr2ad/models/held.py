"""A decoder held to given continuations: which it would write, were nothing else allowed.

Reads token ids and the log-probabilities a model gives them; returns log-probabilities among the continuations. Each token's is
normalised over those with which some continuation goes on. Where a single one is left its end is certain and need not be
read: a title that ends in a rare word does not lose by it. Pure numbers: knows nothing about models, titles or knowledge. Not
in the paper.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np


def open_parts(continuations: Sequence[Sequence[int]]) -> list[list[int]]:
    """The beginning of each continuation up to the token behind which no other one goes along; at least one token."""
    going_on = Counter(tuple(tokens[:end]) for tokens in continuations for end in range(1, len(tokens) + 1))
    ends = (next((e for e in range(1, len(t)) if going_on[tuple(t[:e])] == 1), len(t)) for t in continuations)
    return [list(tokens[:end]) for tokens, end in zip(continuations, ends, strict=True)]


def held_logprobs(parts: Sequence[Sequence[int]], logprobs: Sequence[Sequence[float]]) -> list[float]:
    """Log-probability of each continuation among all of them.

    Args:
        parts: what `open_parts` gave.
        logprobs: the model's own of each token of each part, natural.

    Returns:
        one a continuation; their exponentials sum to one, where none begins another.
    """
    beside: dict[tuple[int, ...], dict[int, float]] = defaultdict(dict)
    for tokens, values in zip(parts, logprobs, strict=True):
        for place, (token, value) in enumerate(zip(tokens, values, strict=True)):
            beside[tuple(tokens[:place])][token] = value
    whole = {beginning: float(np.logaddexp.reduce(list(found.values()))) for beginning, found in beside.items()}
    return [
        sum(value - whole[tuple(tokens[:place])] for place, value in enumerate(values))
        for tokens, values in zip(parts, logprobs, strict=True)
    ]
