"""Decoding many sequences in one row: sequences about several images, each behind its own image's cached prefix.

Reads key-value caches that prefixes left behind; returns new tokens. On a CPU a step costs the reading of all weights, whether
it decodes one sequence or twenty, so sequences of several images are decoded together: their caches lie one after the other
in one buffer, and a mask lets each sequence see its own prefix and itself only. Of a single greedy sequence several tokens are
guessed, and confirmed in one step (`dcr2ad.models.drafting`). Knows nothing about prompts or images. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from dcr2ad.models.drafting import AHEAD, Drafts


@dataclass
class Segment:
    """What one group of sequences left behind after its prompts were read.

    Attributes:
        layers: keys and values of each layer, each of shape ``(1, heads, length, width)``.
        seen: for each sequence the places within the segment it may look at.
        positions: for each sequence the position of its next token.
        logits: next-token logits of each sequence, shape ``(sequences, vocabulary)``.
        seeds: for each sequence the seed of its draws.
        texts: for each sequence the words of its prompt, to guess from.
    """

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    seen: list[Sequence[int]]
    positions: list[int]
    logits: torch.Tensor
    seeds: list[int]
    texts: list[Sequence[int]]

    @property
    def length(self) -> int:
        """Tokens it holds."""
        return int(self.layers[0][0].shape[-2])


@dataclass
class _Going:
    number: int
    position: int
    mask: torch.Tensor
    generator: torch.Generator | None
    tokens: list[int] = field(default_factory=list)


Step = Callable[[list[int], torch.Tensor, torch.Tensor, Any], torch.Tensor]
"""One token of each sequence: ids, positions ``(1, N)``, mask ``(N, cached + N)``, cache -> logits ``(N, vocabulary)``."""


Keep = Callable[[list[int], DynamicCache], None]
"""Takes tokens that were written and the cache that ends with them."""


def decode(
    segments: Sequence[Segment],
    step: Step,
    *,
    max_new_tokens: int,
    end_ids: Sequence[int],
    temperature: float = 0.0,
    drafts: Drafts | None = None,
    keep: Keep | None = None,
) -> list[tuple[list[int], bool]]:
    """Decode all sequences of all segments together.

    Args:
        segments: the groups.
        step: one forward.
        max_new_tokens: limit on new tokens of each sequence.
        end_ids: tokens that end a sequence; not part of the result.
        temperature: 0 for greedy; else each sequence draws from its own seeded source, so that what it is decoded with
            decides nothing.
        drafts: what was written lately, to guess a single greedy sequence from; it is told what is written.
        keep: is given what a single greedy sequence leaves behind.

    Returns:
        for each sequence, segment by segment, its new tokens, and whether an end token closed it.
    """
    count = sum(len(segment.seen) for segment in segments)
    if count == 1 and temperature <= 0 and drafts is not None:
        return [_confirm(segments[0], step, max_new_tokens, end_ids, drafts, keep)]
    cached = sum(segment.length for segment in segments)
    room = cached + count * max_new_tokens
    cache = _joined(segments, room)
    active = _begin(segments, room, temperature)
    logits = torch.cat([segment.logits for segment in segments])
    done: list[tuple[list[int], bool]] = [([], False)] * count
    for number in range(max_new_tokens):
        going, places = [], []
        for place, (sequence, token) in enumerate(zip(active, _choose(logits, active, temperature), strict=True)):
            if token in end_ids:
                done[sequence.number] = (sequence.tokens, True)
                continue
            sequence.tokens.append(token)
            going.append(sequence)
            places.append(place)
        active = going
        if not active or number + 1 == max_new_tokens:
            break
        for offset, sequence in enumerate(active):
            sequence.mask[cached + offset] = True
        now = cached + len(active)
        mask = torch.stack([sequence.mask[:now] for sequence in active])
        positions = torch.tensor([[sequence.position for sequence in active]])
        logits = step([sequence.tokens[-1] for sequence in active], positions, mask, cache)
        for sequence in active:
            sequence.position += 1
        cached = now
    for sequence in active:
        done[sequence.number] = (sequence.tokens, False)
    return done


def _confirm(
    segment: Segment, step: Step, limit: int, end_ids: Sequence[int], drafts: Drafts, keep: Keep | None
) -> tuple[list[int], bool]:
    """Decode one sequence greedily; a step reads the last token and the guesses behind it, and keeps those that come true."""
    lookup = drafts.behind(segment.texts[0])
    cache = _joined([segment], segment.length + limit + AHEAD)
    before = torch.zeros(segment.length, dtype=torch.bool)
    before[torch.as_tensor(segment.seen[0], dtype=torch.long)] = True
    written: list[int] = []
    guesses: list[int] = []
    logits, ended = segment.logits, False
    while True:
        found = [int(i) for i in logits.argmax(-1)]
        true = next((i for i, guess in enumerate(guesses) if found[i] != guess), len(guesses))
        new = found[: true + 1]
        end = next((i for i, token in enumerate(new) if token in end_ids), None)
        ended = end is not None and len(written) + end < limit
        new = new[:end][: limit - len(written)]
        written += new
        lookup.extend(new)
        if ended or len(written) == limit:
            drafts.remember(written)
            if keep is not None:
                keep(written[:-1], _plain(cache, segment.length + len(written[:-1])))
            return written, ended
        # All that was written is in the cache but for the last token, which no step has read yet.
        for layer in cache.layers:
            layer.cut(segment.length + len(written) - 1)
        guesses = lookup.guess()[: limit - len(written)]
        row = [written[-1], *guesses]
        own = torch.ones(len(row), len(written) - 1 + len(row), dtype=torch.bool).tril(len(written) - 1)
        mask = torch.cat([before.expand(len(row), -1), own], dim=1)
        first = segment.positions[0] + len(written) - 1
        logits = step(row, torch.arange(first, first + len(row))[None], mask, cache)


def _begin(segments: Sequence[Segment], room: int, temperature: float) -> list[_Going]:
    active: list[_Going] = []
    start = 0
    for segment in segments:
        for seen, position, seed in zip(segment.seen, segment.positions, segment.seeds, strict=True):
            mask = torch.zeros(room, dtype=torch.bool)
            mask[torch.as_tensor(seen, dtype=torch.long) + start] = True
            generator = torch.Generator().manual_seed(seed) if temperature > 0 else None
            active.append(_Going(len(active), position, mask, generator))
        start += segment.length
    return active


def _choose(logits: torch.Tensor, active: Sequence[_Going], temperature: float) -> list[int]:
    if temperature <= 0:
        return [int(i) for i in logits.argmax(-1)]
    weights = (logits.float() / temperature).softmax(-1).cpu()
    return [int(torch.multinomial(row, 1, generator=s.generator)) for row, s in zip(weights, active, strict=True)]


class _Buffer(DynamicLayer):
    """A cache layer with room for what will come: a step writes its tokens and copies nothing."""

    def __init__(self, parts: Sequence[tuple[torch.Tensor, torch.Tensor]], room: int) -> None:
        super().__init__()
        first = parts[0][0]
        self.lazy_initialization(*parts[0])
        self._used = sum(keys.shape[-2] for keys, _ in parts)
        shape = (*first.shape[:-2], room, first.shape[-1])
        self._all = (first.new_empty(shape), first.new_empty((*shape[:-1], parts[0][1].shape[-1])))
        for which, buffer in enumerate(self._all):
            torch.cat([part[which] for part in parts], dim=-2, out=buffer[..., : self._used, :])
        self._show()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new keys and values behind the old ones; returns all of them."""
        end = self._used + key_states.shape[-2]
        for buffer, new in zip(self._all, (key_states, value_states), strict=True):
            buffer[..., self._used : end, :] = new
        self._used = end
        self._show()
        return self.keys, self.values

    def cut(self, length: int) -> None:
        """Forget what was written beyond a length."""
        self._used = length
        self._show()

    def _show(self) -> None:
        self.keys, self.values = (buffer[..., : self._used, :] for buffer in self._all)


def _joined(segments: Sequence[Segment], room: int) -> DynamicCache:
    cache = DynamicCache()
    cache.layers = [_Buffer([segment.layers[depth] for segment in segments], room) for depth in range(len(segments[0].layers))]
    return cache


def _plain(cache: Any, length: int) -> DynamicCache:
    """The first tokens of buffers as an ordinary cache of its own."""
    plain = DynamicCache()
    for layer in cache.layers:
        kept = DynamicLayer()
        kept.lazy_initialization(layer.keys, layer.values)
        kept.keys, kept.values = layer.keys[..., :length, :].clone(), layer.values[..., :length, :].clone()
        plain.layers.append(kept)
    return plain
