"""Where the part lies in a photograph, whether it is seen whole, and from where it is lit.

Reads pictures at a bounded size; returns boolean maps. A rough estimate from colour alone. Not in the paper.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from dcr2ad.datasets.surface import two_tones

COARSE = 512
"""Longest side at which a part is looked for."""
_LEAST_DISTANCE = 30.0
"""Distance in colour, of 442, under which nothing is told from the background."""
_TOLD = 0.7
"""How well two classes of distance must explain the picture, see `two_tones`: a ground of its own has 0.74 and more."""
_USUAL_LIGHT = (-0.6, -0.8)
"""From the upper left, as most lamps and viewers have it."""


def reduced(image: Image.Image) -> Image.Image:
    """The picture at `COARSE` a side at most."""
    share = COARSE / max(image.size)
    if share >= 1:
        return image
    return image.resize((max(1, round(image.width * share)), max(1, round(image.height * share))), Image.Resampling.BOX)


def estimate_foreground(image: Image.Image) -> np.ndarray:
    """Where the part is: the largest region that differs in colour from the picture's border, by Otsu's threshold (1979).

    Everything where there is none, or where it runs into the border: then what is background cannot be told. A larger picture
    is looked at in `COARSE` pixels a side.

    Returns:
        boolean mask, shape ``(height, width)``.
    """
    small = reduced(image.convert("RGB"))
    rgb = np.asarray(small.filter(ImageFilter.GaussianBlur(2)), dtype=np.float64)
    border = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])
    distance = np.linalg.norm(rgb - np.median(border, axis=0), axis=2)
    limit, told = two_tones(distance)
    tries = (_isolated(distance > max(_LEAST_DISTANCE, share * limit)) for share in (0.8, 1.0, 1.25))
    found = next((flags for flags in tries if flags is not None), None) if told >= _TOLD else None
    if found is None:
        return np.ones(image.size[::-1], dtype=bool)
    if small.size == image.size:
        return found
    whole = Image.fromarray(found.astype(np.uint8) * 255).resize(image.size, Image.Resampling.BILINEAR)
    return np.asarray(whole) >= 128


def estimate_light(grey: np.ndarray, inside: np.ndarray) -> tuple[float, float]:
    """Direction towards the light: where the part gets brighter, if a plane tells more than a tenth of its brightness.

    Args:
        grey: values 0 to 1, shape ``(height, width)``.
        inside: boolean, same shape.

    Returns:
        unit vector, x to the right and y down; from the upper left where the part does not tell.
    """
    rows, columns = np.nonzero(inside)
    if rows.size < 9:
        return _USUAL_LIGHT
    x, y = columns - columns.mean(), rows - rows.mean()
    values = grey[rows, columns] - grey[rows, columns].mean()
    (a, b), *_ = np.linalg.lstsq(np.stack([x, y], axis=1).astype(np.float64), values, rcond=None)
    told, length = float(((a * x + b * y) ** 2).sum()), float(np.hypot(a, b))
    if length == 0 or told < 0.1 * float((values**2).sum()):
        return _USUAL_LIGHT
    return float(a) / length, float(b) / length


def has_outline(inside: np.ndarray) -> bool:
    """Whether the picture's border is background nearly all round: only then is the part seen whole."""
    border = np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]])
    return bool(border.mean() < 0.12)


def _isolated(flags: np.ndarray) -> np.ndarray | None:
    """The largest region, where it is solid, of a fair size, and clear of the picture's border."""
    found = _largest_region(_closed(flags))
    rim = np.concatenate([found[0], found[-1], found[:, 0], found[:, -1]])
    is_part = 0.05 < found.mean() < 0.9 and rim.mean() <= 0.02 and flags[found].mean() >= 0.8
    return found if is_part else None


def _closed(flags: np.ndarray) -> np.ndarray:
    """The flags with small gaps closed: a component as grey as the bench is still part of the board."""
    cells = Image.fromarray(flags.astype(np.uint8) * 255).resize((128, 128), Image.Resampling.BOX)
    closed = cells.point(lambda v: 255 * (v > 127)).filter(ImageFilter.MaxFilter(7)).filter(ImageFilter.MinFilter(7))
    return flags | (np.asarray(closed.resize(flags.shape[::-1], Image.Resampling.NEAREST)) > 0)


def _largest_region(flags: np.ndarray) -> np.ndarray:
    """The largest connected region of a boolean map, told on a grid of 64 cells a side: a tray's rim is no part."""
    cells = (
        Image.fromarray(flags.astype(np.uint8) * 255).resize((64, 64), Image.Resampling.BOX).point(lambda v: 255 * (v > 100))
    )
    best, size = np.zeros((64, 64), dtype=bool), 0
    for number in range(1, 255):
        left = np.argwhere(np.asarray(cells) == 255)
        if len(left) <= size:
            break
        ImageDraw.floodfill(cells, (int(left[0][1]), int(left[0][0])), number)
        region = np.asarray(cells) == number
        if region.sum() > size:
            best, size = region, int(region.sum())
    near = Image.fromarray(best.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(3))
    return flags & (np.asarray(near.resize(flags.shape[::-1], Image.Resampling.NEAREST)) > 0)
