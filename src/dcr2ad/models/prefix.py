"""Shared-prefix forwards: the beginning that prompts share is encoded once, with everything after it in one packed row.

Reads tokenised prompts; returns log-probabilities or new tokens. The key-value caches of the last prefixes are kept, so that
calls about the same images pay only for what is new. One row serves any number of continuations: a 4-D mask keeps them
apart (`dcr2ad.models.tree`). Knows nothing about questions, letters or knowledge. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dcr2ad.models.decoding import Segment, decode
from dcr2ad.models.drafting import Drafts
from dcr2ad.models.kept import KeptPrefixes, Key
from dcr2ad.models.search import ROOT, TrieSearch
from dcr2ad.models.tree import TokenTree, common_prefix
from dcr2ad.models.vlm import TokenizedPrompt, VisionLanguageModel

MAX_NODES = 1024
"""Nodes a packed row holds at most; more continuations are cut into several rows."""
MAX_CACHED = 1500
"""Tokens of prompts behind which sequences are decoded together; a group more may begin while there are fewer."""
MAX_SEQUENCES = 24
"""Sequences decoded together, likewise."""
MERGED = 512
"""New tokens of a prefix up to which it goes into one forward with what follows it; a longer one goes first, without a mask."""
ROWS = 32
"""Rows of logits whose normalisers are computed at a time: what a processor's cache holds."""


class PrefixRunner:
    """Runs packed rows of one model behind a cached prefix.

    Args:
        vlm: the model; its weights must not change while the runner is used, or call `reset`.
    """

    def __init__(self, vlm: VisionLanguageModel) -> None:
        self._vlm = vlm
        self._cache: Any = None
        self._kept = KeptPrefixes()
        self._drafts = Drafts()
        self.processed_tokens = 0

    def reset(self) -> None:
        """Forget the cached prefixes."""
        self._cache = None
        self._kept.clear()

    @torch.inference_mode()
    def continuation_logprobs(
        self, prompts: Sequence[TokenizedPrompt], options: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[float]]:
        """Summed log-probability of each continuation of each prompt.

        Args:
            prompts: prompts that show the same images, in the same order.
            options: for each prompt its continuations, each at least one token.
        """
        keys, cut = self._enter(prompts)
        found: list[list[float]] = [[0.0] * len(listed) for listed in options]
        work = [(p, o) for p, listed in enumerate(options) for o in range(len(listed))]
        for chunk in _chunks(work, [len(keys[p]) - cut + len(options[p][o]) for p, o in work]):
            start = self._length()
            rows = [[*keys[p][start:], *((token, "") for token in options[p][o][:-1])] for p, o in chunk]
            tree = TokenTree.build(rows)
            tails = [len(keys[p]) - start for p, _ in chunk]
            needed = np.unique(np.concatenate([path[tail - 1 :] for path, tail in zip(tree.paths, tails, strict=True)]))
            logits = self._forward(tree, rows, [prompts[p] for p, _ in chunk], needed)
            slot = {int(node): index for index, node in enumerate(needed)}
            at = [slot[int(node)] for path, tail in zip(tree.paths, tails, strict=True) for node in path[tail - 1 :]]
            values = iter(_logprobs(logits, at, [token for p, o in chunk for token in options[p][o]]))
            for p, o in chunk:
                found[p][o] = sum(next(values) for _ in options[p][o])
            self._leave(keys[0][:cut])
        return found

    @torch.inference_mode()
    def search(self, prompt: TokenizedPrompt, search: TrieSearch) -> None:
        """Read one prompt's continuations as far as a new search asks for them; it holds the result afterwards."""
        (keys,), cut = self._enter([prompt])
        trie, start = search.trie, self._length()
        chain = keys[start:]
        rows: dict[int, tuple[Key, ...]] = {ROOT: chain}
        for node in trie.hot:
            rows[node] = (*rows[int(trie.tree.parents[node])], (trie.tokens[node], ""))
        tree = TokenTree.build(list(rows.values()))
        ends = np.array([path[-1] for path in tree.paths])
        self._learn(search, list(rows), self._forward(tree, list(rows.values()), [prompt] * len(rows), ends))
        seen = {node: start + path[len(chain) :] for node, path in zip(rows, tree.paths, strict=True)}
        behind = int(self._vlm.positions(prompt.ids, prompt.images).max()) + 1
        while nodes := search.choose():
            start = self._length()
            mask = torch.zeros(len(nodes), start + len(nodes), dtype=torch.bool)
            mask[:, : len(keys)] = True
            for place, node in enumerate(nodes):
                seen[node] = np.append(seen[int(trie.tree.parents[node])], start + place)
                mask[place, torch.from_numpy(seen[node])] = True
            positions = torch.tensor([[behind + trie.depths[node] for node in nodes]])
            self._learn(search, nodes, self._step([trie.tokens[node] for node in nodes], positions, mask, self._cache))
        trie.remember(search.needed())
        self._leave(keys[:cut])

    def _learn(self, search: TrieSearch, nodes: Sequence[int], logits: torch.Tensor) -> None:
        children = [search.trie.children[node] for node in nodes]
        at = [place for place, listed in enumerate(children) for _ in listed]
        values = iter(_logprobs(logits, at, [search.trie.tokens[child] for listed in children for child in listed]))
        for node, listed in zip(nodes, children, strict=True):
            search.learn(node, [next(values) for _ in listed])

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

        alone = groups[0][0].keys(self._vlm.image_token_id) if [len(group) for group in groups] == [1] else ()

        def keep(tokens: list[int], cache: Any) -> None:
            if alone:  # a response that is written part by part goes on from here
                self._kept.keep((*alone, *((token, "") for token in tokens)), cache)

        def flush() -> None:
            limits: dict[str, Any] = {"max_new_tokens": max_new_tokens, "end_ids": end_ids, "temperature": temperature}
            written = iter(decode(waiting, self._step, **limits, drafts=self._drafts, keep=keep))
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
        start = self._length()
        rows = [list(k[start:]) for k in keys]
        tree = TokenTree.build(rows)
        last, owner = np.unique([path[-1] for path in tree.paths], return_inverse=True)
        positions = self._tree_positions(tree, prompts, start)
        logits = self._forward(tree, rows, prompts, last)[torch.from_numpy(owner)]
        # Crop and later updates make new tensors, so these stay as they are.
        layers = [(layer.keys, layer.values) for layer in self._cache.layers]
        self._leave(keys[0][:cut])
        before = list(range(start))
        return Segment(
            layers=layers,
            seen=[[*before, *(start + int(node) for node in path)] for path in tree.paths],
            positions=[int(positions[:, path[-1]].max()) + 1 for path in tree.paths],
            logits=logits,
            seeds=list(seeds),
            texts=[[token for token, image in k if not image] for k in keys],
        )

    def _step(self, ids: list[int], positions: torch.Tensor, mask: torch.Tensor, cache: Any) -> torch.Tensor:
        """Further tokens, at positions that are the same on all axes, in one forward behind a cache; logits of each."""
        axes = self._vlm.positions([0], ()).shape[0]
        kept, self._cache = self._cache, cache
        try:
            return self._run(ids, positions.expand(axes, -1), mask, (), torch.arange(len(ids)))
        finally:
            self._cache = kept

    def _enter(self, prompts: Sequence[TokenizedPrompt]) -> tuple[list[tuple[Key, ...]], int]:
        """Begin from what is kept; returns keys, and how many tokens all prompts share (less one token each).

        What the cache lacks of them is read by the next forward, at the head of its row, or here where it is much.
        """
        keys = [prompt.keys(self._vlm.image_token_id) for prompt in prompts]
        cut = min(common_prefix(keys), min(len(k) for k in keys) - 1)
        spans = prompts[0].image_spans(self._vlm.image_token_id)
        if spans and cut < spans[-1][1]:
            raise ValueError("prompts of one group must show the same images before their texts differ")
        wanted = keys[0][:cut]
        have, self._cache = self._kept.longest(wanted, spans)
        if cut - have > MERGED:
            positions = self._vlm.positions(prompts[0].ids, prompts[0].images)[:, have:cut]
            mask = torch.ones(cut - have, cut, dtype=torch.bool).tril(have) if have else None
            ids = [key[0] for key in wanted[have:]]
            self._run(ids, positions, mask, _beginning_after(prompts[0], spans, have), torch.tensor([cut - have - 1]))
            self._leave(wanted)
        return keys, cut

    def _leave(self, wanted: tuple[Key, ...]) -> None:
        """Cut the cache back to a prefix, and keep that."""
        surplus = self._length() - len(wanted)
        if surplus > 0:
            self._cache.crop(-surplus)
        if wanted not in self._kept:
            self._kept.keep(wanted, self._cache)

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
        self, tree: TokenTree, rows: Sequence[Sequence[Key]], prompts: Sequence[TokenizedPrompt], needed: np.ndarray
    ) -> torch.Tensor:
        """Logits at the needed nodes of a tree whose row `i` continues prompt `i` from where the cache ends."""
        start = self._length()
        images = _beginning_after(prompts[0], prompts[0].image_spans(self._vlm.image_token_id), start)
        ids = [rows[number][index][0] for number, index in tree.first]
        positions = self._tree_positions(tree, prompts, start)
        return self._run(ids, positions, tree.mask(start), images, torch.from_numpy(needed))

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


def _logprobs(logits: torch.Tensor, rows: Sequence[int], tokens: Sequence[int]) -> list[float]:
    """Log-probabilities of tokens, each at a row of logits; in float32, a few rows at a time, so that no copy is kept."""
    norms = torch.cat([some.float().logsumexp(-1) for some in logits.split(ROWS)])
    at = torch.tensor(rows, device=logits.device)
    return (logits[at, torch.tensor(tokens, device=logits.device)].float() - norms[at]).tolist()


def _beginning_after(prompt: TokenizedPrompt, spans: Sequence[tuple[int, int]], start: int) -> list[str]:
    """Images of a prompt whose tokens begin at or after a place."""
    return [path for path, (begin, _) in zip(prompt.images, spans, strict=True) if begin >= start]


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
