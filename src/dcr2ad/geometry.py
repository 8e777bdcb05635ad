"""What a defect's mask says: place, size and shape.

Reads masks; returns `Geometry`. Knows nothing about questions or wording. Not in the paper, which verifies places against
masks (Appendix B.1) without saying how.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dcr2ad.errors import ImageError
from dcr2ad.images import load_mask
from dcr2ad.places import cell_shares
from dcr2ad.types import Sample


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


def mask_geometry(mask: np.ndarray) -> Geometry:
    """Measure a mask, boolean, shape ``(height, width)``. Raises ValueError for an empty one."""
    rows, columns = np.nonzero(mask)
    if not rows.size:
        raise ValueError("the mask is empty")
    shares = cell_shares(mask)
    spread = np.cov(np.stack([rows, columns]).astype(np.float64)) if rows.size > 1 else np.zeros((2, 2))
    # A pixel is a unit square: 1/12 keeps a line one pixel wide finite.
    small, large = np.linalg.eigvalsh(spread + np.eye(2) / 12)
    box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    return Geometry(
        cell=int(shares.argmax()),
        shares=tuple(float(share) for share in shares),
        extent=float(rows.size / mask.size),
        elongation=float(np.sqrt(large / small)),
        is_outline=bool(rows.size < box and _is_one_region(rows, columns, mask.shape)),
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


def _is_one_region(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether the pixels hang together on a coarse grid of 48 cells a side, gaps of one cell closed."""
    left = set(zip((rows * 48 // shape[0]).tolist(), (columns * 48 // shape[1]).tolist(), strict=True))
    edge = [left.pop()]
    while edge:
        r, c = edge.pop()
        near = left & {(r + dr, c + dc) for dr in range(-2, 3) for dc in range(-2, 3)}
        left -= near
        edge.extend(near)
    return not left
