"""Log-probabilities of single tokens from logits, without a float32 copy of the logits or of their gradient.

Pure tensors. A vocabulary of 50,000 or 150,000 makes logits the largest tensor of a step; autograd's own way over logsumexp and
indexing holds several of that size in float32, one for each response. Not in the paper.
"""

from __future__ import annotations

from typing import Any

import torch

ROWS = 32
"""Rows of logits that are float32 at a time: what a processor's cache holds."""


def token_logprobs(logits: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability of tokens at rows of logits; computed in float32, or float64 for float64 logits.

    Args:
        logits: shape ``(U, V)``.
        rows: row of each token, shape ``(N,)``; a row may come twice.
        tokens: index into the vocabulary of each, shape ``(N,)``.

    Returns:
        shape ``(N,)``, nats.
    """
    found: torch.Tensor = _Selected.apply(logits, rows, tokens)
    return found


class _Selected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        exact = torch.promote_types(logits.dtype, torch.float32)
        totals = torch.cat([part.to(exact).logsumexp(-1) for part in logits.split(ROWS)])
        ctx.save_for_backward(logits, totals, rows, tokens)
        return logits[rows, tokens].to(exact) - totals[rows]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, totals, rows, tokens = ctx.saved_tensors
        above = gradients[0]
        weights = torch.zeros_like(totals).index_add_(0, rows, above)
        result = torch.empty_like(logits)
        for start in range(0, len(logits), ROWS):
            part = slice(start, start + ROWS)
            softmax = (logits[part] - totals[part, None]).exp_()
            result[part] = softmax.mul_(-weights[part, None])
        return result.index_put_((rows, tokens), above.to(logits.dtype), accumulate=True), None, None
