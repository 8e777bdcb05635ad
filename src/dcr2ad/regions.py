"""Hot regions of an anomaly map: which cell, how elongated, darker or brighter than it should be.

Reads maps and masks as arrays; returns numbers and words. Knows nothing about files, models or how a map came about. Not in
the paper.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

CELL_SHARE = 0.1
"""Share of a cell's area, the worst, whose mean is the cell's score."""
TONE_STEP = 0.03
"""Difference in luminance, 0 to 1, from which a region counts as darker or brighter."""


def cell_scores(anomaly: np.ndarray) -> np.ndarray:
    """Score of each cell of the 3x3 grid (`dcr2ad.places`): the mean over its worst tenth; see docs/expert.md."""
    height, width = anomaly.shape  # three times as fine, a third of the side is a whole number of rows
    enlarged = Image.fromarray(anomaly.astype(np.float32)).resize((3 * width, 3 * height), Image.Resampling.BILINEAR)
    cells = np.asarray(enlarged).reshape(3, height, 3, width).swapaxes(1, 2).reshape(9, -1)
    return np.sort(cells, axis=1)[:, -max(1, int(cells.shape[1] * CELL_SHARE)) :].mean(axis=1)


def connected(mask: np.ndarray, start: tuple[int, int]) -> np.ndarray:
    """The part of a boolean mask that hangs together with `start`, diagonals included."""
    part = np.zeros_like(mask)
    part[start] = True
    height, width = mask.shape
    while True:
        padded = np.pad(part, 1)
        grown = np.logical_or.reduce([padded[r : r + height, c : c + width] for r in range(3) for c in range(3)]) & mask
        if (grown == part).all():
            return part
        part = grown


def elongation(rows: np.ndarray, columns: np.ndarray) -> float:
    """Ratio of the principal axes of a set of patches, by second moments; a twelfth is the moment of one square patch."""
    offsets = np.stack([rows - rows.mean(), columns - columns.mean()])
    small, large = np.linalg.eigvalsh(offsets @ offsets.T / len(rows) + np.eye(2) / 12)
    return float(np.sqrt(large / small))


def tone(difference: float) -> Literal["darker", "brighter", "same"]:
    """Word for a difference in luminance, -1 to 1."""
    if abs(difference) < TONE_STEP:
        return "same"
    return "brighter" if difference > 0 else "darker"
