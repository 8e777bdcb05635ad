"""Pictures of two grey levels, as a camera gives that binarises: what is drawn onto one has these levels too.

Reads RGB images and masks; returns the same. Knows nothing about kinds of defect. Not in the paper.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

_NEAR = 16
"""Grey levels by which a pixel may lie off its level: compression blurs the steps."""
_NEARLY_ALL = 0.99
"""Share of the pixels that lie by the two levels; a photograph has half-tones at its edges at least."""
_APART = 192
"""Least distance of the levels: black and white. A flat drawing may have two greys and still show half-tones."""
_SIDE = 512
"""Longest side of the sample that decides."""
_STRIP = 256
"""Rows handled at a time."""


def two_levels(photograph: Image.Image) -> tuple[int, int] | None:
    """The dark and the bright grey level of a picture that has no others; None of any other picture.

    A picture of one level alone has no second one to draw in, and is any other picture.
    """
    share = min(1.0, _SIDE / max(photograph.size))
    size = [max(1, round(side * share)) for side in photograph.size]
    grey = np.asarray(photograph.resize((size[0], size[1]), Image.Resampling.NEAREST).convert("L"), dtype=np.int16)
    middle = (int(grey.min()) + int(grey.max())) / 2
    if not (grey < middle).any():
        return None
    dark, bright = round(float(np.median(grey[grey < middle]))), round(float(np.median(grey[grey >= middle])))
    near = np.minimum(np.abs(grey - dark), np.abs(grey - bright)) <= _NEAR
    return (dark, bright) if bright - dark >= _APART and near.mean() >= _NEARLY_ALL else None


def binarised(
    photograph: Image.Image, picture: Image.Image, mask: np.ndarray, levels: tuple[int, int]
) -> tuple[Image.Image, np.ndarray]:
    """A picture drawn onto a photograph of two levels, as its camera would give it, and the mask of what changed.

    Args:
        photograph: before, RGB.
        picture: after, RGB, of the same size.
        mask: boolean, shape ``(height, width)``: where the two may differ.
        levels: see `two_levels`.

    Returns:
        the photograph with the pixels turned that crossed the middle, and those pixels.
    """
    middle = sum(levels) / 2
    result, turned = photograph.copy(), np.zeros_like(mask)
    for top in range(0, photograph.height, _STRIP):
        rows = slice(top, min(top + _STRIP, photograph.height))
        area = (0, rows.start, photograph.width, rows.stop)
        before = photograph.crop(area)
        was = np.asarray(before.convert("L")) >= middle
        now = np.asarray(picture.crop(area).convert("L")) >= middle
        turned[rows] = (was != now) & mask[rows]
        level = np.where(now, levels[1], levels[0]).astype(np.uint8)[..., None]
        result.paste(Image.fromarray(np.where(turned[rows][..., None], level, np.asarray(before))), area[:2])
    return result, turned
