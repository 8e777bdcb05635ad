"""Painters of drawn defects where material is gone: chip, hole, missing material, frayed edge.

Each takes a `Surface` and a source of chance and returns a `Layer`. Not in the paper.
"""

from __future__ import annotations

import random

import numpy as np

from dcr2ad.datasets.surface import Layer, Surface, beyond, blob, fractal, noise, polygon, ramp, rough, smoothed, wobble


def chip(surface: Surface, rng: random.Random) -> Layer:
    """A bite out of the outline: what lies behind shows, beside a rough fracture face."""
    radius = surface.size * rng.uniform(0.08, 0.13)
    distance = _jagged_blob(surface, radius, rng)
    grain = rough(surface.shape, radius * 0.35, rng)
    face = surface._replace(rgb=np.clip(_fresh(surface) + surface.detail(), 0, 1)).shaded(grain * radius * 0.12, 0.9)
    gone = ramp(distance, 0.8, 0.72)[..., None]
    colour = _behind(surface, radius) * gone + face * (1 - gone)
    return Layer(colour, ramp(distance, 1.04, 0.96))


def hole(surface: Surface, rng: random.Random) -> Layer:
    """An opening right through: the far wall catches light, the near one lies in shadow, the rim is bruised.

    Behind it the background shows, where the picture has any, in the part's shadow; else the dark.
    """
    radius = surface.size * rng.uniform(0.045, 0.075)
    distance = blob(surface, surface.spot, radius, rng, 0.16) + 0.1 * rough(surface.shape, radius * 0.4, rng)
    opening = ramp(distance, 1.06, 0.94)
    # The wall is the part's thickness: seen where the opening, shifted away from the light, ends.
    thick = max(1.5, radius * 0.3)
    floor = smoothed(np.minimum(opening, beyond(opening, surface, -thick)), 0.8)
    dx, dy = surface.offsets()
    facing = np.clip(-(dx * surface.light[0] + dy * surface.light[1]) / radius, -1, 1)
    wall = surface.rgb * 0.2 + _fresh(surface) * np.clip(0.4 + 0.4 * facing, 0.08, 0.8)[..., None] + surface.detail()
    cast = np.clip(0.5 + 0.4 * facing, 0.15, 1)[..., None]
    deep = _behind(surface, radius) * cast if surface.outlined else _darkest(surface) * (0.75 + 0.4 * cast)
    inner = wall * (1 - floor[..., None]) + deep * floor[..., None]
    rim = np.exp(-(((distance - 1.12) / 0.1) ** 2)) * (0.6 + 0.4 * noise(surface.shape, radius * 0.5, rng))
    bruised = surface.shaded(smoothed(rim, 1) * radius * 0.25, 1.0) * 0.94
    colour = bruised * (1 - opening[..., None]) + inner * opening[..., None]
    return Layer(colour, np.maximum(opening, np.where(rim > 0.25, rim, 0)))


def missing_material(surface: Surface, rng: random.Random) -> Layer:
    """A lump came out: a pocket with a steep wall, its own shadow, and a rough floor of the part's own stuff."""
    radius = surface.size * rng.uniform(0.08, 0.13)
    shape = _angular(surface, radius, rng)
    drop = max(2.0, radius * 0.22)
    facets = np.abs(rough(surface.shape, radius * 0.9, rng, 2)) + 0.12 * rough(surface.shape, radius * 0.25, rng)
    base = np.clip(_fresh(surface) * 0.66 + 1.3 * surface.detail(), 0, 1)
    floor = surface._replace(rgb=base).shaded(facets * radius * 0.13, 0.9)
    shadow = smoothed(np.clip(shape - beyond(shape, surface, drop), 0, 1), drop * 0.3)
    lit_wall = smoothed(np.clip(shape - beyond(shape, surface, -drop * 0.5), 0, 1), max(1.0, drop * 0.15))
    colour = floor * (1 - 0.75 * shadow)[..., None]
    colour = colour + (lit_wall * 0.8)[..., None] * (np.minimum(1, surface.rgb * 1.3 + 0.12) - colour)
    return Layer(colour, shape)


def fray(surface: Surface, rng: random.Random) -> Layer:
    """A stretch of the border worn to ragged strands: between them what lies behind, on them bright and dark flecks."""
    dx, dy = surface.offsets()
    along = dy * np.cos(surface.inward) - dx * np.sin(surface.inward)
    half, reach = surface.size * rng.uniform(0.12, 0.22), rng.uniform(0.045, 0.075)
    across = dx * np.cos(surface.inward) + dy * np.sin(surface.inward)
    fade = ramp(np.abs(along) / half, 1.0, 0.45) * (np.abs(across) < 0.14 * surface.size)
    # Strands lean with depth and end at different lengths.
    thread = max(1.5, surface.size * 0.009)
    leaning = along + surface.depth * surface.size * (0.5 * wobble(along, half * 0.4, rng)) + 0.8 * noise(surface.shape, 7, rng)
    ends = reach * fade * (0.62 + 0.38 * wobble(leaning, thread * 1.6, rng))
    region = ramp(surface.depth - ends, 0.004, -0.002) * (fade > 0)
    crumbs = 0.0 if surface.outlined else 0.7 * rough(surface.shape, thread * 4, rng)
    gap = ramp(wobble(leaning, thread, rng) + crumbs + 1.4 * (0.5 - surface.depth / reach), -0.1, 0.4)
    strand = np.clip(surface.rgb * (1 + 0.5 * wobble(leaning, thread * 0.7, rng))[..., None], 0, 1)
    flecks = 0.35 * np.clip(noise(surface.shape, thread * 1.5, rng), -0.6, 1)[..., None] * surface.illumination()[..., None]
    frayed = np.clip(strand * 0.8 + 0.5 * flecks + 0.06, 0, 1)
    behind = _behind(surface, half) if surface.outlined else surface.rgb * 0.4 + surface.detail()
    return Layer(frayed * (1 - gap[..., None]) + behind * gap[..., None], region)


def _behind(surface: Surface, reach: float) -> np.ndarray:
    """What lies behind the part near the spot, slightly shaded by it; the dark where no background is near."""
    dx, dy = surface.offsets()
    near = ~surface.inside & (np.hypot(dx, dy) < 3 * reach)
    if near.sum() < 20:
        return np.broadcast_to(_darkest(surface), surface.rgb.shape)
    return np.asarray(np.median(surface.rgb[near], axis=0) * 0.88 + surface.detail())


def _darkest(surface: Surface) -> np.ndarray:
    """The tone of the picture's deep shadow."""
    return np.asarray(np.clip(np.percentile(surface.rgb.reshape(-1, 3), 1, axis=0) * 0.6, 0.02, 0.12))


def _fresh(surface: Surface) -> np.ndarray:
    """The part's stuff where it just broke: paler and duller than its skin, lit as around."""
    grey = smoothed(surface.rgb, max(2.0, 0.02 * surface.size))
    pale = 0.25 * grey.mean(axis=2, keepdims=True) + 0.75 * grey + 0.08 * surface.illumination()[..., None]
    return np.asarray(np.clip(pale, 0, 1))


def _jagged_blob(surface: Surface, radius: float, rng: random.Random) -> np.ndarray:
    return blob(surface, surface.spot, radius, rng, 0.22) + 0.09 * rough(surface.shape, radius * 0.5, rng)


def _angular(surface: Surface, radius: float, rng: random.Random) -> np.ndarray:
    """Coverage of a shape with a few corners and broken sides."""
    turn, flat = rng.uniform(0, np.pi), rng.uniform(0.6, 1)
    points = []
    for corner in sorted(rng.uniform(0, 2 * np.pi) for _ in range(7)):
        u, v = np.cos(corner) * radius * rng.uniform(0.75, 1.15), np.sin(corner) * radius * flat * rng.uniform(0.75, 1.15)
        points.append(
            (surface.spot[0] + u * np.cos(turn) - v * np.sin(turn), surface.spot[1] + u * np.sin(turn) + v * np.cos(turn))
        )
    ways = [fractal(one, other, 0.09, rng, 4)[:-1] for one, other in zip(points, points[1:] + points[:1], strict=True)]
    return np.asarray(smoothed(polygon(surface.shape, [point for way in ways for point in way]), 1))
