"""The stretch of a photograph a defect is drawn onto, and the shapes, noise and light that all drawn defects are made of.

Returns maps of the window's height and width, values 0 to 1 unless said otherwise; lengths are pixels of the window. Knows
nothing about kinds of defect or files. Not in the paper.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

Point = tuple[float, float]
"""``(x, y)``, to the right and down."""

TWO_TONED = 0.76
"""How well two tones must explain what is seen to be two things, see `two_tones`; even textures have 0.65 to 0.75."""
_FINE = 4
"""Lines and polygons are drawn this many times larger and then reduced, so that edges are smooth."""


class Layer(NamedTuple):
    """What a defect lays over the picture."""

    colour: np.ndarray
    """Shape ``(height, width, 3)``."""
    opacity: np.ndarray
    """Shape ``(height, width)``; where it is 0 there is no defect."""


class Surface(NamedTuple):
    """The window of a photograph that one defect fits into."""

    rgb: np.ndarray
    """Shape ``(height, width, 3)``."""
    inside: np.ndarray
    """Boolean: the part."""
    depth: np.ndarray
    """How far inside the part's border a pixel lies, as a share of `size`; 0 at the border, at most about 0.1."""
    spot: Point
    """Where the defect is to lie, or begins."""
    inward: float
    """Direction from the spot to the middle of the part, radians."""
    size: float
    """Length that the sizes of defects are measured in: the side of a square as large as the part."""
    light: Point
    """Unit vector towards the light."""
    outlined: bool
    """Whether the part is seen whole, with background around it."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.inside.shape[0], self.inside.shape[1]

    @property
    def tone(self) -> float:
        """Mean brightness of the part near the spot."""
        near = self.inside & (np.hypot(*self.offsets()) < 0.15 * self.size)
        chosen = near if near.any() else self.inside
        return float(self.rgb[chosen].mean()) if chosen.any() else 0.5

    def offsets(self, point: Point | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Every pixel's distance from a point, to the right and down; from the spot by default."""
        x, y = self.spot if point is None else point
        rows, columns = np.mgrid[: self.shape[0], : self.shape[1]].astype(np.float64)
        return columns - x, rows - y

    def illumination(self) -> np.ndarray:
        """Slow changes of brightness over the part, 1 on average: what is laid on top is lit like what lies around."""
        grey, weight = self.rgb.mean(axis=2) * self.inside, self.inside.astype(np.float64)
        radius = max(2.0, 0.12 * self.size)
        slow = smoothed(grey, radius) / np.maximum(smoothed(weight, radius), 1e-3)
        mean = float(slow[self.inside].mean()) if self.inside.any() else 1.0
        return np.asarray(np.clip(slow / max(mean, 1e-3), 0.35, 1.5))

    def detail(self) -> np.ndarray:
        """The photograph's own grain: what differs from its near surroundings, without strong edges; shape as `rgb`."""
        fine = self.rgb - smoothed(self.rgb, 1.5)
        return np.asarray(np.clip(fine, -0.06, 0.06))

    def shaded(self, height: np.ndarray, gain: float = 1.0) -> np.ndarray:
        """The picture with a relief pressed into it: slopes towards the light brighter, the others darker.

        Args:
            height: in pixels, negative where hollow.
            gain: contrast.
        """
        down, right = np.gradient(height)
        slope = -(right * self.light[0] + down * self.light[1])[..., None] * gain
        dark = self.rgb * np.clip(1 + np.minimum(slope, 0), 0.18, 1)
        return np.asarray(dark + np.clip(slope, 0, 1) * (np.minimum(1, self.rgb * 1.45 + 0.16) - dark))


def smoothed(values: np.ndarray, radius: float) -> np.ndarray:
    """A map, blurred by two passes of a box in each direction; close to a Gaussian of standard deviation `radius` * 0.82."""
    half = max(1, round(radius))
    out = np.asarray(values, dtype=np.float64)
    for axis in (0, 1, 0, 1):
        out = box_mean(out, half, axis)
    return out


def box_mean(values: np.ndarray, half: int, axis: int) -> np.ndarray:
    """Mean over 2 * `half` + 1 neighbours along an axis; the border is repeated outwards."""
    pad = [(0, 0)] * values.ndim
    pad[axis] = (half + 1, half)
    sums = np.cumsum(np.pad(values, pad, mode="edge"), axis=axis)
    n = values.shape[axis]
    upper = np.take(sums, np.arange(2 * half + 1, 2 * half + 1 + n), axis=axis)
    return np.asarray((upper - np.take(sums, np.arange(n), axis=axis)) / (2 * half + 1))


def two_tones(values: np.ndarray) -> tuple[float, float]:
    """Otsu's threshold (1979), which parts values of 0 and more best into two classes, and how well.

    Returns:
        the threshold, and the share of the variance that lies between the classes: 0.64 for a normal distribution, 1 for two
        pure tones.
    """
    counts, edges = np.histogram(values, 128, (0, float(values.max()) + 1e-9))
    middles, share = (edges[1:] + edges[:-1]) / 2, np.cumsum(counts) / counts.sum()
    mean = np.cumsum(counts * middles) / counts.sum()
    between = (mean[-1] * share - mean) ** 2 / np.maximum(share * (1 - share), 1e-9)
    best = int(between.argmax())
    return float(middles[best]), float(between[best] / max(float(values.var()), 1e-12))


def ramp(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 at `low`, 1 at `high`, smooth between; `high` may be the smaller one."""
    t = np.clip((values - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def noise(shape: tuple[int, int], wavelength: float, rng: random.Random) -> np.ndarray:
    """Smooth noise in [-1, 1] whose bumps are about `wavelength` pixels wide."""
    step = max(1.0, wavelength)
    rows, columns = int(shape[0] / step) + 4, int(shape[1] / step) + 4
    grid = np.random.default_rng(rng.getrandbits(32)).uniform(-1, 1, (rows, columns)).astype(np.float32)
    box = (1, 1, 1 + shape[1] / step, 1 + shape[0] / step)
    wide = Image.fromarray(grid).resize((shape[1], shape[0]), Image.Resampling.BICUBIC, box=box)
    return np.clip(np.asarray(wide, dtype=np.float64), -1, 1)


def rough(shape: tuple[int, int], wavelength: float, rng: random.Random, octaves: int = 3) -> np.ndarray:
    """Noise of several sizes, each half as wide and half as strong as the one before, in about [-1, 1]."""
    layers = [noise(shape, wavelength / 2**k, rng) / 2**k for k in range(octaves)]
    return np.asarray(sum(layers) / 1.4)


def wobble(values: np.ndarray, wavelength: float, rng: random.Random) -> np.ndarray:
    """Noise in [-1, 1] along one coordinate, given for each pixel."""
    low = float(values.min())
    steps = np.random.default_rng(rng.getrandbits(32)).uniform(-1, 1, int((values.max() - low) / wavelength) + 3)
    return np.interp((values - low) / wavelength, np.arange(len(steps)), steps)


def blob(surface: Surface, point: Point, radius: float, rng: random.Random, uneven: float = 0.2) -> np.ndarray:
    """Distance from a point in units of the border of an irregular oval: below 1 inside it."""
    dx, dy = surface.offsets(point)
    turn, flat = rng.uniform(0, np.pi), rng.uniform(0.7, 1)
    u, v = dx * np.cos(turn) + dy * np.sin(turn), (dy * np.cos(turn) - dx * np.sin(turn)) / flat
    angle = np.arctan2(v, u)
    waves = sum(rng.uniform(0.3, 1) / k * np.cos(k * angle + rng.uniform(0, 6.3)) for k in (2, 3, 4, 5, 7))
    return np.asarray(np.hypot(u, v) / (radius * np.clip(1 + uneven * waves, 0.35, 1.8)))


def polyline(
    shape: tuple[int, int], points: Sequence[Point], widths: Sequence[float], levels: Sequence[float] | None = None
) -> np.ndarray:
    """Coverage of a line of changing width and strength, smooth at its borders; one width and level a point."""
    picture = Image.new("L", (shape[1] * _FINE, shape[0] * _FINE))
    pen = ImageDraw.Draw(picture)
    strengths = [1.0] * len(points) if levels is None else levels
    for ((x1, y1), (x2, y2)), wide, level in zip(pairwise(points), widths, strengths, strict=False):
        fill, half = round(255 * level), wide * _FINE / 2
        pen.line([x1 * _FINE, y1 * _FINE, x2 * _FINE, y2 * _FINE], fill=fill, width=max(1, round(wide * _FINE)))
        if half > 1:
            pen.ellipse([x2 * _FINE - half, y2 * _FINE - half, x2 * _FINE + half, y2 * _FINE + half], fill=fill)
    return np.asarray(picture.resize((shape[1], shape[0]), Image.Resampling.BOX), dtype=np.float64) / 255


def polygon(shape: tuple[int, int], points: Sequence[Point]) -> np.ndarray:
    """Coverage of a polygon, smooth at its borders."""
    picture = Image.new("L", (shape[1] * _FINE, shape[0] * _FINE))
    ImageDraw.Draw(picture).polygon([(x * _FINE, y * _FINE) for x, y in points], fill=255)
    return np.asarray(picture.resize((shape[1], shape[0]), Image.Resampling.BOX), dtype=np.float64) / 255


def fractal(start: Point, end: Point, roughness: float, rng: random.Random, halvings: int = 6) -> list[Point]:
    """A jagged way between two points: each piece's middle is pushed aside by a share of its length, again and again."""
    points = [start, end]
    for _ in range(halvings):
        finer = [points[0]]
        for (x1, y1), (x2, y2) in pairwise(points):
            aside = rng.gauss(0, roughness)
            finer += [((x1 + x2) / 2 - (y2 - y1) * aside, (y1 + y2) / 2 + (x2 - x1) * aside), (x2, y2)]
        points = finer
    return points


def moved(values: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """A map shifted to the right and down by whole pixels; the border is repeated."""
    right, down = round(dx), round(dy)
    rows = np.clip(np.arange(values.shape[0]) - down, 0, values.shape[0] - 1)
    columns = np.clip(np.arange(values.shape[1]) - right, 0, values.shape[1] - 1)
    return np.asarray(values[rows][:, columns])


def beyond(values: np.ndarray, surface: Surface, distance: float) -> np.ndarray:
    """A map shifted away from the light: where a shadow of it falls."""
    return moved(values, -surface.light[0] * distance, -surface.light[1] * distance)
