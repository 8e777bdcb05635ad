"""The vision tower alone: DINOv2 patch features at any resolution, without the language model and without transformers.

Reads the tower's tensors, and no others, from a built nano folder; returns patch features of the blocks asked for. Knows
nothing about references, scores or anomaly. Not in the paper.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from dcr2ad.errors import ModelError

PATCH = 14
"""Side of a patch in pixels."""
IMAGE_MEAN = (0.485, 0.456, 0.406)
"""Mean of each channel DINOv2 was trained with."""
IMAGE_STD = (0.229, 0.224, 0.225)
"""Standard deviation of each channel."""
_PREFIX = "vision_tower."
_HEADS = 6
_EPSILON = 1e-6


class _Block(nn.Module):
    """One transformer block under the names of `InternVLVisionLayer`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layernorm_before = nn.LayerNorm(width, eps=_EPSILON)
        self.layernorm_after = nn.LayerNorm(width, eps=_EPSILON)
        self.attention = nn.ModuleDict(
            {name: nn.Linear(width, width) for name in ("q_proj", "k_proj", "v_proj", "projection_layer")}
        )
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.lambda_1 = nn.Parameter(torch.ones(width))
        self.lambda_2 = nn.Parameter(torch.ones(width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        count, length, width = tokens.shape
        normed = self.layernorm_before(tokens)
        query, key, value = (
            self.attention[name](normed).view(count, length, _HEADS, width // _HEADS).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        attended = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(count, length, width)
        tokens = tokens + self.lambda_1 * self.attention["projection_layer"](attended)
        hidden = functional.gelu(self.mlp["fc1"](self.layernorm_after(tokens)))
        return tokens + self.lambda_2 * self.mlp["fc2"](hidden)


class _Embeddings(nn.Module):
    """Patches and positions under the names of `InternVLVisionEmbeddings`."""

    def __init__(self, width: int, positions: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, positions + 1, width))
        self.patch_embeddings = nn.ModuleDict({"projection": nn.Conv2d(3, width, PATCH, PATCH)})

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        rows, columns = pixels.shape[2] // PATCH, pixels.shape[3] // PATCH
        patches = self.patch_embeddings["projection"](pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        return tokens + self._positions(rows, columns)

    def _positions(self, rows: int, columns: int) -> torch.Tensor:
        side = math.isqrt(self.position_embeddings.shape[1] - 1)
        first, rest = self.position_embeddings[:, :1], self.position_embeddings[:, 1:]
        grid = rest.view(1, side, side, -1).permute(0, 3, 1, 2)
        if (rows, columns) != (side, side):
            grid = functional.interpolate(grid.float(), size=(rows, columns), mode="bicubic", align_corners=False).to(
                grid.dtype
            )
        return torch.cat([first, grid.flatten(2).transpose(1, 2)], dim=1)


class _Encoder(nn.Module):
    """The blocks under the name of `InternVLVisionEncoder`."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Block(width) for _ in range(layers))


class VisionTower(nn.Module):
    """DINOv2 ViT-S/14 cut to its first blocks; parameters are named as in `InternVLVisionModel`."""

    def __init__(self, layers: int, *, width: int = 384, positions: int = 1369) -> None:
        super().__init__()
        self.embeddings = _Embeddings(width, positions)
        self.encoder = _Encoder(layers, width)

    @property
    def layers(self) -> int:
        """Number of blocks kept."""
        return len(self.encoder.layer)

    @torch.inference_mode()
    def forward(self, pixels: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
        """Patch features after some blocks.

        Args:
            pixels: normalised images, ``(count, 3, height, width)``, both sides multiples of `PATCH`; computed in the type of
                the weights.
            layers: blocks to return, 1 = after the first; no block above the highest is computed.

        Returns:
            float32, ``(count, len(layers), height / 14, width / 14, 384)``, without the class token.
        """
        rows, columns = pixels.shape[2] // PATCH, pixels.shape[3] // PATCH
        tokens = self.embeddings(pixels.to(self.embeddings.cls_token.dtype))
        kept = {}
        for number, block in enumerate(self.encoder.layer[: max(layers)], 1):
            tokens = block(tokens)
            if number in layers:
                kept[number] = tokens[:, 1:].unflatten(1, (rows, columns))
        return torch.stack([kept[layer] for layer in layers], dim=1).float()


def load_vision_tower(folder: Path) -> VisionTower:
    """Load the tower of a built nano folder; takes a fraction of a second and about 65 MB.

    Args:
        folder: what `dcr2ad.models.nano.build_nano` returned.

    Raises:
        ModelError: the folder does not hold the embedded model.
    """
    from safetensors import SafetensorError, safe_open

    try:
        layers = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vision_config"]["num_hidden_layers"]
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(_PREFIX)]  # noqa: SIM118 (no mapping)
            state = {name.removeprefix(_PREFIX): file.get_tensor(name) for name in names}
        with torch.device("meta"):
            tower = VisionTower(layers)
        tower.load_state_dict(state, assign=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{folder} does not hold the embedded model ({reason})", "Delete the folder to have it built again"
        ) from None
    return tower.eval().requires_grad_(False)


def to_pixels(image: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    """Resize an RGB image and normalise it as the tower expects.

    Args:
        image: 8-bit RGB.
        size: width and height in pixels, multiples of `PATCH`.

    Returns:
        float32, ``(3, height, width)``.
    """
    resized = np.asarray(image.resize(size, Image.Resampling.BICUBIC), dtype=np.float32) / 255.0
    normalised = (resized - np.array(IMAGE_MEAN, np.float32)) / np.array(IMAGE_STD, np.float32)
    return torch.from_numpy(normalised).permute(2, 0, 1).contiguous()
