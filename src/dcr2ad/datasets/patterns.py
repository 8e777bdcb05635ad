"""Painters of drawn defects that upset a pattern: misprint, misplaced region, missing region.

Each takes a `Surface` and a source of chance and returns a `Layer`. A patch of the picture is cut out and pasted elsewhere
as in CutPaste (Li et al. 2021); that it takes on the shading of its new place is NSA's idea (Schlueter et al. 2022, by Poisson
blending; here the slow part of both is exchanged). Not in the paper.
"""

from __future__ import annotations

import random

import numpy as np
from PIL import Image

from dcr2ad.datasets.surface import TWO_TONED, Layer, Point, Surface, moved, noise, ramp, smoothed, two_tones


def misprint(surface: Surface, rng: random.Random) -> Layer:
    """Strokes of a print doubled, smeared or broken within a region; nothing where no print is."""
    shape = _panel(surface, surface.size * rng.uniform(0.1, 0.17), rng)
    angle, step = rng.uniform(0, 2 * np.pi), max(2.0, surface.size * rng.uniform(0.016, 0.03))
    dx, dy = np.cos(angle) * step, np.sin(angle) * step
    # Ink is whatever is rarer: dark strokes on a light ground, or light ones on dark.
    near = surface.rgb.mean(axis=2)[(shape > 0.5) & surface.inside]
    if not near.size or two_tones(near)[1] < TWO_TONED:
        return Layer(surface.rgb, np.zeros(surface.shape))
    inks_dark = bool(np.mean(near) < np.median(near))
    joined = np.minimum if inks_dark else np.maximum
    way = rng.choice(("doubled", "smeared", "broken"))
    if way == "doubled":
        colour = joined(surface.rgb, 0.25 * surface.rgb + 0.75 * moved(surface.rgb, dx, dy))
    elif way == "smeared":
        colour = surface.rgb
        for share in np.linspace(0.15, 1.6, 14):
            tail = moved(surface.rgb, dx * share, dy * share)
            colour = joined(colour, colour + (1 - 0.45 * share) * (tail - colour))
    else:
        ground = np.percentile(surface.rgb[shape > 0.5], 80 if inks_dark else 20, axis=0)
        ink = ramp(np.abs(surface.rgb - ground).max(axis=2), 0.08, 0.2)
        lost = (ink * ramp(noise(surface.shape, max(2.0, step * 0.9), rng), -0.15, 0.1))[..., None]
        colour = surface.rgb + lost * (np.asarray(ground) + surface.detail() - surface.rgb)
    return Layer(colour, shape)


def misplaced(surface: Surface, rng: random.Random) -> Layer:
    """A piece at a wrong place, turned: cut out of the picture elsewhere, set in under the light of its new place."""
    half = surface.size * rng.uniform(0.07, 0.12)
    shape = _panel(surface, half, rng, sharp=True)
    tries = [_source(surface, half, rng) for _ in range(12)]
    turn = rng.choice((-1, 1)) * rng.uniform(8, 40) + rng.choice((0, 90))
    pieces = [_turned(surface, point, turn) for point in tries if point is not None]
    if not pieces:
        return Layer(surface.rgb, np.zeros(surface.shape))
    slow = smoothed(surface.rgb, half)
    fitted = [piece + 0.6 * (slow - smoothed(piece, half)) for piece in pieces]
    chosen = max(fitted, key=lambda piece: float((np.abs(piece - surface.rgb).mean(axis=2) * shape).sum()))
    edge = np.clip(shape - smoothed(shape, 2), 0, 1)[..., None] * 0.5
    return Layer(np.clip(chosen * (1 - edge), 0, 1), shape)


def missing(surface: Surface, rng: random.Random) -> Layer:
    """A piece of the pattern is not there: its ground runs on, with the picture's own grain; nothing in an even texture."""
    half = surface.size * rng.uniform(0.07, 0.12)
    shape = _panel(surface, half, rng)
    ring = np.clip(smoothed((shape > 0.1).astype(float), half * 0.25) > 0.02, 0, 1) * (shape < 0.1) * surface.inside
    within = surface.rgb.mean(axis=2)[(shape > 0.5) & surface.inside]
    if not ring.any() or not within.size or two_tones(within)[1] < TWO_TONED:
        return Layer(surface.rgb, np.zeros(surface.shape))
    ground = _ground(surface, ring > 0, half)
    plain = min((_source(surface, half, rng) or surface.spot for _ in range(10)), key=lambda p: _spread(surface, p, half))
    grain = _turned(surface, plain, 0.0)
    grain = np.clip(grain - smoothed(grain, max(2.0, half * 0.3)), -0.05, 0.05)
    return Layer(np.clip(ground + grain, 0, 1), shape)


def contrast_map(grey: np.ndarray, radius: float) -> np.ndarray:
    """Standard deviation of grey levels around each pixel: where a pattern is."""
    mean = smoothed(grey, radius)
    return np.sqrt(np.clip(smoothed(grey**2, radius) - mean**2, 0, None))


def _panel(surface: Surface, half: float, rng: random.Random, *, sharp: bool = False) -> np.ndarray:
    """Coverage of a rounded rectangle about the spot; its border wavers unless `sharp`."""
    dx, dy = surface.offsets()
    turn, flat = rng.uniform(-0.3, 0.3), rng.uniform(0.55, 1)
    u, v = dx * np.cos(turn) + dy * np.sin(turn), (dy * np.cos(turn) - dx * np.sin(turn)) / flat
    distance = (np.abs(u / half) ** 4 + np.abs(v / half) ** 4) ** 0.25
    if not sharp:
        distance = distance + 0.12 * noise(surface.shape, half * 0.5, rng)
    soft = 1.2 / half if sharp else 0.1
    return ramp(distance, 1 + soft, 1 - soft)


def _source(surface: Surface, half: float, rng: random.Random) -> Point | None:
    """A place on the part, some way off, whose surroundings of `half` lie in the window; None where chance finds none."""
    height, width = surface.shape
    for _ in range(8):
        angle, away = rng.uniform(0, 2 * np.pi), rng.uniform(1.1, 3.0) * half
        x, y = surface.spot[0] + np.cos(angle) * away, surface.spot[1] + np.sin(angle) * away
        if half < x < width - half and half < y < height - half and _cut(surface.inside, (x, y), half).mean() > 0.97:
            return float(x), float(y)
    return None


def _turned(surface: Surface, source: Point, degrees: float) -> np.ndarray:
    """The window with the place `source` brought to the spot and turned there."""
    turn = np.deg2rad(degrees)
    a, b = float(np.cos(turn)), float(np.sin(turn))
    (x, y), (u, v) = surface.spot, source
    matrix = (a, b, u - a * x - b * y, -b, a, v + b * x - a * y)
    size = surface.shape[::-1]
    channels = [
        Image.fromarray(surface.rgb[..., c].astype(np.float32)).transform(
            size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
        )
        for c in range(3)
    ]
    return np.stack([np.asarray(channel, dtype=np.float64) for channel in channels], axis=2)


def _ground(surface: Surface, ring: np.ndarray, half: float) -> np.ndarray:
    """The ground's colour carried in from around: the commoner tones of the ring, smoothly continued."""
    grey = surface.rgb.mean(axis=2)
    middle = float(np.median(grey[ring]))
    common = ring & (np.abs(grey - middle) <= max(0.06, float(np.percentile(np.abs(grey[ring] - middle), 60))))
    weight = common.astype(np.float64)
    held = smoothed(weight, half)
    filled = smoothed(surface.rgb * weight[..., None], half) / np.maximum(held, 1e-6)[..., None]
    return np.where((held > 1e-4)[..., None], filled, surface.rgb[common].mean(axis=0))


def _spread(surface: Surface, point: Point, half: float) -> float:
    return float(_cut(surface.rgb, point, half).std())


def _cut(values: np.ndarray, point: Point, half: float) -> np.ndarray:
    """The square of a map about a point."""
    x, y, reach = round(point[0]), round(point[1]), max(2, round(half))
    return values[max(0, y - reach) : y + reach, max(0, x - reach) : x + reach]
