"""Guesses at what a model writes next, from what it wrote before: looked up, and free.

Reads tokens; returns tokens. A reader of guesses (`dcr2ad.models.decoding`) has the model confirm several in one forward, and
drops what it would not have written, so greedy decoding comes to the same tokens in fewer steps; after prompt-lookup decoding
(Saxena 2023), with the last responses beside the prompt, since diagnoses are much alike. Not in the paper.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

AHEAD = 5
"""Tokens guessed at a time; on a CPU each costs a tenth to a seventh of the step it may save."""
SIZES = (8, 4, 2, 1)
"""Lengths of the last tokens that are looked up, the longer first."""
KEPT = 1500
"""Tokens of earlier responses kept: about twenty."""


class Drafts:
    """What was written lately."""

    def __init__(self) -> None:
        self._written: deque[int] = deque(maxlen=KEPT)

    def remember(self, tokens: Iterable[int]) -> None:
        """Keep a response; the oldest go."""
        self._written.extend(tokens)

    def behind(self, prompt: Sequence[int]) -> Lookup:
        """The lookup for one response: over what was written lately, then the prompt, then the response so far."""
        return Lookup([*self._written, *prompt])


class Lookup:
    """Where the last tokens of a text stood before.

    Args:
        tokens: the text so far.
    """

    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}
        self._open: list[tuple[int, ...]] = []
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Go on with the text."""
        for token in tokens:
            # The tokens before this one have a successor now, so from now on they can be found.
            self._ends.update(dict.fromkeys(self._open, len(self._tokens)))
            self._tokens.append(token)
            self._open = [tuple(self._tokens[-size:]) for size in SIZES if len(self._tokens) >= size]

    def guess(self) -> list[int]:
        """Up to `AHEAD` tokens that followed where the last tokens stood before, the latest place; none where they did not."""
        end = next((self._ends[last] for last in self._open if last in self._ends), None)
        return [] if end is None else self._tokens[end : end + AHEAD]
