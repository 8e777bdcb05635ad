"""Names of places in an image, and which of them a mask covers.

One owner of the 3x3 grid: its cells are numbered row by row, 0 = top left, 8 = bottom right. Reads masks and maps as arrays,
returns cells and shares. Knows nothing about files, models or wording beyond the names. Not in the paper, which verifies
places against masks (Appendix B.1) without saying how.
"""

from __future__ import annotations

import re

import numpy as np

PLACES: tuple[str, ...] = (
    "top left",
    "top centre",
    "top right",
    "middle left",
    "centre",
    "middle right",
    "bottom left",
    "bottom centre",
    "bottom right",
)
"""Name of each cell."""

_VERTICAL = {"top": 0, "upper": 0, "bottom": 2, "lower": 2}
_HORIZONTAL = {"left": 0, "right": 2}
_MIDDLE = {"middle", "centre", "center", "central"}
_WORDS = re.compile(r"\b(top|upper|bottom|lower|left|right|middle|centre|center|central)\b", re.IGNORECASE)


def cell_shares(mask: np.ndarray) -> np.ndarray:
    """Share of a mask's area in each cell.

    Args:
        mask: boolean or non-negative array, shape ``(height, width)``.

    Returns:
        nine shares that sum to one, or nine zeros for an empty mask.
    """
    rows = np.array_split(np.asarray(mask, dtype=np.float64), 3, axis=0)
    cells = np.array([part.sum() for row in rows for part in np.array_split(row, 3, axis=1)])
    total = cells.sum()
    return cells / total if total > 0 else cells


def cell_maxima(anomaly_map: np.ndarray) -> np.ndarray:
    """Largest value of a map in each of the nine cells; the map has shape ``(height, width)``, at least 3x3."""
    rows = np.array_split(np.asarray(anomaly_map, dtype=np.float64), 3, axis=0)
    return np.array([part.max() for row in rows for part in np.array_split(row, 3, axis=1)])


def main_cell(mask: np.ndarray) -> int:
    """Cell that holds most of a mask; the lowest number wins a tie. Raises ValueError for an empty mask."""
    shares = cell_shares(mask)
    if not shares.any():
        raise ValueError("the mask is empty")
    return int(shares.argmax())


def neighbours(cell: int) -> tuple[int, ...]:
    """Cells that touch `cell`, diagonals included."""
    row, column = divmod(cell, 3)
    return tuple(
        r * 3 + c
        for r in range(max(0, row - 1), min(3, row + 2))
        for c in range(max(0, column - 1), min(3, column + 2))
        if (r, c) != (row, column)
    )


def named_cells(text: str) -> frozenset[int]:
    """Cells a short phrase such as "upper left" or "centre" names.

    One word of a side names the three cells of that side; "centre" alone the middle cell. Returns the empty set for a phrase
    that names no place.
    """
    words = [word.lower() for word in _WORDS.findall(text)]
    vertical = {_VERTICAL[word] for word in words if word in _VERTICAL}
    horizontal = {_HORIZONTAL[word] for word in words if word in _HORIZONTAL}
    middle = any(word in _MIDDLE for word in words)
    if not words or len(vertical) > 1 or len(horizontal) > 1:
        return frozenset()
    if not vertical and not horizontal:
        return frozenset({4})
    rows = vertical or ({1} if middle else {0, 1, 2})
    columns = horizontal or ({1} if middle else {0, 1, 2})
    return frozenset(r * 3 + c for r in rows for c in columns)
