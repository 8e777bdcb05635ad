"""Defects drawn onto good photographs, each with its exact mask: scratch, crack, pit, dirt, chip, hole, foreign object.

Reads an RGB image and, where known, its foreground; returns the changed image and a boolean mask of every pixel changed.
Knows nothing about files, knowledge or questions; each kind's name is a label that knowledge resolves. Not in the paper.

The idea to train on made-up defects is CutPaste's (Li et al. 2021) and, with a noise mask over a foreground, DRAEM's
(Zavrtanik et al. 2021); blending them in so that no seam tells them apart is NSA's (Schlueter et al. 2022). Those leave the
kind of defect open; these are drawn kind by kind, so that a label and a knowledge entry go with each.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from dcr2ad.errors import ImageError, UnknownNameError

_FAINTEST = 0.06
"""Opacity below which nothing is drawn, so that the mask holds every changed pixel and little else."""


class Layer(NamedTuple):
    """What a defect lays over the picture."""

    colour: np.ndarray
    """Shape ``(height, width, 3)``, values 0 to 1."""
    opacity: np.ndarray
    """Shape ``(height, width)``, values 0 to 1."""


class _Surface(NamedTuple):
    """The picture a defect is drawn onto."""

    rgb: np.ndarray
    """Shape ``(height, width, 3)``, values 0 to 1."""
    foreground: np.ndarray
    """Boolean, shape ``(height, width)``."""
    light: tuple[float, float]
    """Unit vector towards the light, x to the right and y down."""
    scale: float = 1.0
    """Factor of the defect's size."""

    @property
    def size(self) -> float:
        """Length that sizes of defects are measured in: the side of a square as large as the foreground."""
        return float(np.sqrt(self.foreground.sum())) * self.scale


def draw_defect(
    image: Image.Image,
    kind: str,
    *,
    seed: int,
    foreground: np.ndarray | None = None,
    strength: float = 1.0,
    light: tuple[float, float] = (-0.6, -0.8),
) -> tuple[Image.Image, np.ndarray]:
    """Draw one defect onto a good photograph.

    Args:
        image: the photograph, RGB.
        kind: one of `DEFECT_KINDS`.
        seed: decides place, form and size.
        foreground: boolean mask of the part, shape ``(height, width)``; None estimates it.
        strength: above 0; below 1 is harder to see. Opacity of scratches, cracks and dirt, size of the others: a pale hole is
            no hole.
        light: direction towards the light, x to the right and y down, of length one.

    Returns:
        the new image and the mask, boolean, shape ``(height, width)``: every pixel that was changed.

    Raises:
        UnknownNameError: no such kind.
        ImageError: the foreground is empty or of another size; or a chip is wanted of an estimated foreground without outline.
    """
    if kind not in _PAINTERS:
        raise UnknownNameError(f"no drawn defect {kind!r}", f"Kinds: {', '.join(DEFECT_KINDS)}")
    rgb = np.asarray(image.convert("RGB"), dtype=np.float64) / 255
    inside = estimate_foreground(image) if foreground is None else np.asarray(foreground, dtype=bool)
    if inside.shape != rgb.shape[:2] or not inside.any():
        raise ImageError(f"a foreground of {inside.sum()} pixels does not fit the image", "Give a mask of the image's size")
    if kind == "chip" and foreground is None and not _has_outline(inside):
        raise ImageError(
            "a chip needs the part's whole outline, which is not seen", "Draw another kind, or give the foreground"
        )
    rng = random.Random(f"{seed}/{kind}")
    pale = kind in _PALE
    layer = _PAINTERS[kind](_Surface(rgb, inside, light, 1.0 if pale else strength), rng)
    opacity = np.clip(layer.opacity * (strength if pale else 1.0), 0, 1) * inside
    opacity[opacity < _FAINTEST] = 0
    colour = np.clip(layer.colour, 0, 1)
    if np.ptp(rgb, axis=2).mean() < 0.01:  # a grey camera sees no coloured dirt
        colour = colour.mean(axis=2, keepdims=True)
    mixed = rgb + opacity[..., None] * (colour - rgb)
    drawn = np.round(mixed * 255).astype(np.uint8)
    return Image.fromarray(drawn), (drawn != np.asarray(image.convert("RGB"))).any(axis=2)


def estimate_foreground(image: Image.Image) -> np.ndarray:
    """Where the part is: the largest region that differs in colour from the picture's border; everything where there is none.

    Returns:
        boolean mask, shape ``(height, width)``.
    """
    rgb = np.asarray(image.convert("RGB").filter(ImageFilter.GaussianBlur(2)), dtype=np.float64)
    border = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])
    distance = np.linalg.norm(rgb - np.median(border, axis=0), axis=2)
    limit = max(30.0, 3 * float(np.linalg.norm(border - np.median(border, axis=0), axis=1).mean()))
    found = _largest_region(distance > limit)
    return found if 0.05 < found.mean() < 0.9 else np.ones_like(found)


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


def _has_outline(foreground: np.ndarray) -> bool:
    """Whether the picture's border is background nearly all round: only then is the part seen whole."""
    border = np.concatenate([foreground[0], foreground[-1], foreground[:, 0], foreground[:, -1]])
    return bool(border.mean() < 0.12)


def blurred(values: np.ndarray, radius: float) -> np.ndarray:
    """A map of values 0 to 1, Gaussian-blurred."""
    picture = Image.fromarray((np.clip(values, 0, 1) * 255).astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float64) / 255


def smooth_noise(shape: tuple[int, int], cells: int, rng: random.Random) -> np.ndarray:
    """Noise in [-1, 1] whose bumps are the picture's size divided by `cells`, shape as given."""
    grid = np.random.default_rng(rng.getrandbits(32)).uniform(-1, 1, (cells + 3, cells + 3)).astype(np.float32)
    wide = Image.fromarray(grid).resize((shape[1], shape[0]), Image.Resampling.BICUBIC, box=(1, 1, cells + 2, cells + 2))
    return np.clip(np.asarray(wide, dtype=np.float64), -1, 1)


def _scratch(surface: _Surface, rng: random.Random) -> Layer:
    """A long, gently curved line of even width, lit on one side and shaded on the other."""
    length = surface.size * rng.uniform(0.25, 0.55)
    start, angle = _inner_point(surface, rng), rng.uniform(0, np.pi)
    bend, points = rng.uniform(-0.25, 0.25), []
    for step in np.linspace(-0.5, 0.5, 24):
        turned = angle + bend * step
        points.append((start[0] + np.cos(turned) * step * length, start[1] + np.sin(turned) * step * length))
    width = max(1.1, surface.size * rng.uniform(0.005, 0.009))
    line = _polyline(surface, points, [width] * 24)
    shade = _polyline(surface, [(x - surface.light[0] * width, y - surface.light[1] * width) for x, y in points], [width] * 24)
    tone = 0.93 if _mean(surface.rgb, surface.foreground) < 0.72 else 0.35
    colour = np.where((line >= shade)[..., None], surface.rgb * 0.15 + tone * 0.85, surface.rgb * 0.45)
    return Layer(colour, np.maximum(line * rng.uniform(0.8, 0.95), shade * 0.55))


def _crack(surface: _Surface, rng: random.Random) -> Layer:
    """A dark jagged line that starts at the border, tapers and may branch."""
    start = _border_point(surface, rng)
    centre = np.argwhere(surface.foreground).mean(axis=0)[::-1]
    angle = np.arctan2(centre[1] - start[1], centre[0] - start[0]) + rng.uniform(-0.5, 0.5)
    width = max(1.6, surface.size * rng.uniform(0.009, 0.015))
    line = np.zeros(surface.foreground.shape)
    ways = [(start, angle, surface.size * rng.uniform(0.3, 0.55), width)]
    for _ in range(rng.choice((0, 1, 1, 2))):
        ways.append((start, angle, 0.0, width))
    trunk: list[tuple[float, float]] = []
    for way, (point, towards, length, wide) in enumerate(ways):
        if way:
            point, towards = rng.choice(trunk[4:-4]), angle + rng.choice((-1, 1)) * rng.uniform(0.5, 0.9)
            length, wide = surface.size * rng.uniform(0.1, 0.2), width * 0.6
        points = _jagged(point, towards, length, rng)
        trunk = trunk or points
        line = np.maximum(line, _polyline(surface, points, [wide * (1 - 0.75 * i / len(points)) for i in range(len(points))]))
    lit = blurred(np.roll(line, (1, 1), (0, 1)), 1) * 0.35
    colour = np.where((line > 0.15)[..., None], surface.rgb * 0.18, np.minimum(1, surface.rgb * 1.25))
    return Layer(colour, np.maximum(line * 0.92, lit * (line <= 0.15)))


def _pit(surface: _Surface, rng: random.Random) -> Layer:
    """One to three round hollows: floor in shadow, a bright crescent at the far rim."""
    colour, opacity = surface.rgb.copy(), np.zeros(surface.foreground.shape)
    first = _inner_point(surface, rng)
    for number in range(rng.choice((1, 1, 2, 3))):
        radius = max(2.5, surface.size * rng.uniform(0.028, 0.05) * (1 if number == 0 else 0.6))
        x, y = _offset(surface, first, radius * 3 if number else 0, rng)
        flat, turn = rng.uniform(0.75, 1), rng.uniform(0, np.pi)
        dx, dy = _grid(surface, x, y)
        u, v = dx * np.cos(turn) + dy * np.sin(turn), (dy * np.cos(turn) - dx * np.sin(turn)) / flat
        distance = np.hypot(u, v) / radius + 0.12 * smooth_noise(surface.foreground.shape, 40, rng)
        towards_light = (dx * surface.light[0] + dy * surface.light[1]) / radius
        floor = 0.42 - 0.25 * np.clip(towards_light, -1, 1)
        rim = np.clip(1 - np.abs(distance - 1.02) / 0.2, 0, 1) * np.clip(-towards_light - 0.2, 0, 1)
        shape = np.clip((1.12 - distance) / 0.16, 0, 1)
        colour = np.where((shape > 0.3)[..., None], surface.rgb * floor[..., None], colour)
        colour = colour + (rim * shape)[..., None] * (np.minimum(1, surface.rgb * 1.5 + 0.12) - colour)
        opacity = np.maximum(opacity, shape)
    return Layer(colour, opacity)


def _dirt(surface: _Surface, rng: random.Random) -> Layer:
    """A blotch with a blurred, ragged border, through which the texture still shows."""
    x, y = _inner_point(surface, rng)
    radius = surface.size * rng.uniform(0.1, 0.18)
    dx, dy = _grid(surface, x, y)
    turn, flat = rng.uniform(0, np.pi), rng.uniform(0.55, 0.95)
    u, v = dx * np.cos(turn) + dy * np.sin(turn), (dy * np.cos(turn) - dx * np.sin(turn)) / flat
    rough = sum(smooth_noise(surface.foreground.shape, cells, rng) / cells**0.5 for cells in (9, 18, 40)) * 1.1
    shape = np.clip((1 - np.hypot(u, v) / radius + rough) * 2.2, 0, 1)
    shape *= np.hypot(u, v) < radius * 1.7
    tint = np.array(rng.choice(((0.23, 0.16, 0.09), (0.12, 0.11, 0.1), (0.33, 0.24, 0.1))))
    colour = surface.rgb * 0.45 + tint * 0.55 if _mean(surface.rgb, surface.foreground) > 0.22 else surface.rgb * 0.4 + 0.32
    return Layer(colour, shape * (0.72 + 0.2 * smooth_noise(surface.foreground.shape, 60, rng)))


def _chip(surface: _Surface, rng: random.Random) -> Layer:
    """A bite out of the outline: what lies behind shows, beside a bright rough fracture face.

    Where the part fills the picture there is no outline behind it: the bite opens at the picture's border and is dark.
    """
    x, y = _border_point(surface, rng)
    radius = surface.size * rng.uniform(0.08, 0.13)
    dx, dy = _grid(surface, x, y)
    angle = np.arctan2(dy, dx)
    corners = sum(rng.uniform(0.04, 0.14) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in (2, 3, 5))
    distance = np.hypot(dx, dy) / (radius * (1 + corners)) + 0.06 * smooth_noise(surface.foreground.shape, 50, rng)
    outside = ~surface.foreground
    near = outside & (np.hypot(dx, dy) < 3 * radius)
    behind = np.array([0.05, 0.05, 0.05]) if near.sum() < 20 else np.median(surface.rgb[near], axis=0) * 0.85
    grain = smooth_noise(surface.foreground.shape, 110, rng)[..., None]
    broken = np.clip(surface.rgb.mean(axis=2, keepdims=True) * 0.55 + 0.34 + 0.16 * grain, 0, 1) * (0.85 + 0.15 * surface.rgb)
    face = np.clip((distance - 0.72) / 0.06, 0, 1)[..., None]
    colour = behind * (1 + 0.05 * grain) * (1 - face) + broken * face
    return Layer(colour, np.clip((1 - distance) / 0.05, 0, 1))


def _hole(surface: _Surface, rng: random.Random) -> Layer:
    """An opening with a ragged rim into the dark behind."""
    x, y = _inner_point(surface, rng)
    radius = surface.size * rng.uniform(0.05, 0.085)
    dx, dy = _grid(surface, x, y)
    angle = np.arctan2(dy, dx)
    ragged = sum(rng.uniform(0.1, 0.25) / k * np.cos(k * angle + rng.uniform(0, 6.3)) for k in (2, 3, 5, 8))
    distance = np.hypot(dx, dy) / (radius * (1 + ragged)) + 0.08 * smooth_noise(surface.foreground.shape, 60, rng)
    opening = np.clip((1 - distance) / 0.08, 0, 1)
    rim = np.clip(1 - np.abs(distance - 1.08) / 0.16, 0, 1)
    towards_light = (dx * surface.light[0] + dy * surface.light[1]) / radius
    edge = np.clip(surface.rgb * (1 - 0.45 * np.clip(towards_light, -1, 1))[..., None], 0, 1)
    deep = np.array([0.05, 0.045, 0.04]) * (1.3 - 0.6 * np.clip(towards_light, -1, 1))[..., None]
    return Layer(np.where((opening > 0.4)[..., None], deep, edge), np.maximum(opening, rim * 0.75))


def _foreign_object(surface: _Surface, rng: random.Random) -> Layer:
    """A scrap or fibre lying on top, with a shadow of its own."""
    x, y = _inner_point(surface, rng)
    length = surface.size * rng.uniform(0.1, 0.2)
    if rng.random() < 0.5:  # a curled fibre
        angle, points = rng.uniform(0, 6.3), [(x, y)]
        curl = rng.uniform(-0.25, 0.25)
        for _ in range(16):
            angle += curl + rng.uniform(-0.15, 0.15)
            points.append((points[-1][0] + np.cos(angle) * length / 10, points[-1][1] + np.sin(angle) * length / 10))
        body = _polyline(surface, points, [max(1.4, surface.size * 0.009)] * len(points))
    else:  # an angular scrap
        corners = sorted(rng.uniform(0, 6.3) for _ in range(5))
        points = [
            (x + np.cos(a) * length * rng.uniform(0.25, 0.45), y + np.sin(a) * length * rng.uniform(0.25, 0.45))
            for a in corners
        ]
        body = _filled(surface, points)
    reach = max(2, round(surface.size * 0.014))
    offset = (round(-surface.light[1] * reach), round(-surface.light[0] * reach))
    shadow = blurred(np.roll(body, offset, (0, 1)), reach * 0.6)
    bright = _mean(surface.rgb, surface.foreground) < 0.5
    tint = np.array(rng.choice(((0.92, 0.9, 0.84), (0.85, 0.75, 0.3)) if bright else ((0.15, 0.16, 0.2), (0.55, 0.12, 0.1))))
    lit = tint * (0.9 + 0.12 * smooth_noise(surface.foreground.shape, 50, rng))[..., None]
    return Layer(np.where((body > 0.5)[..., None], lit, surface.rgb * 0.35), np.maximum(body, shadow * 0.6))


_PAINTERS: dict[str, Callable[[_Surface, random.Random], Layer]] = {
    "scratch": _scratch,
    "crack": _crack,
    "pit": _pit,
    "dirt": _dirt,
    "chip": _chip,
    "hole": _hole,
    "foreign_object": _foreign_object,
}
_PALE = {"scratch", "crack", "dirt"}
"""Kinds that may be faint: they let the part shine through."""
DEFECT_KINDS = tuple(_PAINTERS)
"""What can be drawn; each name is also the label knowledge resolves."""


def _inner_point(surface: _Surface, rng: random.Random) -> tuple[float, float]:
    """A foreground point well away from the background, as ``(x, y)``."""
    padded = np.pad(surface.foreground.astype(np.float64), 1)
    depth = blurred(padded, surface.size * 0.1)[1:-1, 1:-1] * surface.foreground
    rows, columns = np.nonzero(depth >= min(0.9, float(depth.max()) * 0.97))
    choice = rng.randrange(len(rows))
    return float(columns[choice]), float(rows[choice])


def _border_point(surface: _Surface, rng: random.Random) -> tuple[float, float]:
    """A point on the foreground's outer border: the first foreground pixel met on a way in from outside."""
    height, width = surface.foreground.shape
    rows, columns = np.nonzero(surface.foreground)
    y, x, angle = rows.mean(), columns.mean(), rng.uniform(0, 2 * np.pi)
    for distance in np.arange(np.hypot(height, width), 0, -1):
        column, row = round(x + np.cos(angle) * distance), round(y + np.sin(angle) * distance)
        if 0 <= row < height and 0 <= column < width and surface.foreground[row, column]:
            return float(column), float(row)
    return float(x), float(y)


def _offset(surface: _Surface, point: tuple[float, float], distance: float, rng: random.Random) -> tuple[float, float]:
    """A point some way off that still lies on the foreground; the point itself where none is found."""
    for _ in range(12):
        angle = rng.uniform(0, 2 * np.pi)
        x, y = point[0] + np.cos(angle) * distance, point[1] + np.sin(angle) * distance
        row, column = round(y), round(x)
        if (
            0 <= row < surface.foreground.shape[0]
            and 0 <= column < surface.foreground.shape[1]
            and surface.foreground[row, column]
        ):
            return x, y
    return point


def _jagged(point: tuple[float, float], angle: float, length: float, rng: random.Random) -> list[tuple[float, float]]:
    """A way that kinks: many short steps whose direction wanders."""
    points, wander = [point], 0.0
    for _ in range(22):
        wander = 0.6 * wander + rng.gauss(0, 0.42)
        x, y = points[-1]
        points.append((x + np.cos(angle + wander) * length / 22, y + np.sin(angle + wander) * length / 22))
    return points


def _grid(surface: _Surface, x: float, y: float) -> tuple[np.ndarray, np.ndarray]:
    """Distances of every pixel to a point, to the right and down."""
    height, width = surface.foreground.shape
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    return columns - x, rows - y


def _polyline(surface: _Surface, points: Sequence[tuple[float, float]], widths: Sequence[float]) -> np.ndarray:
    """Coverage of a line of changing width, smooth at its borders."""
    height, width = surface.foreground.shape
    picture = Image.new("L", (width * 4, height * 4))
    pen = ImageDraw.Draw(picture)
    for (start, end), wide in zip(pairwise(points), widths, strict=False):
        half = wide * 2
        pen.line([(start[0] * 4, start[1] * 4), (end[0] * 4, end[1] * 4)], fill=255, width=max(1, round(wide * 4)))
        pen.ellipse([end[0] * 4 - half, end[1] * 4 - half, end[0] * 4 + half, end[1] * 4 + half], fill=255)
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX), dtype=np.float64) / 255


def _filled(surface: _Surface, points: Sequence[tuple[float, float]]) -> np.ndarray:
    """Coverage of a polygon, smooth at its borders."""
    height, width = surface.foreground.shape
    picture = Image.new("L", (width * 4, height * 4))
    ImageDraw.Draw(picture).polygon([(x * 4, y * 4) for x, y in points], fill=255)
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX), dtype=np.float64) / 255


def _mean(rgb: np.ndarray, inside: np.ndarray) -> float:
    """Mean brightness of the foreground."""
    return float(rgb[inside].mean())
