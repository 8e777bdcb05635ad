"""Contact sheets: many small pictures with captions on one picture, to look at data.

Reads pictures and masks; returns one picture. Knows nothing about samples or files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

MOST = 64
"""Pictures on a sheet: more are too small to judge."""


def contact_sheet(
    pictures: Sequence[tuple[str, Image.Image, np.ndarray | None]], *, columns: int = 8, side: int = 200
) -> Image.Image:
    """Pictures side by side with a caption each, those with a mask a second time with the mask's border in red.

    Args:
        pictures: caption, picture, and boolean mask of its size or None.
        columns: cells in a row.
        side: side of a cell in pixels.
    """
    cells: list[tuple[str, Image.Image]] = []
    for caption, picture, mask in pictures:
        room = side // 6 * (1 if mask is None else 2)  # a caption goes on over the outlined picture beside
        cells.append((caption[:room], picture))
        if mask is not None:
            cells.append(("", _outlined(picture, mask)))
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * side, rows * (side + 16)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (caption, picture) in enumerate(cells):
        x, y = number % columns * side, number // columns * (side + 16)
        small = picture.convert("RGB")
        small.thumbnail((side - 6, side - 6))
        sheet.paste(small, (x + 3, y + 14))
        pen.text((x + 4, y + 1), caption, fill="black")
    return sheet


def _outlined(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    flags = Image.fromarray(mask.astype(np.uint8) * 255)
    reach = 2 * max(1, round(max(picture.size) / 200)) + 1
    border = np.asarray(flags.filter(ImageFilter.MaxFilter(reach))) > np.asarray(flags)
    pixels = np.array(picture.convert("RGB"))
    pixels[border] = (220, 30, 30)
    return Image.fromarray(pixels)
