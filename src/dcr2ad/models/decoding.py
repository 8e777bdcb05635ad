"""Decoding many sequences together, each a row of one batch with the keys and values of its own prompt.

Reads what reading the prompts left behind; returns new tokens. On a CPU a step costs the reading of all weights, whether it
decodes one sequence or thirty. Rows stay as they are between calls, so that a response that is written part by part is
never read again: what its next part adds is fed, and nothing else. Of a single greedy sequence several tokens are guessed, and
confirmed in one step (`dcr2ad.models.drafting`). Knows nothing about prompts or images. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from dcr2ad.models.drafting import Drafts
from dcr2ad.models.kept import Key


@dataclass
class Start:
    """A sequence whose prompt was read.

    Attributes:
        layers: keys and values of each layer, each of shape ``(1, heads, length, width)``; sequences read together share them.
        places: places of the prompt's tokens within them.
        keys: the prompt's tokens.
        position: position of the next token.
        logits: logits of the next token, shape ``(vocabulary,)``.
        seed: seed of the sequence's draws.
    """

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    places: Sequence[int]
    keys: Sequence[Key]
    position: int
    logits: torch.Tensor
    seed: int = 0

    @property
    def token_bytes(self) -> int:
        """Bytes that keys and values of one token take."""
        return sum(tensor[0, :, 0].nbytes for pair in self.layers for tensor in pair)


Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Any, int], torch.Tensor]
"""Ids ``(N, T)``, positions ``(N, T)``, mask ``(N, T, cached)``, cache, k -> logits of the last k, ``(N, k, vocabulary)``."""


class Rows:
    """Sequences of unequal length as rows of one batch.

    A row's tokens lie in its first columns. Rows can change places, so that those still being written are the first ones.

    Args:
        starts: the sequences.
        room: columns to begin with; `feed` makes more where they do not suffice.
        forward: one forward of the model.
    """

    def __init__(self, starts: Sequence[Start], room: int, forward: Forward) -> None:
        self.keys = [list(start.keys) for start in starts]
        self.order = list(range(len(starts)))
        self._offsets = torch.tensor([start.position - len(start.keys) for start in starts])
        self._forward = forward
        self._cache = DynamicCache()
        self._cache.layers = [_Layer(starts, depth, room) for depth in range(len(starts[0].layers))]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def places(self) -> list[int]:
        """For each sequence the row it stands in."""
        return sorted(range(len(self)), key=self.order.__getitem__)

    @property
    def nbytes(self) -> int:
        """Bytes its keys and values take."""
        return sum(layer.nbytes for layer in self._cache.layers)

    def rewind(self, sequence: int, length: int) -> None:
        """Forget a sequence's tokens beyond the first `length`."""
        del self.keys[sequence][length:]

    def swap(self, one: int, other: int) -> None:
        """Let two rows change places."""
        if one != other:
            self.order[one], self.order[other] = self.order[other], self.order[one]
            width = max(len(self.keys[self.order[row]]) for row in (one, other))
            for layer in self._cache.layers:
                layer.swap(one, other, width)

    def feed(self, tails: Sequence[Sequence[int]], *, last: int = 1) -> torch.Tensor:
        """Append at least one token to each of the first rows; returns the logits behind the last ones.

        Args:
            tails: tokens for each.
            last: behind how many tokens logits are wanted.

        Returns:
            shape ``(len(tails), last, vocabulary)``.
        """
        count, longest = len(tails), max(map(len, tails))
        fed = self.order[:count]
        ends = [len(self.keys[sequence]) + len(tail) for sequence, tail in zip(fed, tails, strict=True)]
        width = max(ends)
        ids, columns = torch.zeros(2, count, longest, dtype=torch.long)
        padding = torch.ones(count, longest, dtype=torch.bool)
        for row, (end, tail) in enumerate(zip(ends, tails, strict=True)):
            first = longest - len(tail)
            ids[row, first:] = torch.tensor(list(tail))
            columns[row, first:] = torch.arange(end - len(tail), end)
            padding[row, first:] = False
        positions = columns + self._offsets[fed][:, None]
        mask = torch.arange(width) <= columns[..., None]
        for layer in self._cache.layers:
            layer.expect(columns, padding, width)
        logits = self._forward(ids, positions, mask, self._cache, last)
        for sequence, tail in zip(fed, tails, strict=True):
            self.keys[sequence].extend((token, "") for token in tail)
        return logits


def decode(
    rows: Rows,
    logits: torch.Tensor,
    *,
    max_new_tokens: int,
    ends: Callable[[list[int]], bool],
    temperature: float = 0.0,
    seeds: Sequence[int] = (),
    drafts: Drafts | None = None,
) -> list[tuple[list[int], bool]]:
    """Write all sequences on, together.

    Args:
        rows: the sequences.
        logits: next-token logits of each row, shape ``(rows, vocabulary)``.
        max_new_tokens: limit on new tokens of each sequence.
        ends: whether new tokens of a sequence, the newest last, end it.
        temperature: 0 for greedy; else each sequence draws from its own seeded source, so that what it is decoded with
            decides nothing.
        seeds: seed of each sequence; needed for a temperature.
        drafts: what was written lately, to guess a single greedy sequence from; it is told what is written.

    Returns:
        for each sequence its new tokens, and whether the last of them ended it.
    """
    if len(rows) == 1 and temperature <= 0 and drafts is not None:
        return [_confirm(rows, logits, max_new_tokens, ends, drafts)]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds] if temperature > 0 else []
    written: list[list[int]] = [[] for _ in range(len(rows))]
    ended = [False] * len(rows)
    active = len(rows)
    for number in range(max_new_tokens):
        writing = rows.order[:active]
        chosen = _choose(logits, [generators[s] for s in writing] if generators else [], temperature)
        for sequence, token in zip(writing, chosen, strict=True):
            written[sequence].append(token)
            ended[sequence] = ends(written[sequence])
        for row in reversed(range(active)):
            if ended[rows.order[row]]:
                active -= 1
                rows.swap(row, active)
        if not active or number + 1 == max_new_tokens:
            break
        logits = rows.feed([[written[sequence][-1]] for sequence in rows.order[:active]])[:, 0]
    return list(zip(written, ended, strict=True))


def _confirm(
    rows: Rows, logits: torch.Tensor, limit: int, ends: Callable[[list[int]], bool], drafts: Drafts
) -> tuple[list[int], bool]:
    """Write one sequence greedily; a step reads the last token and the guesses behind it, and keeps those that come true."""
    begun = len(rows.keys[0])
    lookup = drafts.behind([token for token, image in rows.keys[0] if not image])
    written: list[int] = []
    guesses: list[int] = []
    ended = False
    while True:
        found = [int(i) for i in logits.argmax(-1)]
        true = next((i for i, guess in enumerate(guesses) if found[i] != guess), len(guesses))
        before = len(written)
        for token in found[: true + 1]:
            written.append(token)
            ended = ends(written)
            if ended or len(written) == limit:
                drafts.remember(written)
                return written, ended
        lookup.extend(written[before:])
        # All that was written is in the row but for the last token, which no step has read yet.
        rows.rewind(0, begun + len(written) - 1)
        guesses = lookup.guess()[: limit - len(written)]
        logits = rows.feed([[written[-1], *guesses]], last=1 + len(guesses))[0]


def _choose(logits: torch.Tensor, generators: Sequence[torch.Generator], temperature: float) -> list[int]:
    if temperature <= 0:
        return [int(i) for i in logits.argmax(-1)]
    weights = (logits.float() / temperature).softmax(-1).cpu()
    return [int(torch.multinomial(row, 1, generator=generator)) for row, generator in zip(weights, generators, strict=True)]


class _Layer(DynamicLayer):
    """A cache layer of rows of unequal length; a step writes into each row behind that row's own end.

    The last column takes the padding of steps that feed rows unequally; no token looks there.
    """

    def __init__(self, starts: Sequence[Start], depth: int, room: int) -> None:
        super().__init__()
        self.lazy_initialization(*starts[0].layers[depth])
        self._all: list[torch.Tensor] = []
        for which in range(2):
            first = starts[0].layers[depth][which]
            # Zeros, not whatever lies in memory: a masked place still enters a product with zero.
            buffer = first.new_zeros(len(starts), first.shape[1], room, first.shape[3])
            for row, start in enumerate(starts):
                buffer[row, :, : len(start.places)] = start.layers[depth][which][0, :, start.places]
            self._all.append(buffer)
        self._show(len(starts), room)

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return sum(buffer.nbytes for buffer in self._all)

    def expect(self, columns: torch.Tensor, padding: torch.Tensor, width: int) -> None:
        """Say where the next tokens go, shape ``(N, T)`` each, and how many columns are then in use."""
        room = self._all[0].shape[2]
        if width >= room:
            more = [*self._all[0].shape[:2], width + width // 4 - room, self._all[0].shape[3]]
            self._all = [torch.cat([buffer, buffer.new_zeros(more)], dim=2) for buffer in self._all]
        self._columns = columns.masked_fill(padding, self._all[0].shape[2] - 1).to(self.device)
        self._rows = torch.arange(len(columns), device=self.device)[:, None]
        self._show(len(columns), width)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new keys and values behind each row's old ones; returns all of them."""
        for buffer, new in zip(self._all, (key_states, value_states), strict=True):
            buffer[self._rows, :, self._columns] = new.transpose(1, 2)
        return self.keys, self.values

    def swap(self, one: int, other: int, width: int) -> None:
        """Let two rows' first `width` columns change places."""
        for buffer in self._all:
            kept = buffer[one, :, :width].clone()
            buffer[one, :, :width] = buffer[other, :, :width]
            buffer[other, :, :width] = kept

    def _show(self, count: int, width: int) -> None:
        self.keys, self.values = (buffer[:count, :, :width] for buffer in self._all)
