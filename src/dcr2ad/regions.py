"""The hot region of an anomaly map: how large, how elongated, where, and darker or brighter than it should be.

Reads maps as arrays; returns a `Region`. Knows nothing about files, models or how a map came about. Not in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

PEAK_SHARE = 0.6
"""A patch is hot when it passes the level and this share of the peak: a strong defect's halo is not the defect."""
TONE_STEP = 0.03
"""Difference in luminance, 0 to 1, from which a region counts as darker or brighter."""

Tone = Literal["darker", "brighter", "same"]


@dataclass(frozen=True)
class Region:
    """What is hot in a map."""

    extent: float
    """Share of the map's area."""
    elongation: float
    """Ratio of the principal axes of the part that holds the peak; 1 is round."""
    tone: Tone
    """The hot patches beside their matches."""
    box: tuple[float, float, float, float] | None
    """x1 y1 x2 y2 of the part that holds the peak, as shares of width and height; None when nothing is hot."""


def describe(anomaly: np.ndarray, *, level: float, lighter: np.ndarray) -> Region:
    """Describe what lies above a level.

    Args:
        anomaly: map, ``(height, width)``.
        level: value from which a patch is hot; infinity when nothing is.
        lighter: luminance of each patch minus that of its match, same shape, -1 to 1.
    """
    hot = anomaly > max(level, PEAK_SHARE * float(anomaly.max()))
    if not hot.any():
        return Region(extent=0.0, elongation=1.0, tone="same", box=None)
    peak = np.unravel_index(int(anomaly.argmax()), anomaly.shape)
    part = connected(hot, (int(peak[0]), int(peak[1])))
    rows, columns = np.nonzero(part)
    height, width = anomaly.shape
    return Region(
        extent=float(hot.mean()),
        elongation=_elongation(rows, columns),
        tone=_tone(float(np.average(lighter[part], weights=anomaly[part]))),
        box=(
            float(columns.min() / width),
            float(rows.min() / height),
            float((columns.max() + 1) / width),
            float((rows.max() + 1) / height),
        ),
    )


def connected(mask: np.ndarray, start: tuple[int, int]) -> np.ndarray:
    """The part of a boolean mask that hangs together with `start`, diagonals included."""
    part = np.zeros_like(mask)
    part[start] = True
    while True:
        padded = np.pad(part, 1)
        height, width = mask.shape
        grown = np.logical_or.reduce([padded[r : r + height, c : c + width] for r in range(3) for c in range(3)]) & mask
        if (grown == part).all():
            return part
        part = grown


def _elongation(rows: np.ndarray, columns: np.ndarray) -> float:
    """Square root of the ratio of the second moments; a twelfth is the moment of one square patch."""
    offsets = np.stack([rows - rows.mean(), columns - columns.mean()])
    small, large = np.linalg.eigvalsh(offsets @ offsets.T / len(rows) + np.eye(2) / 12)
    return float(np.sqrt(large / small))


def _tone(difference: float) -> Tone:
    if abs(difference) < TONE_STEP:
        return "same"
    return "brighter" if difference > 0 else "darker"
