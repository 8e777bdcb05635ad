"""Attention of a packed row in blocks: images that know nothing of each other share one forward and no attention.

Reads a token tree and which of its sequences belong together; registers an attention function that looks block by block. One
long row makes better use of a processor than several short ones, but attention over it would grow with the square of its
length. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from dcr2ad.models.tree import TokenTree
from dcr2ad.models.vlm import TokenizedPrompt

NAME = "dcr2ad_blocks"
"""Name of the attention function among those of transformers."""


@dataclass(frozen=True)
class Block:
    """Neighbouring nodes of a row and what they look at.

    Attributes:
        start: first node.
        end: one behind the last.
        columns: places of the cached tokens and nodes they may look at, shape ``(C,)``.
        mask: which of these each node sees, shape ``(end - start, C)``.
    """

    start: int
    end: int
    columns: torch.Tensor
    mask: torch.Tensor


_active: ContextVar[tuple[Block, ...]] = ContextVar("blocks", default=())


def blocks_of(tree: TokenTree, owners: Sequence[int], begun: int, device: torch.device) -> tuple[Block, ...]:
    """One block for each owner, of the nodes that its sequences were the first to have.

    Args:
        tree: a row; sequences of one owner are neighbours.
        owners: owner of each sequence, rising.
        begun: cached tokens before the row, which all see.
        device: where the masks are wanted.
    """
    seen = tree.mask(begun).numpy()
    of_node = np.asarray([owners[number] for number, _ in tree.first])
    found = []
    for owner in dict.fromkeys(owners):
        nodes = np.flatnonzero(of_node == owner)
        if not len(nodes):
            continue
        start, end = int(nodes[0]), int(nodes[-1]) + 1
        columns = np.flatnonzero(seen[start:end].any(axis=0))
        mask = torch.from_numpy(seen[start:end][:, columns])
        found.append(Block(start, end, torch.from_numpy(columns).to(device), mask.to(device)))
    return tuple(found)


@contextmanager
def in_blocks(config: Any, blocks: tuple[Block, ...]) -> Iterator[None]:
    """Let the language model with this configuration attend in blocks meanwhile; without blocks nothing changes."""
    if not blocks:
        yield
        return
    before = config._attn_implementation
    token = _active.set(blocks)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _active.reset(token)


def row_images(tree: TokenTree, prompts: Iterable[TokenizedPrompt], image_token: int, begun: int = 0) -> Iterator[str]:
    """Images of a row in the order of its nodes: one is listed by the sequence that its first token's node came from.

    Args:
        tree: the row.
        prompts: for each of its sequences the prompt it is (the end of).
        image_token: id of the image token.
        begun: tokens of every prompt that lie before the row.
    """
    for number, (prompt, path) in enumerate(zip(prompts, tree.paths, strict=True)):
        for image, (start, _) in zip(prompt.images, prompt.image_spans(image_token), strict=True):
            if start >= begun and tree.first[path[start - begun]] == (number, start - begun):
                yield image


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **how: Any
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention of every block apart."""
    parts = [
        sdpa_attention_forward(
            module,
            query[:, :, block.start : block.end],
            key[:, :, block.columns],
            value[:, :, block.columns],
            block.mask[None, None],
            **how,
        )[0]
        for block in _active.get()
    ]
    return torch.cat(parts, dim=1), None


AttentionInterface.register(NAME, _attend)
