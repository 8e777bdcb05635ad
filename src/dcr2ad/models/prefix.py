"""Shared-prefix forwards: the beginning that prompts share is encoded once, everything after it is one packed row.

Reads tokenised prompts; returns log-probabilities or new tokens. The key-value cache of the last prefix is kept, so that
consecutive calls about one image pay only for what is new. One row serves any number of continuations: a 4-D mask keeps them
apart (`dcr2ad.models.tree`). Knows nothing about questions, letters or knowledge. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dcr2ad.models.tree import TokenTree, common_prefix
from dcr2ad.models.vlm import TokenizedPrompt, VisionLanguageModel

MAX_NODES = 1024
"""Nodes a packed row holds at most; more continuations are cut into several rows."""

Key = tuple[int, str]


@dataclass
class _Sequence:
    """One sequence being decoded."""

    number: int
    nodes: list[int]
    position: int
    tokens: list[int] = field(default_factory=list)


class PrefixRunner:
    """Runs packed rows of one model behind a cached prefix.

    Args:
        vlm: the model; its weights must not change while the runner is used, or call `reset`.
    """

    def __init__(self, vlm: VisionLanguageModel) -> None:
        self._vlm = vlm
        self._keys: tuple[Key, ...] = ()
        self._cache: Any = None
        self.processed_tokens = 0

    def reset(self) -> None:
        """Forget the cached prefix."""
        self._keys, self._cache = (), None

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
        prompts: Sequence[TokenizedPrompt],
        *,
        max_new_tokens: int,
        end_ids: Sequence[int],
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> list[tuple[list[int], bool]]:
        """Decode prompts together, greedily or sampled.

        Args:
            prompts: prompts that show the same images; a repeated prompt is decoded as often.
            max_new_tokens: limit on new tokens of each.
            end_ids: tokens that end a response; not part of the result.
            temperature: 0 for greedy.
            generator: source of randomness for sampling.

        Returns:
            for each prompt its new tokens, and whether an end token closed them.
        """
        keys, cut = self._enter(prompts)
        rows = [list(k[cut:]) for k in keys]
        tree = TokenTree.build(rows)
        last, owner = np.unique([path[-1] for path in tree.paths], return_inverse=True)
        positions = self._tree_positions(tree, prompts, cut)
        logits = self._forward(tree, rows, positions, last)[torch.from_numpy(owner)]
        active = [
            _Sequence(n, [cut + int(node) for node in path], int(positions[:, path[-1]].max()) + 1)
            for n, path in enumerate(tree.paths)
        ]
        done: list[tuple[list[int], bool]] = [([], False)] * len(prompts)
        length = cut + len(tree)
        for _ in range(max_new_tokens):
            chosen = _choose(logits, temperature, generator)
            going = []
            for sequence, token in zip(active, chosen, strict=True):
                if token in end_ids:
                    done[sequence.number] = (sequence.tokens, True)
                else:
                    sequence.tokens.append(token)
                    going.append(sequence)
            active = going
            if not active:
                break
            if len(active[0].tokens) == max_new_tokens:
                break
            logits = self._step(active, cut, length)
            length += len(active)
        for sequence in active:
            done[sequence.number] = (sequence.tokens, False)
        self._crop(cut)
        return done

    def _step(self, active: list[_Sequence], cut: int, length: int) -> torch.Tensor:
        """One more token of every active sequence, in one forward."""
        count = len(active)
        mask = torch.zeros(count, length + count, dtype=torch.bool)
        mask[:, :cut] = True
        for row, sequence in enumerate(active):
            sequence.nodes.append(length + row)
            mask[row, sequence.nodes] = True
        axes = self._vlm.positions([0], ()).shape[0]
        positions = torch.tensor([[s.position for s in active]]).expand(axes, -1)
        for sequence in active:
            sequence.position += 1
        return self._run([s.tokens[-1] for s in active], positions, mask, (), torch.arange(count))

    def _enter(self, prompts: Sequence[TokenizedPrompt]) -> tuple[list[tuple[Key, ...]], int]:
        """Make the cache hold what all prompts share (less one token each); returns keys and the prefix length."""
        keys = [prompt.keys(self._vlm.image_token_id) for prompt in prompts]
        cut = min(common_prefix(keys), min(len(k) for k in keys) - 1)
        spans = prompts[0].image_spans(self._vlm.image_token_id)
        if spans and cut < spans[-1][1]:
            raise ValueError("prompts of one group must show the same images before their texts differ")
        wanted = keys[0][:cut]
        have = common_prefix([self._keys, wanted]) if self._keys else 0
        # An image is encoded whole or not at all.
        have = next((start for start, end in spans if start < have < end), have)
        if have == 0:
            self.reset()
        else:
            self._crop(have)
        if have < cut:
            images = [path for path, (start, _) in zip(prompts[0].images, spans, strict=True) if start >= have]
            positions = self._vlm.positions(prompts[0].ids, prompts[0].images)[:, have:cut]
            mask = torch.ones(cut - have, cut, dtype=torch.bool).tril(have) if have else None
            self._run([key[0] for key in wanted[have:]], positions, mask, images, torch.tensor([cut - have - 1]))
        self._keys = wanted
        return keys, cut

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


def _choose(logits: torch.Tensor, temperature: float, generator: torch.Generator | None) -> list[int]:
    if temperature <= 0:
        return [int(i) for i in logits.argmax(-1)]
    weights = (logits.float() / temperature).softmax(-1).cpu()
    return [int(i) for i in torch.multinomial(weights, 1, generator=generator)[:, 0]]


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
