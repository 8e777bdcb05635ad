"""Key-value caches of the last prefixes, so that calls about the same images pay only for what is new.

Reads caches that forwards left behind; returns caches to begin from. Knows nothing about models or prompts.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from dcr2ad.models.tree import common_prefix

PREFIX_BYTES = 256 * 1024 * 1024
"""Keys and values of prefixes kept at most: those of the images that are being asked about."""
MOST = 64
"""Prefixes kept at most, however small they are."""

Key = tuple[int, str]
"""A token and, for an image token, the image it belongs to."""


class KeptPrefixes:
    """The most recently used prefixes, up to `PREFIX_BYTES` and `MOST`."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Key, ...], Any] = OrderedDict()

    def clear(self) -> None:
        """Forget all of them."""
        self._kept.clear()

    def forget(self, images: Collection[str]) -> None:
        """Cut prefixes back to what stands before the first of some images; of those without an image the last one stays."""
        kept, self._kept = self._kept, OrderedDict()
        for keys, cache in kept.items():
            end = next((place for place, key in enumerate(keys) if key[1] in images), len(keys))
            if keys[:end] in self._kept:
                self._kept.move_to_end(keys[:end])
            elif end:
                self._kept[keys[:end]] = cache if end == len(keys) else _copy(cache, range(end))
        bare = [keys for keys in self._kept if not any(image for _, image in keys)]
        for keys in bare[:-1]:
            del self._kept[keys]

    def shared(self, wanted: tuple[Key, ...]) -> int:
        """How many of the wanted tokens a kept prefix shares with them."""
        return max((common_prefix([known, wanted]) for known in self._kept), default=0)

    def longest(self, wanted: tuple[Key, ...], spans: Sequence[tuple[int, int]]) -> tuple[int, Any]:
        """The kept prefix that shares most with the wanted one.

        Args:
            wanted: keys of the prefix that is needed.
            spans: where its images lie; an image is taken whole or not at all.

        Returns:
            how many tokens that are, and a cache of these (None for none).
        """
        shared = {known: common_prefix([known, wanted]) for known in self._kept}
        best = max(shared, key=lambda known: shared[known], default=())
        have = shared.get(best, 0)
        have = next((start for start, end in spans if start < have < end), have)
        if not have:
            return 0, None
        self._kept.move_to_end(best)
        return have, _beginning(self._kept[best], have)

    def keep(self, keys: tuple[Key, ...], cache: Any, places: Sequence[int] | None = None) -> None:
        """Keep a prefix; the least recently used ones go when they take too much room.

        Args:
            keys: its tokens.
            cache: where they stand.
            places: at which places; None for the first.
        """
        if keys in self._kept:
            return
        kept = _copy(cache, range(len(keys)) if places is None else places)
        self._kept[keys] = kept
        self._kept.move_to_end(keys)
        token = sum(layer.keys[..., :1, :].nbytes + layer.values[..., :1, :].nbytes for layer in kept.layers)
        while len(self._kept) > MOST or (len(self._kept) > 1 and token * sum(map(len, self._kept)) > PREFIX_BYTES):
            self._kept.popitem(last=False)


def _beginning(cache: Any, length: int) -> Any:
    """The first tokens of a cache as a cache of its own; updates make new tensors, so nothing is copied here."""
    begun = DynamicCache()
    begun.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in begun.layers:
        layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]
    return begun


def _copy(cache: Any, places: Sequence[int]) -> Any:
    """Tokens at some places of a cache, with memory of their own, so that the rest of it can go."""
    at = torch.tensor(list(places), device=cache.layers[0].keys.device)
    copied = _beginning(cache, 0)
    for layer, whole in zip(copied.layers, cache.layers, strict=True):
        layer.keys, layer.values = whole.keys.index_select(-2, at), whole.values.index_select(-2, at)
    return copied
