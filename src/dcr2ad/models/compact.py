"""Weights of a language model's layers kept in half the memory on a CPU that computes in float32.

Reads a loaded model; changes it in place: its decoder's linear layers keep bfloat16 and are widened for each product, the rest
is float32. What is lost is the rounding of those weights, little of what computing in bfloat16 loses
(``benchmarks/nano_precision.py``). Knows nothing about prompts. Not in the paper.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional


class CompactLinear(torch.nn.Linear):
    """A linear layer whose weights lie in bfloat16; the product is taken in the input's type."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Product of values ``(..., in)`` with the weights, shape ``(..., out)``."""
        return functional.linear(values, self.weight.to(values.dtype), self.bias)


def keep_compact(model: Any) -> Any:
    """The model, changed in place: its decoder's linear layers kept in bfloat16, for inference.

    What stays is copied: one parameter left in the file that weights are mapped from would keep all of it in memory.

    Args:
        model: a transformers model with a decoder, its weights in memory or mapped from a file.
    """
    compact: set[int] = set()
    for layer in model.get_decoder().modules():
        if type(layer) is torch.nn.Linear:
            layer.weight.data = layer.weight.data.to(torch.bfloat16)
            layer.__class__ = CompactLinear
            compact.add(id(layer.weight))
    for parameter in model.parameters():
        if id(parameter) not in compact:
            parameter.data = parameter.data.to(torch.float32, copy=True)
    return model
