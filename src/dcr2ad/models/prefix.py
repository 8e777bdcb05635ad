"""Shared-prefix forwards: the beginning that prompts share is encoded once, everything after it is one packed row.

Reads tokenised prompts; returns log-probabilities or new tokens. The key-value caches of the last prefixes are kept, so that
calls about the same images pay only for what is new. One row serves any number of continuations: a 4-D mask keeps them
apart (`dcr2ad.models.tree`). Knows nothing about questions, letters or knowledge. Not in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from dcr2ad.models.decoding import Rows, Start, decode
from dcr2ad.models.drafting import Drafts
from dcr2ad.models.reading import Reader
from dcr2ad.models.selection import token_logprobs
from dcr2ad.models.tree import TokenTree, chunks, common_prefix
from dcr2ad.models.vlm import TokenizedPrompt, VisionLanguageModel

MAX_NODES = 1280
"""Nodes a packed row holds at most; more continuations are cut into several rows."""
MAX_SEQUENCES = 32
"""Sequences decoded together at most."""
ROW_BYTES = 768 * 1024 * 1024
"""Keys and values of sequences decoded together, at most; on a GPU a quarter of what is free, where that is more."""
SPARE = 32
"""Columns of a row beyond what a call may write: a response that goes on needs no new ones for its tags."""


class PrefixRunner(Reader):
    """Runs packed rows of one model behind a cached prefix.

    Args:
        vlm: the model; its weights must not change while the runner is used, or call `reset`.
    """

    def __init__(self, vlm: VisionLanguageModel) -> None:
        super().__init__(vlm)
        self._written: list[Rows] = []
        self._drafts = Drafts()

    def reset(self) -> None:
        """Forget the kept prefixes and what was written last."""
        super().reset()
        self._written.clear()

    @torch.inference_mode()
    def logprobs_by_token(
        self, groups: Sequence[Sequence[TokenizedPrompt]], options: Sequence[Sequence[Sequence[Sequence[int]]]]
    ) -> list[list[list[list[float]]]]:
        """Log-probability of each token of each continuation of each prompt.

        Args:
            groups: groups of prompts that show the same images, in the same order.
            options: for each prompt of each group its continuations, each at least one token.

        Returns:
            for each prompt of each group, for each continuation, one natural log-probability a token.
        """
        single = all(len(tokens) == 1 for group in options for listed in group for tokens in listed)
        resumed = self._resume(groups) if single else None
        if resumed is None:
            found: list[list[list[list[float]]]] = []
            for start, end in self._neighbours(groups, options):
                found += self._scored(groups[start:end], options[start:end])
            return found
        read = iter(torch.cat([logits[rows.places] for rows, logits in resumed]).float().log_softmax(-1))
        return [
            [[[value] for value in next(read)[[tokens[0] for tokens in listed]].tolist()] for listed in group]
            for group in options
        ]

    @torch.inference_mode()
    def generate(
        self,
        groups: Sequence[Sequence[TokenizedPrompt]],
        *,
        max_new_tokens: int,
        ends: Callable[[list[int]], bool],
        temperature: float = 0.0,
        seeds: Sequence[Sequence[int]] | None = None,
    ) -> list[list[tuple[list[int], bool]]]:
        """Decode prompts together, greedily or sampled.

        Prompts that go on where those of the last call ended are not read again.

        Args:
            groups: groups of prompts that show the same images; a repeated prompt is decoded as often.
            max_new_tokens: limit on new tokens of each.
            ends: whether new tokens, the newest last, end a response.
            temperature: 0 for greedy.
            seeds: for each prompt the seed of its draws; what else is decoded beside it decides nothing.

        Returns:
            for each group, for each prompt, its new tokens, and whether the last of them ended it.
        """
        listed = [seed for group in seeds for seed in group] if seeds else [0] * sum(map(len, groups))
        waiting = iter(listed)
        found: list[tuple[list[int], bool]] = []
        batches = self._resume(groups) or self._begun(groups, max_new_tokens)
        kept: list[Rows] = []
        for rows, logits in batches:
            drawn = [next(waiting) for _ in range(len(rows))]
            limits: dict[str, Any] = {"max_new_tokens": max_new_tokens, "ends": ends, "temperature": temperature}
            found += decode(rows, logits, **limits, seeds=drawn, drafts=self._drafts)
            kept.append(rows)
            if sum(each.nbytes for each in kept) > self._row_bytes():
                del kept[0]
        self._written = kept
        results = iter(found)
        return [[next(results) for _ in group] for group in groups]

    def _scored(
        self, groups: Sequence[Sequence[TokenizedPrompt]], options: Sequence[Sequence[Sequence[Sequence[int]]]]
    ) -> list[list[list[list[float]]]]:
        """Log-probabilities of the continuations of one group, or of several in one row, each token computed once."""
        prompts = [prompt for group in groups for prompt in group]
        owners = [number for number, group in enumerate(groups) for _ in group]
        listed = [listed for group in options for listed in group]
        keys, cut = self._enter(prompts)
        found: list[list[list[float]]] = [[[]] * len(each) for each in listed]
        work = [(p, o) for p, each in enumerate(listed) for o in range(len(each))]
        sizes = [(len(keys[p]) - cut, len(listed[p][o])) for p, o in work]
        for chunk in chunks(work, sizes, MAX_NODES) if len(groups) == 1 else [work]:
            begun = self._length()
            rows = [[*keys[p][begun:], *((token, "") for token in listed[p][o][:-1])] for p, o in chunk]
            tree = TokenTree.build(rows)
            tails = [len(keys[p]) - begun for p, _ in chunk]
            needed = np.unique(np.concatenate([path[tail - 1 :] for path, tail in zip(tree.paths, tails, strict=True)]))
            logits = self._forward(tree, rows, [prompts[p] for p, _ in chunk], needed, [p for p, _ in chunk])
            slot = {int(node): index for index, node in enumerate(needed)}
            at = [slot[int(node)] for path, tail in zip(tree.paths, tails, strict=True) for node in path[tail - 1 :]]
            values = iter(_logprobs(logits, at, [token for p, o in chunk for token in listed[p][o]]))
            for p, o in chunk:
                found[p][o] = [next(values) for _ in listed[p][o]]
            if len(groups) > 1:  # what the last images have read serves those that follow
                last = keys[owners.index(owners[-1]) :]
                shared = min(common_prefix(last), min(map(len, last)) - 1)
                path = tree.paths[-1][: shared - begun]
                self._prefixes.keep(last[0][:shared], self._cache, [*range(begun), *(begun + path).tolist()])
            self._leave(keys[0][:cut])
        results = iter(found)
        return [[next(results) for _ in group] for group in groups]

    def _neighbours(
        self, groups: Sequence[Sequence[TokenizedPrompt]], options: Sequence[Sequence[Sequence[Sequence[int]]]]
    ) -> list[tuple[int, int]]:
        """Groups that are read in one row, as (first, one behind the last): neighbours, as long as the row stays short.

        A group whose images were all read before is read alone, behind its kept prefix.
        """
        image = self._vlm.image_token_id
        found: list[tuple[int, int]] = []
        used, before = MAX_NODES, None
        for number, (group, listed) in enumerate(zip(groups, options, strict=True)):
            keys = [prompt.keys(image) for prompt in group]
            cut = common_prefix(keys)
            more = sum(len(tokens) - 1 for each in listed for tokens in each)
            size = cut + sum(len(k) - cut for k in keys) + more
            spans = group[0].image_spans(image)
            known = bool(spans) and self._prefixes.shared(keys[0][:cut]) >= spans[-1][1]
            if before is not None and not known:
                size -= common_prefix([before, keys[0]])
            if known or before is None or used + size > MAX_NODES:
                found.append((number, number))
                used = 0
            used = MAX_NODES if known else used + size
            found[-1] = (found[-1][0], number + 1)
            before = None if known else keys[0]
        return found

    def _resume(self, groups: Sequence[Sequence[TokenizedPrompt]]) -> list[tuple[Rows, torch.Tensor]] | None:
        """What was written last, fed up to the ends of prompts that go on there; None where these are other prompts."""
        prompts = [prompt for group in groups for prompt in group]
        if not prompts or len(prompts) != sum(map(len, self._written)):
            return None
        image = self._vlm.image_token_id
        keys = [prompt.keys(image) for prompt in prompts]
        held = [tuple(known) for rows in self._written for known in rows.keys]
        shared = [min(common_prefix(pair), len(pair[0]) - 1) for pair in zip(keys, held, strict=True)]
        spans = [prompt.image_spans(image) for prompt in prompts]
        if any(span and common < span[-1][1] for span, common in zip(spans, shared, strict=True)):
            return None
        found, first = [], 0
        for rows in self._written:
            tails = [[token for token, _ in keys[first + s][shared[first + s] :]] for s in range(len(rows))]
            for sequence in range(len(rows)):
                rows.rewind(sequence, shared[first + sequence])
            found.append((rows, rows.feed([tails[sequence] for sequence in rows.order])[:, 0]))
            first += len(rows)
        return found

    def _begun(self, groups: Sequence[Sequence[TokenizedPrompt]], max_new_tokens: int) -> Iterator[tuple[Rows, torch.Tensor]]:
        """Prompts read, as rows of as many sequences as are decoded together."""
        self._written = []
        waiting: list[Start] = []

        def rows(count: int) -> tuple[Rows, torch.Tensor]:
            starts = waiting[:count]
            del waiting[:count]
            room = max(len(start.keys) for start in starts) + max_new_tokens + SPARE
            return Rows(starts, room, self._step), torch.stack([start.logits for start in starts])

        total = sum(map(len, groups))
        even = math.ceil(total / math.ceil(total / MAX_SEQUENCES)) if total else 0
        for group in groups:
            waiting += self._starts(group)
            while waiting and len(waiting) >= (fit := min(even, self._room_for(waiting, max_new_tokens))):
                yield rows(fit)
        if waiting:
            yield rows(len(waiting))

    def _room_for(self, waiting: Sequence[Start], max_new_tokens: int) -> int:
        """How many sequences there is memory for."""
        longest = max(len(start.keys) for start in waiting) + max_new_tokens + SPARE
        return max(1, self._row_bytes() // (longest * waiting[0].token_bytes))

    def _row_bytes(self) -> int:
        if self._vlm.device.type != "cuda":
            return ROW_BYTES
        free, _ = torch.cuda.mem_get_info(self._vlm.device)
        return max(ROW_BYTES, free // 4)

    def _starts(self, prompts: Sequence[TokenizedPrompt]) -> list[Start]:
        """Read a group's prompts; what is needed to decode behind them."""
        keys, cut = self._enter(prompts)
        begun = self._length()
        rows = [list(k[begun:]) for k in keys]
        tree = TokenTree.build(rows)
        last, owner = np.unique([path[-1] for path in tree.paths], return_inverse=True)
        logits = self._forward(tree, rows, prompts, last, [0] * len(rows))
        # Crop and later updates make new tensors, so these stay as they are.
        layers = [(layer.keys, layer.values) for layer in self._cache.layers]
        self._leave(keys[0][:cut])
        ends = [int(self._vlm.positions(prompt.ids, prompt.images)[:, -1].max()) + 1 for prompt in prompts]
        return [
            Start(layers, [*range(begun), *(begun + path).tolist()], k, end, logits[which])
            for k, path, end, which in zip(keys, tree.paths, ends, owner.tolist(), strict=True)
        ]

    def _step(self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, cache: Any, last: int) -> torch.Tensor:
        """Tokens more of every sequence, each in a row of its own, at positions that are the same on all axes."""
        keep = torch.arange(ids.shape[1] - last, ids.shape[1])
        return self._model(ids, positions.expand(self._axes, -1, -1), mask, cache, keep)[0]

    @property
    def _axes(self) -> int:
        return self._vlm.positions([0], ()).shape[0]


def _logprobs(logits: torch.Tensor, rows: Sequence[int], tokens: Sequence[int]) -> list[float]:
    at, which = (torch.tensor(places, device=logits.device) for places in (rows, tokens))
    found: list[float] = token_logprobs(logits, at, which).tolist()
    return found
