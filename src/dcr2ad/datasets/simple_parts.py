"""Drawn parts of one piece: a turned nut, a bottle cap, woven cloth.

Each takes the drawing's side in pixels, a pose, a defect or None, and chance; returns a `Relief`. Not in the paper.
"""

from __future__ import annotations

import random

import numpy as np

from dcr2ad.datasets.scene import Pose, Relief, bench_top, coloured, plane, ramp, smooth_noise


def nut(side: int, pose: Pose, defect: str | None, rng: random.Random) -> Relief:
    """A turned hexagon nut with a threaded hole on a dark mat."""
    x, y = plane(side, pose)
    rho, phi = np.hypot(x, y), np.arctan2(y, x)
    six = np.maximum.reduce([np.abs(x * np.cos(a) + y * np.sin(a)) for a in np.deg2rad([0, 60, 120])])
    part = ramp(six, 0.704, 0.696) * ramp(rho, 0.33, 0.338)
    rings = np.interp(rho, np.linspace(0, 1.5, 700), np.random.default_rng(7).normal(0, 1, 700))
    thread = np.sin((0.43 - rho) * 170 + phi) * ramp(rho, 0.425, 0.41) * ramp(rho, 0.31, 0.33)
    slope = np.clip(rho - 0.665, 0, None) * 0.55 + np.clip(0.45 - rho, 0, None) * 0.9
    mat, grain = bench_top(side, rng, (0.2, 0.22, 0.25))
    height = np.where(part > 0.5, 0.14 - slope * 0.5 + 0.0009 * rings * ramp(rho, 0.45, 0.46) + 0.004 * thread, grain)
    # Turned metal shows a bow tie of light across the lathe marks.
    bow = np.abs(np.cos(phi - np.arctan2(pose.light[1], pose.light[0]))) ** 3
    sheen = 0.43 + 0.24 * bow + 0.035 * rings + 0.04 * smooth_noise((side, side), 9, rng)
    flat = ramp(rho, 0.455, 0.465) * ramp(rho, 0.67, 0.66)
    tone = np.where(flat > 0.5, sheen, 0.5 + 0.02 * rings) * (1 - 0.35 * ramp(rho, 0.43, 0.4)) * (1 + 0.25 * thread)
    steel = coloured((0.98, 0.99, 1.03), tone)
    hole = coloured((0.05, 0.05, 0.055), ramp(rho, 0.36, 0.1) * 0.4 + 0.6)
    colour = np.where((part > 0.5)[..., None], steel, np.where((rho < 0.335)[..., None], hole, mat))
    gloss = part * (0.35 + 0.3 * bow)
    return Relief(height, colour, gloss, part, np.zeros_like(part, dtype=bool))


def cap(side: int, pose: Pose, defect: str | None, rng: random.Random) -> Relief:
    """A ribbed plastic closure with an embossed star, seen from above on a light bench."""
    x, y = plane(side, pose)
    rho, phi = np.hypot(x, y), np.arctan2(y, x)
    rim = 0.79 + 0.012 * np.cos(60 * phi)
    part = ramp(rho / rim, 1.004, 0.996)
    star = 0.27 + 0.1 * np.cos(5 * (phi + np.pi / 2))
    relief = 0.012 * ramp(rho, star + 0.012, star - 0.012) + 0.016 * ramp(np.abs(rho - 0.56), 0.035, 0.015)
    side_wall = 0.1 * ramp(rho / rim, 0.97, 0.9) + 0.05
    bench, grain = bench_top(side, rng, (0.62, 0.58, 0.52))
    skin = 0.0003 * smooth_noise((side, side), 90, rng)
    height = np.where(part > 0.5, side_wall + relief + skin, grain)
    ribs = 1 - 0.3 * ramp(rho, 0.72, 0.76) * (0.5 - 0.5 * np.cos(60 * phi))
    tint = (0.12 + rng.uniform(-0.01, 0.01), 0.33 + rng.uniform(-0.015, 0.015), 0.66 + rng.uniform(-0.02, 0.02))
    plastic = coloured(tint, ribs * (1 + 0.03 * smooth_noise((side, side), 6, rng)))
    colour = np.where((part > 0.5)[..., None], plastic, bench)
    return Relief(height, colour, part * 0.55, part, np.zeros_like(part, dtype=bool))


def cloth(side: int, pose: Pose, defect: str | None, rng: random.Random) -> Relief:
    """Plain weave of two yarns that fills the picture."""
    x, y = plane(side, pose)
    shape = (side, side)
    x = x + 0.006 * smooth_noise(shape, 4, rng)
    y = y + 0.006 * smooth_noise(shape, 4, rng)
    count = 15
    u, v = x * count + rng.uniform(0, 2), y * count + rng.uniform(0, 2)
    column, row = np.floor(u), np.floor(v)
    across_u, across_v = u - column - 0.5, v - row - 0.5
    over = (column + row) % 2 == 0
    warp = np.sqrt(np.clip(1 - (across_u / 0.56) ** 2, 0, 1)) * (0.62 + 0.38 * np.cos(np.pi * across_v) * np.where(over, 1, -1))
    weft = np.sqrt(np.clip(1 - (across_v / 0.56) ** 2, 0, 1)) * (0.62 - 0.38 * np.cos(np.pi * across_u) * np.where(over, 1, -1))
    top = warp >= weft
    # Fibres are twisted: fine lines at a slant to the yarn.
    twist = np.where(top, np.sin(46 * across_u + 9 * v), np.sin(46 * across_v + 9 * u))
    yarns = np.random.default_rng(rng.getrandbits(32)).normal(1, 0.055, (2, 80))
    shade = np.where(top, yarns[0][(column % 80).astype(int)], yarns[1][(row % 80).astype(int)])
    height = 0.02 * np.maximum(warp, weft) + 0.0011 * twist + 0.001 * smooth_noise(shape, 120, rng)
    depth = 0.45 + 0.55 * np.clip(np.maximum(warp, weft), 0, 1)
    yarn = np.where(top[..., None], np.array([0.3, 0.38, 0.52]), np.array([0.72, 0.68, 0.6]))
    colour = yarn * (shade * depth * (1 + 0.05 * twist))[..., None]
    full = np.ones(shape)
    return Relief(height, colour, full * 0.03, full, np.zeros(shape, dtype=bool))
