"""What a defect's mask says: place, size and shape.

Reads masks; returns `Geometry`. Knows nothing about questions or wording. Not in the paper, which verifies places against
masks (Appendix B.1) without saying how.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dcr2ad.errors import ImageError
from dcr2ad.images import load_mask
from dcr2ad.places import cell_shares
from dcr2ad.types import Sample

_COARSE = 48
"""Cells a side of the grid that regions are told on."""


@dataclass(frozen=True)
class Geometry:
    """What a mask says about its defect, in the measures of `ExpertFindings`."""

    cell: int
    """Cell that holds most of the mask."""
    shares: tuple[float, ...]
    """Share of the mask in each cell."""
    extent: float
    """Share of the image."""
    elongation: float
    """Ratio of the principal axes."""
    is_outline: bool
    """Whether shape can be told: the mask is one region, and no plain box."""
    regions: tuple[int, int]
    """How many regions the mask has on a coarse grid, gaps of one cell closed, and left open."""
    parts: tuple[tuple[float, ...], ...]
    """For each region, gaps closed, its share in each cell of the 3x3 grid; the largest sixteen."""
    points: tuple[tuple[float, float], ...]
    """Centres of the coarse cells the mask touches, down and to the right, as shares of height and width."""


def mask_geometry(mask: np.ndarray) -> Geometry:
    """Measure a mask, boolean, shape ``(height, width)``. Raises ValueError for an empty one."""
    rows, columns = np.nonzero(mask)
    if not rows.size:
        raise ValueError("the mask is empty")
    shares = cell_shares(mask)
    spread = np.cov(np.stack([rows, columns]).astype(np.float64)) if rows.size > 1 else np.zeros((2, 2))
    # A pixel is a unit square: 1/12 keeps a line one pixel wide finite.
    small, large = np.linalg.eigvalsh(spread + np.eye(2) / 12)
    coarse = set(zip((rows * _COARSE // mask.shape[0]).tolist(), (columns * _COARSE // mask.shape[1]).tolist(), strict=True))
    regions = _regions(coarse, 2)
    box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    return Geometry(
        cell=int(shares.argmax()),
        shares=tuple(float(share) for share in shares),
        extent=float(rows.size / mask.size),
        elongation=float(np.sqrt(large / small)),
        is_outline=bool(rows.size < box and len(regions) == 1),
        regions=(len(regions), len(_regions(coarse, 1))),
        parts=tuple(_part_shares(region) for region in sorted(regions, key=len, reverse=True)[:16]),
        points=tuple(((r + 0.5) / _COARSE, (c + 0.5) / _COARSE) for r, c in sorted(coarse)),
    )


@lru_cache(maxsize=64)
def _geometry_of(masks: tuple[str, ...]) -> Geometry | None:
    union = load_mask(masks[0])
    for path in masks[1:]:
        other = load_mask(path)
        if other.shape != union.shape:
            raise ImageError(f"mask {path} has another size than {masks[0]}", "Masks of one image must have one size")
        union = union | other
    return mask_geometry(union) if union.any() else None


def sample_geometry(sample: Sample) -> Geometry | None:
    """Geometry of all masks of a sample together; None where it is good, has no mask, or an empty one.

    Raises:
        ImageError: a mask cannot be read, or two differ in size.
    """
    return _geometry_of(sample.masks) if sample.is_anomalous and sample.masks else None


def _regions(cells: Set[tuple[int, int]], reach: int) -> list[set[tuple[int, int]]]:
    """Coarse cells in groups that hang together; `reach` 1 is touching, 2 closes gaps of one cell."""
    left, found = set(cells), []
    while left:
        edge = [left.pop()]
        region = set(edge)
        while edge:
            r, c = edge.pop()
            steps = range(-reach, reach + 1)
            near = left & {(r + dr, c + dc) for dr in steps for dc in steps}
            left -= near
            region |= near
            edge.extend(near)
        found.append(region)
    return found


def _part_shares(region: Set[tuple[int, int]]) -> tuple[float, ...]:
    shares = [0.0] * 9
    for r, c in region:
        shares[r * 3 // _COARSE * 3 + c * 3 // _COARSE] += 1 / len(region)
    return tuple(shares)
