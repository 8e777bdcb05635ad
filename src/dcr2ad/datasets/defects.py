"""Defects drawn onto good photographs, each with its exact mask.

Reads an RGB image and, where known, its foreground; returns the changed image and a boolean mask of the defect. Knows nothing
about files, knowledge or questions; each kind's name is a label that knowledge resolves. Not in the paper.

The idea to train on made-up defects is CutPaste's (Li et al. 2021) and, with a noise mask over a foreground, DRAEM's
(Zavrtanik et al. 2021); blending them in so that no seam tells them apart is NSA's (Schlueter et al. 2022). Those leave the
kind of defect open; these are drawn kind by kind, so that a label and a knowledge entry go with each.

A defect is drawn in a window of the photograph no larger than `WINDOW` a side and, where it is larger, laid on in strips, so
that a photograph of any size takes little more memory than itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from dcr2ad.datasets import broken, circuits, marks, patterns
from dcr2ad.datasets.foreground import estimate_foreground, estimate_light, has_outline, reduced
from dcr2ad.datasets.surface import Layer, Surface, box_mean, smoothed
from dcr2ad.datasets.two_tone import binarised, two_levels
from dcr2ad.errors import ImageError, UnknownNameError

WINDOW = 768
"""Longest side of the window a defect is drawn in, pixels; a larger one is drawn at this size and enlarged."""
MOST_PIXELS = 50_000_000
"""Larger photographs are refused: at this size the process takes 635 MB, 395 MB of it beside the photograph itself."""
_STRIP = 256
"""Rows laid on at a time."""
_FAINTEST = 0.06
"""Opacity below which nothing is drawn, so that the mask holds every changed pixel and little else."""
_LEAST_PATTERN = 0.07
"""Standard deviation of grey levels under which there is no pattern to upset."""


class _Kind(NamedTuple):
    """How one kind is drawn."""

    paint: Callable[[Surface, random.Random], Layer]
    reach: float
    """How far the defect reaches from its spot, in the part's size."""
    where: Literal["inner", "border", "pattern", "track"] = "inner"
    """Where the spot lies: well inside, on the border, where the part has a pattern, or on a track's border."""
    pale: bool = False
    """Whether it may be faint, since the part shines through; the others get smaller instead: a pale hole is no hole."""


_KINDS: dict[str, _Kind] = {
    "scratch": _Kind(marks.scratch, 0.36, pale=True),
    "crack": _Kind(marks.crack, 0.66, "border", pale=True),
    "pit": _Kind(marks.pit, 0.2),
    "dent": _Kind(marks.dent, 0.22),
    "dirt": _Kind(marks.dirt, 0.4, pale=True),
    "discolouration": _Kind(marks.discolouration, 0.45, pale=True),
    "foreign_object": _Kind(marks.foreign_object, 0.55),
    "chip": _Kind(broken.chip, 0.42, "border"),
    "hole": _Kind(broken.hole, 0.26),
    "missing_material": _Kind(broken.missing_material, 0.22),
    "fray": _Kind(broken.fray, 0.3, "border"),
    "misprint": _Kind(patterns.misprint, 0.26, "pattern"),
    "misplaced": _Kind(patterns.misplaced, 0.5, "pattern"),
    "missing": _Kind(patterns.missing, 0.5, "pattern"),
    **{kind: _Kind(circuits.painter(kind), 0.32, "track") for kind in circuits.CIRCUITS},
}
DEFECT_KINDS = tuple(kind for kind, how in _KINDS.items() if how.where != "track")
"""What can be drawn onto any part that shows what it needs; each name is also the label knowledge resolves."""
_MOST_COPPER = 0.45
"""Share of black above which a board's copper may be what is white."""


def draw_defect(
    image: Image.Image,
    kind: str,
    *,
    seed: int,
    foreground: np.ndarray | None = None,
    strength: float = 1.0,
    light: tuple[float, float] | None = None,
) -> tuple[Image.Image, np.ndarray]:
    """Draw one defect onto a good photograph.

    Args:
        image: the photograph, RGB.
        kind: one of `DEFECT_KINDS`; on a board in black and white, copper black, one of `dcr2ad.datasets.circuits.CIRCUITS`.
        seed: decides place, form and size.
        foreground: boolean mask of the part, shape ``(height, width)``; None estimates it.
        strength: above 0; below 1 is harder to see. Opacity of scratches, cracks, dirt and discolouration, size of the others:
            a pale hole is no hole.
        light: direction towards the light, x to the right and y down, of length one; None estimates it.

    Returns:
        the new image and the mask, boolean, shape ``(height, width)``: the defect's extent. No pixel outside it was changed.
        On a picture of two grey levels the defect has these as well, and the mask is empty where none of it crosses over.

    Raises:
        UnknownNameError: no such kind.
        ImageError: the photograph is over `MOST_PIXELS`; the foreground is empty or of another size; a chip is wanted of an
            estimated foreground without outline; a kind that upsets a pattern where there is none; or one of a circuit where
            there are no black tracks on white.
    """
    if kind not in _KINDS:
        raise UnknownNameError(f"no drawn defect {kind!r}", f"Kinds: {', '.join(_KINDS)}")
    check_size(image.size)
    photograph = image if image.mode == "RGB" else image.convert("RGB")
    coarse = reduced(photograph)
    how, levels = _KINDS[kind], two_levels(photograph)
    grey = np.asarray(coarse.convert("L"), dtype=np.float64) / 255
    if how.where == "track":
        if levels is None or not 0 < circuits.copper_of(grey).mean() <= _MOST_COPPER:
            raise ImageError(f"a defect of kind {kind} needs black tracks on white, which are not seen", "Draw another kind")
        inside = np.ones(grey.shape, dtype=bool)  # a board fills its picture, and what is not copper is part of it as well
    else:
        inside = _foreground(photograph, coarse, foreground)
    if kind == "chip" and foreground is None and not has_outline(inside):
        raise ImageError(
            "a chip needs the part's whole outline, which is not seen", "Draw another kind, or give the foreground"
        )
    rng = random.Random(f"{seed}/{kind}")
    spot = _spot(how.where, kind, grey, inside, rng)
    towards = estimate_light(grey, inside) if light is None else light
    box, factor = _window(photograph.size, inside, spot, how.reach)
    surface = _surface(photograph, coarse, inside, spot, box, factor, towards, 1.0 if how.pale else strength)
    layer = how.paint(surface, rng)
    opacity = np.clip(layer.opacity * (strength if how.pale else 1.0), 0, 1) * surface.inside
    opacity[opacity < _FAINTEST] = 0
    colour = np.clip(layer.colour, 0, 1)
    if np.ptp(np.asarray(coarse, dtype=np.float64), axis=2).mean() < 2.5:  # a grey camera sees no coloured dirt
        colour = np.broadcast_to(colour.mean(axis=2, keepdims=True), colour.shape)
    picture, mask = _laid_on(photograph, opacity[..., None] * (colour - surface.rgb), opacity, box)
    return binarised(photograph, picture, mask, levels) if levels else (picture, mask)


def check_size(size: tuple[int, int]) -> None:
    """Refuse a photograph too large to draw on.

    Raises:
        ImageError: it has more than `MOST_PIXELS`.
    """
    if size[0] * size[1] > MOST_PIXELS:
        limit = f"more than {MOST_PIXELS // 1_000_000} megapixels"
        raise ImageError(f"a photograph of {size[0]}x{size[1]} pixels is too large to draw on: {limit}", "Scale or crop it")


def _foreground(photograph: Image.Image, coarse: Image.Image, given: np.ndarray | None) -> np.ndarray:
    """The part at the coarse size."""
    if given is None:
        return estimate_foreground(coarse)
    flags = np.asarray(given, dtype=bool)
    if flags.shape != photograph.size[::-1] or not flags.any():
        raise ImageError(f"a foreground of {flags.sum()} pixels does not fit the image", "Give a mask of the image's size")
    small = Image.fromarray(flags).convert("L").resize(coarse.size, Image.Resampling.BOX)
    found = np.asarray(small) >= 128
    return found if found.any() else np.asarray(small) > 0


def _spot(where: str, kind: str, grey: np.ndarray, inside: np.ndarray, rng: random.Random) -> tuple[float, float]:
    """Where the defect is to lie, in coarse pixels."""
    size = float(np.sqrt(inside.sum()))
    if where == "border":
        return _border_point(inside, rng)
    if where == "track":
        rows, columns = np.nonzero(circuits.track_borders(circuits.copper_of(grey)))
        choice = rng.randrange(len(rows))
        return float(columns[choice]), float(rows[choice])
    padded = np.pad(inside.astype(np.float64), 1)
    deep = smoothed(padded, size * 0.1)[1:-1, 1:-1] * inside
    good = deep >= min(0.9, float(deep.max()) * 0.97)
    if where == "pattern":
        contrast = patterns.contrast_map(grey, max(2.0, size * 0.05)) * good
        if contrast.max() < _LEAST_PATTERN:
            raise ImageError(f"a {kind} defect needs a pattern, which the part does not show", "Draw another kind")
        good = contrast >= np.quantile(contrast[good], 0.7)
    rows, columns = np.nonzero(good)
    choice = rng.randrange(len(rows))
    return float(columns[choice]), float(rows[choice])


def _border_point(inside: np.ndarray, rng: random.Random) -> tuple[float, float]:
    """A point on the foreground's outer border: the first foreground pixel met on a way in from outside."""
    height, width = inside.shape
    rows, columns = np.nonzero(inside)
    y, x, angle = rows.mean(), columns.mean(), rng.uniform(0, 2 * np.pi)
    for distance in np.arange(np.hypot(height, width), 0, -1):
        column, row = round(x + np.cos(angle) * distance), round(y + np.sin(angle) * distance)
        if 0 <= row < height and 0 <= column < width and inside[row, column]:
            return float(column), float(row)
    return float(x), float(y)


def _window(
    full: tuple[int, int], inside: np.ndarray, spot: tuple[float, float], reach: float
) -> tuple[tuple[int, int, int, int], float]:
    """The window's box in the photograph, and by what factor it is reduced."""
    grow = full[0] / inside.shape[1]
    half = reach * float(np.sqrt(inside.sum())) * grow + 8
    x, y = (spot[0] + 0.5) * grow, (spot[1] + 0.5) * grow
    left, top = max(0, int(x - half)), max(0, int(y - half))
    right, bottom = min(full[0], int(x + half) + 1), min(full[1], int(y + half) + 1)
    return (left, top, right, bottom), min(1.0, WINDOW / max(right - left, bottom - top))


def _surface(
    photograph: Image.Image,
    coarse: Image.Image,
    inside: np.ndarray,
    spot: tuple[float, float],
    box: tuple[int, int, int, int],
    factor: float,
    light: tuple[float, float],
    scale: float,
) -> Surface:
    left, top, right, bottom = box
    shape = max(1, round((bottom - top) * factor)), max(1, round((right - left) * factor))
    grow = photograph.size[0] / inside.shape[1]
    place = tuple(edge / grow for edge in box)

    def cut(values: np.ndarray) -> np.ndarray:
        part = Image.fromarray(values.astype(np.float32))
        limits = (place[0], place[1], min(place[2], part.width), min(place[3], part.height))
        return np.asarray(part.resize(shape[::-1], Image.Resampling.BILINEAR, box=limits), dtype=np.float64)

    size = float(np.sqrt(inside.sum()))
    rows, columns = np.nonzero(inside)
    picture = photograph.crop(box)
    if factor < 1:
        picture = picture.resize(shape[::-1], Image.Resampling.BOX)
    return Surface(
        rgb=np.asarray(picture, dtype=np.float64) / 255,
        inside=cut(inside.astype(np.float64)) >= 0.5,
        depth=cut(_depth(inside, size)),
        spot=(((spot[0] + 0.5) * grow - left) * factor, ((spot[1] + 0.5) * grow - top) * factor),
        inward=float(np.arctan2(rows.mean() - spot[1], columns.mean() - spot[0])),
        size=size * grow * factor * scale,
        light=light,
        outlined=has_outline(inside),
    )


def _depth(inside: np.ndarray, size: float) -> np.ndarray:
    """Depth inside the border as a share of `size`, up to 0.1; the picture's border counts as one.

    A box as wide as twice the wanted depth holds, at a straight border, a share of the part that grows evenly with depth.
    """
    half = max(2, round(0.1 * size))
    padded = np.pad(inside.astype(np.float64), half)
    share = np.minimum(box_mean(padded, half, 0), box_mean(padded, half, 1))[half:-half, half:-half]
    return np.asarray(np.clip(2 * share - 1, 0, 1) * 0.1)


def _laid_on(
    photograph: Image.Image, change: np.ndarray, opacity: np.ndarray, box: tuple[int, int, int, int]
) -> tuple[Image.Image, np.ndarray]:
    """The photograph with the window's change added, and the mask; in strips, so that memory stays small."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    across, down = opacity.shape[1] / width, opacity.shape[0] / height
    layers = [Image.fromarray(values.astype(np.float32)) for values in (*np.moveaxis(change, 2, 0), opacity)]
    result, mask = photograph.copy(), np.zeros(photograph.size[::-1], dtype=bool)
    for start in range(0, height, _STRIP):
        rows = min(_STRIP, height - start)
        limits = (0, start * down, width * across, (start + rows) * down)
        resized = [np.asarray(part.resize((width, rows), Image.Resampling.BILINEAR, box=limits)) for part in layers]
        extent = resized[3] > 0 if across == 1 else resized[3] >= _FAINTEST / 2
        area = (left, top + start, right, top + start + rows)
        before = np.asarray(photograph.crop(area), dtype=np.float32)
        after = np.clip(np.round(before + 255 * np.stack(resized[:3], axis=2) * extent[..., None]), 0, 255)
        result.paste(Image.fromarray(after.astype(np.uint8)), area[:2])
        mask[area[1] : area[3], left:right] = extent
    return result, mask
