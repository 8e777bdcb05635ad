"""Scenes that drawn parts are made of: heights, colours and gloss, lit by one lamp and photographed.

Returns maps and pictures; a picture varies by its pose, light and grain. Knows nothing about parts, defects or files. Not in
the paper.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

OVER = 2
"""Parts are drawn this many times larger and then reduced, so that edges are smooth."""


class Relief(NamedTuple):
    """A scene before it is lit; all maps have the drawing's height and width, lengths are shares of its side."""

    height: np.ndarray
    """Height of the surface."""
    colour: np.ndarray
    """Colour under even light, three channels of values 0 to 1."""
    gloss: np.ndarray
    """Strength of the highlight, 0 to 1."""
    part: np.ndarray
    """Coverage of the part, 0 to 1; what is not part is the bench."""
    change: np.ndarray
    """Boolean: where a missing component or broken track changed the relief."""


class Pose(NamedTuple):
    """How one picture differs from the next."""

    angle: float
    """Turn in degrees."""
    x: float
    """Shift to the right, share of the side."""
    y: float
    """Shift down, share of the side."""
    scale: float
    """Size, 1 is as designed."""
    light: tuple[float, float, float]
    """Unit vector towards the lamp: right, down, up."""
    exposure: float
    """Brightness, 1 is even."""


def new_pose(rng: random.Random) -> Pose:
    """A pose by lot: turned by a few degrees, hardly shifted, lit from the upper left."""
    around, above = rng.gauss(-2.2, 0.12), rng.uniform(0.85, 0.98)
    light = (float(np.cos(around) * np.cos(above)), float(np.sin(around) * np.cos(above)), float(np.sin(above)))
    shift = (rng.uniform(-0.015, 0.015), rng.uniform(-0.015, 0.015))
    return Pose(rng.gauss(0, 2.0), *shift, rng.uniform(0.985, 1.015), light, rng.uniform(0.94, 1.06))


def photograph(relief: Relief, pose: Pose, rng: random.Random) -> Image.Image:
    """Light the relief, and see it through a lens: shadow, highlight, falling-off light, softness, sensor noise."""
    side = relief.height.shape[0]
    down, right = np.gradient(relief.height * side)
    length = np.sqrt(right**2 + down**2 + 1)
    lamp = np.array(pose.light)
    facing = (-right * lamp[0] - down * lamp[1] + lamp[2]) / length
    half = (lamp + np.array([0, 0, 1])) / np.linalg.norm(lamp + np.array([0, 0, 1]))
    glance = np.clip((-right * half[0] - down * half[1] + half[2]) / length, 0, 1)
    shadow = _cast(relief, lamp)
    diffuse = 0.28 + 0.9 * np.clip(facing, 0, None) * (1 - 0.62 * shadow)
    light = relief.colour * diffuse[..., None] + (relief.gloss * glance**22 * (1 - shadow))[..., None] * 0.55
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    fall = 1 - 0.13 * (x**2 + y**2) + 0.07 * (x * lamp[0] + y * lamp[1])
    light *= (pose.exposure * fall)[..., None]
    picture = Image.fromarray((np.clip(light, 0, 1) * 255).astype(np.uint8))
    small = picture.resize((side // OVER, side // OVER), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(0.45))
    levels = np.asarray(small, dtype=np.float64)
    grain = np.random.default_rng(rng.getrandbits(32)).normal(0, 1, levels.shape)
    noise = 2.2 * (0.65 * grain.mean(axis=2, keepdims=True) * 1.7 + 0.35 * grain)
    return Image.fromarray(np.clip(levels + noise, 0, 255).astype(np.uint8))


def _cast(relief: Relief, lamp: np.ndarray) -> np.ndarray:
    """Shadow on what lies lower: the height map marched towards the lamp, softened."""
    side = relief.height.shape[0]
    shadow = np.zeros_like(relief.height)
    slope = lamp[2] / np.hypot(lamp[0], lamp[1])
    top = float(relief.height.max() - relief.height.min())
    for step in np.linspace(1 / side, max(top / slope, 2 / side), 10):
        move = (round(-lamp[1] * step * side / np.hypot(*lamp[:2])), round(-lamp[0] * step * side / np.hypot(*lamp[:2])))
        above = np.roll(relief.height, move, (0, 1)) - (relief.height + step * slope)
        shadow = np.maximum(shadow, np.clip(above * side / 3, 0, 1))
    return blurred(shadow, side * 0.004)


def reduced(flags: np.ndarray) -> np.ndarray:
    """A boolean map of the drawing at the picture's size."""
    side = flags.shape[0] // OVER
    return np.asarray(flags.reshape(side, OVER, side, OVER).mean(axis=(1, 3)) >= 0.5)


def plane(side: int, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of every pixel in the part's own frame, -1 to 1 over the picture before the pose."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    x, y = x - 2 * pose.x, y - 2 * pose.y
    turn = np.deg2rad(pose.angle)
    return (x * np.cos(turn) + y * np.sin(turn)) / pose.scale, (y * np.cos(turn) - x * np.sin(turn)) / pose.scale


def ramp(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 at `low`, 1 at `high`, smooth between; `high` may be the smaller one."""
    t = np.clip((values - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def coloured(colour: tuple[float, float, float], values: np.ndarray) -> np.ndarray:
    """A colour in the brightness of each pixel."""
    return np.array(colour) * values[..., None]


def bench_top(side: int, rng: random.Random, colour: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Colour and height of a bench: a mat with fine grain and slow blotches."""
    shape = (side, side)
    fine = np.random.default_rng(rng.getrandbits(32)).normal(0, 1, shape)
    slow = smooth_noise(shape, 5, rng) * 0.05 + smooth_noise(shape, 60, rng) * 0.06
    return coloured(colour, 1 + slow + 0.05 * fine), 0.0006 * blurred(0.5 + 0.2 * fine, 1.2)


def blurred(values: np.ndarray, radius: float) -> np.ndarray:
    """A map of values 0 to 1, Gaussian-blurred."""
    picture = Image.fromarray((np.clip(values, 0, 1) * 255).astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float64) / 255


def smooth_noise(shape: tuple[int, int], cells: int, rng: random.Random) -> np.ndarray:
    """Noise in [-1, 1] whose bumps are the picture's size divided by `cells`, shape as given."""
    grid = np.random.default_rng(rng.getrandbits(32)).uniform(-1, 1, (cells + 3, cells + 3)).astype(np.float32)
    wide = Image.fromarray(grid).resize((shape[1], shape[0]), Image.Resampling.BICUBIC, box=(1, 1, cells + 2, cells + 2))
    return np.clip(np.asarray(wide, dtype=np.float64), -1, 1)
