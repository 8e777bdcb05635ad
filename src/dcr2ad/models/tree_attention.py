"""Attention over a token tree without its dense mask: a span of nodes attends to its ancestors and to itself, nothing else.

Registered with transformers as ``dcr2ad_tree``: with the keyword ``spans`` (`TokenTree.spans`) a forward of one row computes
just what the tree's mask lets through; without it, it is ``sdpa``. On a CPU the spans are cut into tiles of products that the
matrix units do well, probabilities are computed anew for the gradient as flash attention does, and heads that share keys are
one product; elsewhere each span is one call of torch's attention. That this equals the masked forward is proved in the tests.
A decoding step's few tokens have all heads that share keys asked together. Knows nothing about models. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from dcr2ad.models.tree import Span

NAME = "dcr2ad_tree"
"""Name under which transformers knows it."""
TILE = 192
"""Nodes whose scores are computed together on a CPU: enough for the matrix units, few enough for their cache."""
FEW = 8
"""Tokens of a decoding step at most: heads that share keys are asked as if they were tokens."""


def use_tree_attention(model: Any) -> None:
    """Have a model's language model attend by `tree_attention`, unless another attention than ``sdpa`` was asked for."""
    config = model.get_decoder().config
    if config._attn_implementation == "sdpa":
        config._attn_implementation = NAME


def has_tree_attention(model: Any) -> bool:
    """Whether a model's language model takes ``spans``."""
    return bool(model.get_decoder().config._attn_implementation == NAME)


def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    spans: Sequence[Span] | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in the form that transformers calls.

    Args:
        module: the attention layer.
        query: shape ``(N, heads, T, D)``; N is 1 where there are spans.
        key: shape ``(N, key heads, T, D)``, behind a cache more than T; heads are a multiple of key heads.
        value: as `key`.
        attention_mask: what ``sdpa`` takes; not looked at where there are spans.
        dropout: share of probabilities dropped.
        scaling: factor of the scores; default one over the root of D.
        spans: the tree; None for attention under `attention_mask`.
        more: passed on to ``sdpa``.

    Returns:
        shape ``(N, T, heads, D)``, and None.
    """
    if spans is None:
        grouped = key.shape[1] < query.shape[1] and query.shape[2] <= FEW
        if grouped and attention_mask is not None and attention_mask.shape[1] == 1:
            return _together(query, key, value, attention_mask, dropout, scaling), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more)
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        query, key, value = (tensor.to(torch.get_autocast_dtype(kind)) for tensor in (query, key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if kind == "cpu" and not dropout:
        tiles = [tile for span in spans for tile in span.cut(TILE)]
        return _Tiled.apply(query[0], key[0], value[0], scaling, tiles)[None], None
    parts = [_by_torch(query, key, value, span, dropout, scaling) for span in spans]
    return torch.cat(parts, dim=2).transpose(1, 2), None


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def _together(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, dropout: float, scaling: float | None
) -> torch.Tensor:
    """Attention of few tokens ``(N, heads, T, D)``, heads that share keys as tokens of one head: each key is read once.

    In bfloat16 on a CPU torch's attention of one token takes five times as long with each head by itself
    (``benchmarks/step_attention.py``).
    """
    heads, groups = query.shape[1], key.shape[1]
    masks = mask.repeat(1, 1, heads // groups, 1)
    asked = _heads_together(query, groups)
    found = scaled_dot_product_attention(asked, key, value, attn_mask=masks, dropout_p=dropout, scale=scaling)
    return _heads_apart(found, heads).transpose(1, 2).contiguous()


def _by_torch(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, span: Span, dropout: float, scaling: float
) -> torch.Tensor:
    keys, values = (torch.cat([tensor[:, :, a:b] for a, b in span.seen], dim=2) for tensor in (key, value))
    length, seen = span.end - span.start, keys.shape[2]
    mask = _causal(length, seen, query.device) if span.before else None
    return scaled_dot_product_attention(
        query[:, :, span.start : span.end],
        keys,
        values,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


class _Tiled(torch.autograd.Function):
    """Attention by tiles; keeps queries, keys and values alone for the gradient."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, tiles: Sequence[Span]
    ) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.scaling, ctx.tiles = scaling, tiles
        heads, length, width = query.shape
        result = query.new_empty(length, heads, width)
        for tile, asked, keys, values in _parts(tiles, query, key, value):
            found = torch.bmm(_probabilities(asked, keys, scaling, tile).to(query.dtype), values)
            result[tile.start : tile.end] = _heads_apart(found, heads).transpose(0, 1)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, None]:
        query, key, value = ctx.saved_tensors
        upstream = gradients[0].transpose(0, 1)
        exact = torch.promote_types(query.dtype, torch.float32)
        of_query = torch.empty_like(query)
        of_key, of_value = torch.zeros_like(key, dtype=exact), torch.zeros_like(value, dtype=exact)
        for tile, asked, keys, values in _parts(ctx.tiles, query, key, value):
            above = _heads_together(upstream[:, tile.start : tile.end], len(key))
            probabilities = _probabilities(asked, keys, ctx.scaling, tile)
            _add(of_value, tile, torch.bmm(probabilities.to(query.dtype).mT, above))
            of_scores = torch.bmm(above, values.mT).to(exact)
            of_scores = torch._softmax_backward_data(of_scores, probabilities, -1, exact).mul_(ctx.scaling).to(query.dtype)
            of_query[:, tile.start : tile.end] = _heads_apart(torch.bmm(of_scores, keys), len(query))
            _add(of_key, tile, torch.bmm(of_scores.mT, asked))
        return of_query, of_key.to(key.dtype), of_value.to(value.dtype), None, None


def _parts(
    tiles: Sequence[Span], query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> Iterator[tuple[Span, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Each tile with its queries, one row a key head, and the keys and values they see."""
    for tile in tiles:
        keys, values = (torch.cat([tensor[:, a:b] for a, b in tile.seen], dim=1) for tensor in (key, value))
        yield tile, _heads_together(query[:, tile.start : tile.end], len(key)), keys, values


def _heads_together(queries: torch.Tensor, groups: int) -> torch.Tensor:
    """Heads that share keys under one another: ``(..., heads, n, D)`` to ``(..., groups, heads / groups * n, D)``."""
    return queries.reshape(*queries.shape[:-3], groups, -1, queries.shape[-1])


def _heads_apart(queries: torch.Tensor, heads: int) -> torch.Tensor:
    return queries.reshape(*queries.shape[:-3], heads, -1, queries.shape[-1])


def _probabilities(queries: torch.Tensor, keys: torch.Tensor, scaling: float, tile: Span) -> torch.Tensor:
    """Softmax of the scores, in float32 at least; a node sees the nodes of its tile up to itself."""
    scores = torch.bmm(queries, keys.mT)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).mul_(scaling)
    length = tile.end - tile.start
    above = _minus_infinity_above(TILE, scores.dtype)[:length, :length]
    scores.view(len(keys), -1, length, keys.shape[1])[..., -length:].add_(above)
    return scores.softmax(-1)


def _add(total: torch.Tensor, tile: Span, part: torch.Tensor) -> None:
    """Add gradients of what a tile sees to where it lies."""
    used = 0
    for start, end in tile.seen:
        total[:, start:end] += part[:, used : used + end - start]
        used += end - start


@cache
def _minus_infinity_above(size: int, dtype: torch.dtype) -> torch.Tensor:
    """Mask of the largest tile; that of a smaller one is its corner, so that nothing is kept for each size met."""
    return torch.full((size, size), -torch.inf, dtype=dtype).triu(1)


def _causal(length: int, seen: int, device: torch.device) -> torch.Tensor:
    """Mask of the last `length` of `seen` nodes."""
    return torch.ones(length, seen, dtype=torch.bool, device=device).tril(seen - length)
