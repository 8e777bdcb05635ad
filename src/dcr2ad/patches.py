"""Distances between the patches of a part and those of its references, for the visual expert.

Reads patch features; returns maps of cosine distance and the level that is ordinary. Knows nothing about images, limits or
words. Not in the paper; docs/expert.md holds what was tried, with figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

GRID = 22
"""Side of the anomaly map in patches: that of the finer features."""
FINE_WEIGHT = 0.3
"""Weight of the finer map."""
SELF_WEIGHT = 0.15
"""Weight of a patch's distance to the rest of its own image: texture repeats itself, a defect seldom does."""
BORDER = 0.8
"""Factor on the outermost patches, which see no context on one side and match badly wherever a crop differs."""


@dataclass(frozen=True)
class Features:
    """Patch features of one image; rows have unit length, so that a dot product is a cosine."""

    coarse: torch.Tensor
    """float16, ``(views, 256, 768)``: the image; for a reference also mirrored, flipped and turned by half."""
    fine: torch.Tensor
    """float16, ``(484, 768)``: the image at the finer size."""
    light: np.ndarray
    """float32, ``(22, 22)``: mean luminance of each fine patch after evening out, 0 to 1."""


def compare(query: Features, references: Sequence[Features]) -> np.ndarray:
    """The raw map, ``(22, 22)``: cosine distance of each query patch from the nearest patch of any reference."""
    coarse = _nearest(query.coarse[0], torch.cat([reference.coarse.flatten(0, 1) for reference in references]))
    fine = _nearest(query.fine, torch.cat([reference.fine for reference in references]))
    return _join(query, coarse, fine)


def self_distance(references: Sequence[Features]) -> float:
    """What distance is ordinary: the mean over each reference's own map, its own neighbourhood left out.

    A patch of a reference is compared with everything else the references show, but not with itself or what it touches.
    """
    means = []
    for number, reference in enumerate(references):
        others = [other for position, other in enumerate(references) if position != number]
        own = reference.coarse[0]
        coarse = _isolation(own)
        fine = _isolation(reference.fine)
        if others:
            coarse = torch.minimum(coarse, _nearest(own, torch.cat([other.coarse.flatten(0, 1) for other in others])))
            fine = torch.minimum(fine, _nearest(reference.fine, torch.cat([other.fine for other in others])))
        means.append(float(_join(reference, coarse, fine).mean()))
    return float(np.mean(means))


def _nearest(patches: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    return (1 - patches.float() @ bank.float().T).min(1).values


def _isolation(patches: torch.Tensor) -> torch.Tensor:
    """Distance of each patch from the nearest one of its own image beyond an eighth of the side."""
    side = round(len(patches) ** 0.5)
    row, column = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
    apart = torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs())
    distances = 1 - patches.float() @ patches.float().T
    return distances.masked_fill(apart <= side // 8, torch.inf).min(1).values


def _join(image: Features, coarse: torch.Tensor, fine: torch.Tensor) -> np.ndarray:
    """One map from distances at both sizes, the image's own repetition and the border taken into account."""
    small = _weighted(coarse, _isolation(image.coarse[0]))
    large = _weighted(fine, _isolation(image.fine))
    small = functional.interpolate(small[None, None], size=(GRID, GRID), mode="bilinear", align_corners=False)[0, 0]
    return ((1 - FINE_WEIGHT) * small + FINE_WEIGHT * large).numpy()


def _weighted(distance: torch.Tensor, isolation: torch.Tensor) -> torch.Tensor:
    side = round(len(distance) ** 0.5)
    joined = ((1 - SELF_WEIGHT) * distance + SELF_WEIGHT * isolation).view(side, side)
    frame = torch.full((side, side), BORDER)
    frame[1:-1, 1:-1] = 1.0
    return joined * frame
