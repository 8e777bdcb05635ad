"""Reading: token trees of prompts in one forward, behind what was read before.

Reads tokenised prompts; returns logits, and keeps the keys and values of the prefixes read last. One row serves any number of
continuations: a 4-D mask keeps them apart (`dcr2ad.models.tree`), and images that share nothing attend in blocks of their own
(`dcr2ad.models.blocks`). Knows nothing about answers or decoding. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch

from dcr2ad.models.blocks import blocks_of, in_blocks, row_images
from dcr2ad.models.kept import KeptPrefixes, Key
from dcr2ad.models.tree import TokenTree, common_prefix
from dcr2ad.models.vlm import TokenizedPrompt, VisionLanguageModel

MERGED = 512
"""New tokens of a prefix up to which it goes into one forward with what follows it; a longer one goes first, without a mask."""


class Reader:
    """Reads prompts with one model, behind a cache of what they share.

    Args:
        vlm: the model; its weights must not change while the reader is used, or call `reset`.
    """

    def __init__(self, vlm: VisionLanguageModel) -> None:
        self._vlm = vlm
        self._cache: Any = None
        self._prefixes = KeptPrefixes()
        self.processed_tokens = 0

    def reset(self) -> None:
        """Forget the kept prefixes."""
        self._cache = None
        self._prefixes.clear()

    def forget(self, images: Collection[str]) -> None:
        """Forget what was read of images; what stands before them stays."""
        self._cache = None
        self._prefixes.forget(images)

    def _enter(self, prompts: Sequence[TokenizedPrompt]) -> tuple[list[tuple[Key, ...]], int]:
        """Make the cache hold a beginning of all prompts; returns keys, and how long a beginning they share (less one token).

        A short rest of what they share is left to be read in one row with what follows.
        """
        keys = [prompt.keys(self._vlm.image_token_id) for prompt in prompts]
        cut = min(common_prefix(keys), min(len(k) for k in keys) - 1)
        spans = [span for span in prompts[0].image_spans(self._vlm.image_token_id) if span[1] <= cut]
        wanted = keys[0][:cut]
        have, self._cache = self._prefixes.longest(wanted, spans)
        if cut - have > MERGED:
            images = [path for path, (start, _) in zip(prompts[0].images, spans, strict=False) if start >= have]
            positions = self._vlm.positions(prompts[0].ids, prompts[0].images)[:, have:cut]
            mask = torch.ones(cut - have, cut, dtype=torch.bool).tril(have) if have else None
            self._run([key[0] for key in wanted[have:]], positions, mask, images, torch.tensor([cut - have - 1]))
            self._leave(wanted)
        return keys, cut

    def _leave(self, wanted: tuple[Key, ...]) -> None:
        """Cut the cache back to a beginning, which is kept for later calls."""
        self._prefixes.keep(wanted, self._cache)
        surplus = self._length() - len(wanted)
        if surplus > 0:
            self._cache.crop(-surplus)

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
        self,
        tree: TokenTree,
        rows: Sequence[Sequence[Key]],
        prompts: Sequence[TokenizedPrompt],
        needed: np.ndarray,
        owners: Sequence[int],
    ) -> torch.Tensor:
        """One packed row behind the cache, whose length the rows begin at; logits at the nodes needed."""
        begun = self._length()
        images = list(row_images(tree, prompts, self._vlm.image_token_id, begun))
        ids = [rows[number][index][0] for number, index in tree.first]
        positions = self._tree_positions(tree, prompts, begun)
        if owners[0] == owners[-1]:
            return self._run(ids, positions, tree.mask(begun), images, torch.from_numpy(needed))
        with in_blocks(self._vlm.text_config, blocks_of(tree, owners, begun, self._vlm.device)):
            return self._run(ids, positions, torch.ones(1, 1, dtype=torch.bool), images, torch.from_numpy(needed))

    def _run(
        self,
        ids: Sequence[int],
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        images: Sequence[str],
        keep: torch.Tensor,
    ) -> torch.Tensor:
        """One row behind the cache; returns logits at the kept places, shape ``(len(keep), vocabulary)``."""
        shown = None if mask is None else mask[None]
        logits, self._cache = self._model(torch.tensor([list(ids)]), positions, shown, self._cache, keep, images)
        return logits[0]

    def _model(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        cache: Any,
        keep: torch.Tensor,
        images: Sequence[str] = (),
    ) -> tuple[torch.Tensor, Any]:
        """One forward of ids ``(N, T)``; returns logits ``(N, len(keep), vocabulary)`` and the cache behind it."""
        vlm = self._vlm
        self.processed_tokens += ids.numel()
        output = vlm.model(
            input_ids=ids.to(vlm.device),
            position_ids=vlm.position_ids(positions),
            attention_mask=None if mask is None else mask[:, None].to(vlm.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep.to(vlm.device),
            mm_encoder_outputs=vlm.encoder_outputs(images),
        )
        return output.logits, output.past_key_values

    def _length(self) -> int:
        return 0 if self._cache is None else int(self._cache.get_seq_length())
