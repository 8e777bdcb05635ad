"""A frozen vision tower computed once an image while the projector behind it is trained.

Reads a model and one image's pixels; returns what the tower hands to its projector, and from that, by the projector as it
stands, the image's features with a gradient to the projector's weights. Works for every model whose projector is one module:
what a model does behind it may only put tokens into another order. Knows nothing about files or training. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from dcr2ad.errors import ModelError
from dcr2ad.models.adapters import PROJECTORS


class TowerOutput(NamedTuple):
    """What a vision tower makes of one image."""

    inputs: torch.Tensor
    """What the projector is given; no gradient."""
    order: torch.Tensor
    """For each of the image's tokens the projector's row that it is, shape ``(tokens,)``."""

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.inputs.nbytes + self.order.nbytes


def find_projector(model: Any) -> Any:
    """The module from vision to language.

    Raises:
        ModelError: the model has none of a known name.
    """
    for name, module in model.named_modules():
        if any(f".{name}".endswith(f".{part}") for part in PROJECTORS):
            return module
    raise ModelError(f"{type(model).__name__} has none of the parts {', '.join(PROJECTORS)}", "Use Qwen2.5-VL or InternVL")


@torch.no_grad()
def run_tower(model: Any, pixels: dict[str, torch.Tensor], tokens: int) -> TowerOutput:
    """Run the vision tower up to the projector, which is not computed.

    Args:
        model: the model.
        pixels: one image as `get_image_features` takes it.
        tokens: tokens the image takes.
    """
    seen: list[torch.Tensor] = []

    def numbered(inputs: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        seen.append(inputs)
        return torch.arange(tokens, dtype=torch.float64, device=inputs.device).view(*inputs.shape[:-2], tokens, 1)

    with _in_place_of(find_projector(model), numbered):
        numbers = model.get_image_features(**pixels).pooler_output[0]
    return TowerOutput(seen[0], numbers.reshape(-1).long())


def project(model: Any, found: TowerOutput) -> torch.Tensor:
    """Features of the image as the language model sees them, shape ``(tokens, hidden)``; with gradient."""
    rows: torch.Tensor = find_projector(model)(found.inputs)
    return rows.reshape(-1, rows.shape[-1])[found.order]


@contextmanager
def _in_place_of(module: Any, function: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Compute something else where a module is called. A hook would run the module too: under autocast that would keep
    copies of its weights that have no gradient."""
    module.forward = function
    try:
        yield
    finally:
        del module.forward
