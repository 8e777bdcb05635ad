"""Shared-prefix forwards: the beginning that prompts share is encoded once, everything after it is one packed row.

Reads tokenised prompts; returns log-probabilities or new tokens. The key-value caches of the last prefixes are kept, so that
calls about the same images pay only for what is new. One row serves any number of continuations: a 4-D mask keeps them
apart (`dcr2ad.models.tree`). Knows nothing about questions, letters or knowledge. Not in the paper.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import DynamicCache

from dcr2ad.models.decoding import Segment, decode
from dcr2ad.models.tree import TokenTree, common_prefix
from dcr2ad.models.vlm import TokenizedPrompt, VisionLanguageModel

MAX_NODES = 1024
"""Nodes a packed row holds at most; more continuations are cut into several rows."""
MAX_CACHED = 1500
"""Tokens of prompts behind which sequences are decoded together; a group more may begin while there are fewer."""
MAX_SEQUENCES = 24
"""Sequences decoded together, likewise."""

PREFIX_BYTES = 256 * 1024 * 1024
"""Keys and values of prefixes kept at most: those of the images that are being asked about."""

Key = tuple[int, str]


class PrefixRunner:
    """Runs packed rows of one model behind a cached prefix.

    Args:
        vlm: the model; its weights must not change while the runner is used, or call `reset`.
    """

    def __init__(self, vlm: VisionLanguageModel) -> None:
        self._vlm = vlm
        self._keys: tuple[Key, ...] = ()
        self._cache: Any = None
        self._kept: OrderedDict[tuple[Key, ...], Any] = OrderedDict()
        self.processed_tokens = 0

    def reset(self) -> None:
        """Forget the cached prefixes."""
        self._keys, self._cache = (), None
        self._kept.clear()

    @torch.inference_mode()
    def continuation_logprobs(
        self, prompts: Sequence[TokenizedPrompt], options: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[float]]:
        """Summed log-probability of each continuation of each prompt.

        Args:
            prompts: prompts that show the same images, in the same order.
            options: for each prompt its continuations, each at least one token.

        Returns:
            for each prompt one natural log-probability a continuation.
        """
        keys, cut = self._enter(prompts)
        found: list[list[float]] = [[0.0] * len(listed) for listed in options]
        work = [(p, o) for p, listed in enumerate(options) for o in range(len(listed))]
        for chunk in _chunks(work, [len(keys[p]) - cut + len(options[p][o]) for p, o in work]):
            rows = [[*keys[p][cut:], *((token, "") for token in options[p][o][:-1])] for p, o in chunk]
            tree = TokenTree.build(rows)
            tails = [len(keys[p]) - cut for p, _ in chunk]
            needed = np.unique(np.concatenate([path[tail - 1 :] for path, tail in zip(tree.paths, tails, strict=True)]))
            logits = self._forward(tree, rows, self._tree_positions(tree, [prompts[p] for p, _ in chunk], cut), needed)
            logprobs = logits.float().log_softmax(-1)
            slot = {int(node): index for index, node in enumerate(needed)}
            for (p, o), path, tail in zip(chunk, tree.paths, tails, strict=True):
                at = torch.tensor([slot[int(node)] for node in path[tail - 1 :]], device=logprobs.device)
                tokens = torch.tensor(list(options[p][o]), device=logprobs.device)
                found[p][o] = float(logprobs[at, tokens].sum())
            self._crop(cut)
        return found

    @torch.inference_mode()
    def generate(
        self,
        groups: Sequence[Sequence[TokenizedPrompt]],
        *,
        max_new_tokens: int,
        end_ids: Sequence[int],
        temperature: float = 0.0,
        seeds: Sequence[Sequence[int]] | None = None,
    ) -> list[list[tuple[list[int], bool]]]:
        """Decode prompts together, greedily or sampled.

        Args:
            groups: groups of prompts that show the same images; a repeated prompt is decoded as often.
            max_new_tokens: limit on new tokens of each.
            end_ids: tokens that end a response; not part of the result.
            temperature: 0 for greedy.
            seeds: for each prompt the seed of its draws; what else is decoded beside it decides nothing.

        Returns:
            for each group, for each prompt, its new tokens, and whether an end token closed them.
        """
        results: list[list[tuple[list[int], bool]]] = []
        waiting: list[Segment] = []

        def flush() -> None:
            written = iter(decode(waiting, self._step, max_new_tokens=max_new_tokens, end_ids=end_ids, temperature=temperature))
            results.extend([next(written) for _ in segment.seen] for segment in waiting)
            waiting.clear()

        for number, group in enumerate(groups):
            if sum(segment.length for segment in waiting) > MAX_CACHED or sum(len(s.seen) for s in waiting) > MAX_SEQUENCES:
                flush()
            waiting.append(self._segment(group, seeds[number] if seeds else [0] * len(group)))
        if waiting:
            flush()
        return results

    def _segment(self, prompts: Sequence[TokenizedPrompt], seeds: Sequence[int]) -> Segment:
        """Read a group's prompts; what is needed to decode behind them."""
        keys, cut = self._enter(prompts)
        rows = [list(k[cut:]) for k in keys]
        tree = TokenTree.build(rows)
        last, owner = np.unique([path[-1] for path in tree.paths], return_inverse=True)
        positions = self._tree_positions(tree, prompts, cut)
        logits = self._forward(tree, rows, positions, last)[torch.from_numpy(owner)]
        # Crop and later updates make new tensors, so these stay as they are.
        layers = [(layer.keys, layer.values) for layer in self._cache.layers]
        self._crop(cut)
        before = list(range(cut))
        return Segment(
            layers=layers,
            seen=[[*before, *(cut + int(node) for node in path)] for path in tree.paths],
            positions=[int(positions[:, path[-1]].max()) + 1 for path in tree.paths],
            logits=logits,
            seeds=list(seeds),
        )

    def _step(self, ids: list[int], positions: torch.Tensor, mask: torch.Tensor, cache: Any) -> torch.Tensor:
        """One more token of every sequence, in one forward behind a cache of their own."""
        axes = self._vlm.positions([0], ()).shape[0]
        kept, self._cache = self._cache, cache
        try:
            return self._run(ids, positions.expand(axes, -1), mask, (), torch.arange(len(ids)))
        finally:
            self._cache = kept

    def _enter(self, prompts: Sequence[TokenizedPrompt]) -> tuple[list[tuple[Key, ...]], int]:
        """Make the cache hold what all prompts share (less one token each); returns keys and the prefix length."""
        keys = [prompt.keys(self._vlm.image_token_id) for prompt in prompts]
        cut = min(common_prefix(keys), min(len(k) for k in keys) - 1)
        spans = prompts[0].image_spans(self._vlm.image_token_id)
        if spans and cut < spans[-1][1]:
            raise ValueError("prompts of one group must show the same images before their texts differ")
        wanted = keys[0][:cut]
        have = self._recall(wanted, spans)
        if have < cut:
            images = [path for path, (start, _) in zip(prompts[0].images, spans, strict=True) if start >= have]
            positions = self._vlm.positions(prompts[0].ids, prompts[0].images)[:, have:cut]
            mask = torch.ones(cut - have, cut, dtype=torch.bool).tril(have) if have else None
            self._run([key[0] for key in wanted[have:]], positions, mask, images, torch.tensor([cut - have - 1]))
        self._keys = wanted
        self._keep()
        return keys, cut

    def _recall(self, wanted: tuple[Key, ...], spans: Sequence[tuple[int, int]]) -> int:
        """Begin from the kept prefix that shares most with the wanted one; returns how many tokens that are."""
        shared = {known: common_prefix([known, wanted]) for known in self._kept}
        best = max(shared, key=lambda known: shared[known], default=())
        have = shared.get(best, 0)
        # An image is encoded whole or not at all.
        have = next((start for start, end in spans if start < have < end), have)
        self._keys, self._cache = wanted[:have], None
        if have:
            self._kept.move_to_end(best)
            self._cache = DynamicCache()
            self._cache.layers = [_beginning(layer, have) for layer in self._kept[best].layers]
        return have

    def _keep(self) -> None:
        """Keep the prefix as it stands; the least recently used ones go when they take too much room."""
        kept = DynamicCache()
        kept.layers = [_beginning(layer, len(self._keys)) for layer in self._cache.layers]
        self._kept[self._keys] = kept
        self._kept.move_to_end(self._keys)
        token = sum(layer.keys[..., :1, :].nbytes + layer.values[..., :1, :].nbytes for layer in kept.layers)
        while len(self._kept) > 1 and token * sum(map(len, self._kept)) > PREFIX_BYTES:
            self._kept.popitem(last=False)

    def _tree_positions(self, tree: TokenTree, prompts: Sequence[TokenizedPrompt], cut: int) -> torch.Tensor:
        """Positions of the nodes, shape ``(axes, T)``: each path continues its own prompt's positions."""
        ends = {id(prompt): self._vlm.positions(prompt.ids, prompt.images)[:, cut:] for prompt in prompts}
        axes = next(iter(ends.values())).shape[0]
        positions = torch.zeros(axes, len(tree), dtype=torch.long)
        for prompt, path in zip(prompts, tree.paths, strict=True):
            own = ends[id(prompt)]
            extra = len(path) - own.shape[1]
            if extra > 0:
                beyond = int(own.max()) + 1 + torch.arange(extra)
                own = torch.cat([own, beyond.expand(axes, -1)], dim=1)
            positions[:, torch.from_numpy(path)] = own[:, : len(path)]
        return positions

    def _forward(
        self, tree: TokenTree, rows: Sequence[Sequence[Key]], positions: torch.Tensor, needed: np.ndarray
    ) -> torch.Tensor:
        ids = [rows[number][index][0] for number, index in tree.first]
        return self._run(ids, positions, tree.mask(self._length()), (), torch.from_numpy(needed))

    def _run(
        self,
        ids: Sequence[int],
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        images: Sequence[str],
        keep: torch.Tensor,
    ) -> torch.Tensor:
        """One forward behind the cache; returns logits at the kept places, shape ``(len(keep), vocabulary)``."""
        vlm = self._vlm
        row = torch.tensor([list(ids)], device=vlm.device)
        self.processed_tokens += row.shape[1]
        output = vlm.model(
            input_ids=row,
            position_ids=vlm.position_ids(positions),
            attention_mask=None if mask is None else mask[None, None].to(vlm.device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=keep.to(vlm.device),
            mm_encoder_outputs=vlm.encoder_outputs(images),
        )
        self._cache = output.past_key_values
        return output.logits[0]

    def _length(self) -> int:
        return 0 if self._cache is None else int(self._cache.get_seq_length())

    def _crop(self, length: int) -> None:
        surplus = self._length() - length
        if surplus > 0:
            self._cache.crop(-surplus)
        self._keys = self._keys[:length]


def _beginning(layer: Any, length: int) -> Any:
    """The first tokens of a cache layer, as a layer of its own; updates make new tensors, so nothing is copied here."""
    begun = copy.copy(layer)
    begun.keys, begun.values = layer.keys[..., :length, :], layer.values[..., :length, :]
    return begun


def _chunks(work: list[tuple[int, int]], sizes: list[int]) -> list[list[tuple[int, int]]]:
    """Cut work into rows of at most `MAX_NODES` tokens counted without sharing of continuations, prompts kept together.

    Tokens of a prompt's own tail are shared by its options and counted once.
    """
    chunks: list[list[tuple[int, int]]] = []
    used = MAX_NODES + 1
    previous = -1
    for (prompt, option), size in zip(work, sizes, strict=True):
        cost = size if prompt != previous or used > MAX_NODES else 8
        if used + cost > MAX_NODES:
            chunks.append([])
            used, cost = 0, size
        chunks[-1].append((prompt, option))
        used += cost
        previous = prompt
    return chunks
