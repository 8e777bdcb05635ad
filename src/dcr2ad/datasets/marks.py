"""Painters of drawn defects that lie on or in the surface: scratch, crack, pit, dent, dirt, discolouration, foreign object.

Each takes a `Surface` and a source of chance and returns a `Layer`. Not in the paper.
"""

from __future__ import annotations

import random

import numpy as np

from dcr2ad.datasets.surface import Layer, Point, Surface, beyond, blob, fractal, noise, polyline, ramp, rough, smoothed, wobble
from dcr2ad.datasets.surface import polygon as filled


def scratch(surface: Surface, rng: random.Random) -> Layer:
    """One to three fine, gently curved lines of changing pressure, lit on one side and shaded on the other."""
    length, angle, bend = surface.size * rng.uniform(0.25, 0.55), rng.uniform(0, np.pi), rng.uniform(-0.3, 0.3)
    width = max(1.2, surface.size * rng.uniform(0.005, 0.009))
    line = np.zeros(surface.shape)
    for number in range(rng.choice((1, 1, 2, 3))):
        aside = number * rng.choice((-1, 1)) * rng.uniform(2, 5) * width
        share = 1.0 if number == 0 else rng.uniform(0.3, 0.7)
        start = rng.uniform(-0.5, 0.5 - share)
        ways = np.linspace(start, start + share, 48)
        points = [
            (
                surface.spot[0] + np.cos(angle + bend * t) * t * length - np.sin(angle) * aside,
                surface.spot[1] + np.sin(angle + bend * t) * t * length + np.cos(angle) * aside,
            )
            for t in ways
        ]
        # The tool comes down, presses, skips and lifts.
        press = np.sin(np.linspace(0.12, np.pi - 0.05, 48)) ** 0.6 * (0.78 + 0.3 * wobble(np.arange(48.0), 5, rng))
        press = np.clip(press, 0.15, 1)
        line = np.maximum(line, polyline(surface.shape, points, list(width * (0.55 + 0.45 * press)), list(press)))
    shade = beyond(line, surface, -max(1.0, width * 0.8))
    glint = np.clip(line * (0.85 + 0.3 * noise(surface.shape, 3 * width, rng)), 0, 1)
    lit = surface.illumination()[..., None]
    bare = np.clip((0.9 if surface.tone < 0.68 else 0.33) * lit, 0, 0.97)
    core = surface.rgb * 0.25 + bare * 0.75 + surface.detail() * 0.5
    dark = surface.rgb * 0.5
    colour = np.where((glint >= shade * 0.8)[..., None], core, dark)
    return Layer(colour, np.maximum(glint * 0.95, shade * 0.6))


def crack(surface: Surface, rng: random.Random) -> Layer:
    """A dark jagged line that starts at the border, changes width, tapers and may branch."""
    angle, length = surface.inward + rng.uniform(-0.5, 0.5), surface.size * rng.uniform(0.3, 0.55)
    width = max(1.5, surface.size * rng.uniform(0.008, 0.014))
    trunk = fractal(surface.spot, _towards(surface.spot, angle, length), 0.13, rng)
    ways = [(trunk, width)]
    for _ in range(rng.choice((0, 1, 1, 2))):
        start = trunk[rng.randrange(len(trunk) // 4, 3 * len(trunk) // 4)]
        turn = angle + rng.choice((-1, 1)) * rng.uniform(0.5, 1.0)
        ways.append((fractal(start, _towards(start, turn, length * rng.uniform(0.2, 0.4)), 0.14, rng, 5), width * 0.55))
    line = np.zeros(surface.shape)
    for points, wide in ways:
        taper = np.linspace(1, 0.2, len(points)) * (0.75 + 0.4 * wobble(np.arange(float(len(points))), 4, rng))
        line = np.maximum(line, polyline(surface.shape, points, list(np.maximum(0.5, wide * taper))))
    lip = np.clip(beyond(line, surface, max(1.0, width * 0.5)) - line, 0, 1)
    deep = surface.rgb * (0.12 + 0.08 * noise(surface.shape, 6, rng))[..., None]
    colour = np.where((line > 0.12)[..., None], deep, np.minimum(1, surface.rgb * 1.3 + 0.03))
    return Layer(colour, np.where(line > 0.12, line * 0.94, lip * 0.5))


def pit(surface: Surface, rng: random.Random) -> Layer:
    """One to four small hollows of irregular outline: the wall under the light in shadow, the far one lit."""
    height, shape = np.zeros(surface.shape), np.zeros(surface.shape)
    for number in range(rng.choice((1, 1, 2, 3, 4))):
        radius = max(2.5, surface.size * rng.uniform(0.026, 0.045) * (1 if number == 0 else rng.uniform(0.35, 0.7)))
        away, angle = (0 if number == 0 else rng.uniform(0.05, 0.12) * surface.size), rng.uniform(0, 6.3)
        distance = blob(surface, _towards(surface.spot, angle, away), radius, rng, 0.14)
        distance = distance + 0.08 * noise(surface.shape, max(2.0, radius * 0.5), rng)
        bowl = np.clip(1 - distance**2, 0, 1) ** 0.7
        height -= bowl * radius * 0.75
        shape = np.maximum(shape, ramp(distance, 1.15, 0.95))
    hollow = np.clip(-height / max(1e-6, float(-height.min())), 0, 1)
    relief = surface._replace(rgb=surface.rgb * (1 - 0.45 * hollow)[..., None])
    return Layer(relief.shaded(smoothed(height, 0.8), 1.0), shape)


def dent(surface: Surface, rng: random.Random) -> Layer:
    """A smooth bowl with a slight lip: shading alone, the surface runs on unbroken."""
    radius = surface.size * rng.uniform(0.07, 0.12)
    distance = blob(surface, surface.spot, radius, rng, 0.08)
    bowl = np.clip(1 - distance**2, 0, 1) ** 2
    lip = np.exp(-(((distance - 1.06) / 0.13) ** 2))
    height = radius * rng.uniform(0.24, 0.34) * (0.08 * lip - bowl)
    lower = surface._replace(rgb=surface.rgb * (1 - 0.1 * bowl)[..., None])
    return Layer(lower.shaded(height, 1.0), ramp(distance, 1.18, 1.02))


def dirt(surface: Surface, rng: random.Random) -> Layer:
    """A stain with a ragged, partly sharp border and splashes beside it, through which the texture still shows."""
    radius = surface.size * rng.uniform(0.09, 0.16)
    distance = blob(surface, surface.spot, radius, rng, 0.25) + 0.3 * rough(surface.shape, radius * 0.6, rng)
    soft = 0.1 + 0.35 * np.clip(noise(surface.shape, radius, rng) + 0.4, 0, 1)
    shape = np.clip((1 - distance) / soft + 0.5, 0, 1)
    for _ in range(rng.randrange(2, 8)):
        point = _towards(surface.spot, rng.uniform(0, 6.3), radius * rng.uniform(1.2, 2.0))
        drop = blob(surface, point, max(1.2, radius * rng.uniform(0.03, 0.11)), rng, 0.1)
        shape = np.maximum(shape, ramp(drop, 1.2, 0.8))
    dried = np.exp(-(((distance - 0.9) / 0.1) ** 2)) * rng.choice((0, 0.5))  # a drop dries darkest at its border
    density = shape * (0.75 + 0.3 * rough(surface.shape, radius * 0.35, rng) + dried)
    if surface.tone > 0.22:
        soaked = np.array(rng.choice(((1.0, 1.35, 1.9), (1.5, 1.55, 1.6), (0.8, 1.1, 1.9))))
        colour = surface.rgb * np.exp(-density[..., None] * soaked)
    else:  # on a dark part only what is lighter shows
        film = np.array(rng.choice(((0.5, 0.47, 0.42), (0.46, 0.46, 0.48)))) * surface.illumination()[..., None]
        colour = surface.rgb + np.clip(density, 0, 1)[..., None] * 0.75 * (film + surface.detail() - surface.rgb)
    return Layer(colour, shape)


def discolouration(surface: Surface, rng: random.Random) -> Layer:
    """A cloudy region of another hue or shade; texture and relief run on undisturbed."""
    radius = surface.size * rng.uniform(0.14, 0.24)
    distance = blob(surface, surface.spot, radius, rng, 0.22) + 0.15 * rough(surface.shape, radius * 0.8, rng)
    warm, cold = (1.06, 0.88, 0.6), (0.66, 0.87, 1.06)
    hue = np.array(rng.choice((warm, cold, (1.05, 0.74, 0.68), (0.8, 0.96, 0.66), (0.62, 0.6, 0.58))))
    if np.ptp(surface.rgb, axis=2).mean() < 0.01:
        hue = np.full(3, rng.choice((0.62, 1.22)))
    if surface.tone < 0.3:
        hue = hue * 1.5
    return Layer(np.clip(surface.rgb * hue, 0, 1), ramp(distance, 1.25, 0.6))


def foreign_object(surface: Surface, rng: random.Random) -> Layer:
    """A fibre or a scrap lying on top, round or creased under the same light, with a shadow of its own."""
    length = surface.size * rng.uniform(0.1, 0.2)
    is_fibre = rng.random() < 0.5
    body = _fibre(surface, length, rng) if is_fibre else _scrap(surface, length * 0.55, rng)
    lift = max(1.0, surface.size * (0.006 if is_fibre else 0.012))
    if is_fibre:
        relief = smoothed(body, 1) * lift * 1.6
    else:
        relief = smoothed(body, 1.2) * lift * 0.8 + rough(surface.shape, length * 0.3, rng, 2) * length * 0.02
    lit = surface.illumination()[..., None]
    tint = _contrasting(surface, rng)
    matter = surface._replace(rgb=np.clip(tint * lit + surface.detail() * 0.6, 0, 1)).shaded(relief, 0.8)
    cast = smoothed(beyond(body, surface, lift * 1.4), lift * 0.7) * (1 - body)
    colour = np.where((body > 0.02)[..., None], matter, surface.rgb * 0.35)
    return Layer(colour, np.maximum(body, np.clip(cast, 0, 1) * 0.7))


def _fibre(surface: Surface, length: float, rng: random.Random) -> np.ndarray:
    angle, curl, points = rng.uniform(0, 6.3), rng.uniform(-0.14, 0.14), [surface.spot]
    drift = 0.0
    for _ in range(36):
        drift = 0.8 * drift + rng.gauss(0, 0.05)
        angle += curl + drift
        points.append(_towards(points[-1], angle, length / 14))
    wide = max(1.4, surface.size * rng.uniform(0.006, 0.01))
    return polyline(surface.shape, points, [wide] * len(points))


def _scrap(surface: Surface, radius: float, rng: random.Random) -> np.ndarray:
    corners = sorted(rng.uniform(0, 2 * np.pi) for _ in range(rng.randrange(5, 9)))
    flat, turn = rng.uniform(0.4, 0.9), rng.uniform(0, np.pi)
    points = []
    for corner in corners:
        far = radius * rng.uniform(0.6, 1.0)
        u, v = np.cos(corner) * far, np.sin(corner) * far * flat
        points.append(
            (surface.spot[0] + u * np.cos(turn) - v * np.sin(turn), surface.spot[1] + u * np.sin(turn) + v * np.cos(turn))
        )
    ways = [fractal(one, other, 0.07, rng, 3)[:-1] for one, other in zip(points, points[1:] + points[:1], strict=True)]
    return filled(surface.shape, [point for way in ways for point in way])


_MATTER = (
    (0.66, 0.67, 0.7), (0.14, 0.12, 0.11), (0.86, 0.84, 0.78), (0.5, 0.36, 0.2), (0.75, 0.18, 0.14), (0.16, 0.3, 0.62),
)  # fmt: skip
"""Metal, soot, paper, cardboard, and coloured plastic."""


def _contrasting(surface: Surface, rng: random.Random) -> np.ndarray:
    """The tint of some matter that can be told from the part near the spot."""
    near = surface.inside & (np.hypot(*surface.offsets()) < 0.12 * surface.size)
    own = surface.rgb[near].mean(axis=0) if near.any() else np.full(3, surface.tone)
    tints = [np.array(tint) for tint in rng.sample(_MATTER, len(_MATTER))]
    apart = [abs(float(tint.mean() - own.mean())) for tint in tints]
    return next((tint for tint, gap in zip(tints, apart, strict=True) if gap > 0.22), tints[int(np.argmax(apart))])


def _towards(point: Point, angle: float, distance: float) -> Point:
    return point[0] + float(np.cos(angle)) * distance, point[1] + float(np.sin(angle)) * distance
