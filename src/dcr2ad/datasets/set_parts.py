"""Drawn parts that are sets with rules: a blister pack, a pressure gauge, a cover plate with three screws.

Their own defects are logical ones: each piece that is there is sound, yet one is missing, of another kind, or stands where it
must not. Each takes the drawing's side in pixels, a pose, a defect or None, and chance; returns a `Relief`. Not in the paper.
"""

from __future__ import annotations

import random

import numpy as np

from dcr2ad.datasets.canvas import Canvas
from dcr2ad.datasets.scene import Pose, Relief, bench_top, coloured, plane, ramp, smooth_noise

_CAVITIES = tuple((x, y) for y in (-0.36, 0.0, 0.36) for x in (-0.57, -0.19, 0.19, 0.57))


def blister(side: int, pose: Pose, defect: str | None, rng: random.Random) -> Relief:
    """A foil card with twelve clear domes and a tablet in each; one can be missing, or of another kind."""
    x, y = plane(side, pose)
    shape = (side, side)
    card = np.hypot(np.clip(np.abs(x) - 0.72, 0, None), np.clip(np.abs(y) - 0.5, 0, None)) - 0.07
    part = ramp(card, 0.004, -0.004)
    top, grain = bench_top(side, rng, (0.34, 0.4, 0.47))
    emboss = np.sin(95 * (x + y)) * np.sin(95 * (x - y))
    domes, embossed = np.zeros(shape), np.ones(shape)
    foil = coloured((0.74, 0.75, 0.77), 1 + 0.035 * smooth_noise(shape, 14, rng) + 0.02 * emboss)
    gloss = part * (0.3 + 0.1 * smooth_noise(shape, 9, rng))
    spots = [(cx + rng.uniform(-0.012, 0.012), cy + rng.uniform(-0.012, 0.012), rng.uniform(0, 3.2)) for cx, cy in _CAVITIES]
    odd = random.Random(rng.random()).randrange(len(_CAVITIES))
    change = np.zeros(shape, dtype=bool)
    for number, ((cx, cy), (px, py, turn)) in enumerate(zip(_CAVITIES, spots, strict=True)):
        r = np.hypot(x - cx, y - cy)
        dome = np.minimum(1, 1.5 * np.sqrt(np.clip(1 - (r / 0.155) ** 2, 0, 1)))
        domes += 0.05 * dome + 0.007 * np.exp(-(((r - 0.165) / 0.011) ** 2))
        clear = ramp(r, 0.157, 0.148)
        embossed -= clear
        foil *= (1 - 0.2 * clear + 0.08 * ramp(r, 0.11, 0.15) * clear)[..., None]
        gloss = np.maximum(gloss, clear * 0.85)
        other = defect if number == odd else None
        if other == "missing_item":
            foil *= (1 - 0.1 * clear)[..., None]
            change |= r < 0.125
            continue
        pill, tone, body = _tablet(x - px, y - py, turn, pose, coated=other == "wrong_item")
        shade = _tablet(x - px + 0.022 * pose.light[0], y - py + 0.022 * pose.light[1], turn, pose, coated=False)[0]
        foil *= (1 - 0.45 * np.clip(shade - pill, 0, 1) * clear)[..., None]
        foil = foil * (1 - pill[..., None]) + pill[..., None] * coloured(body, tone)
        if other:
            change |= (pill > 0.5) | (np.hypot(x - px, y - py) < 0.118)
    height = np.where(part > 0.5, 0.03 + 0.0007 * emboss * embossed + domes, grain)
    colour = np.where((part > 0.5)[..., None], foil, top)
    return Relief(height, colour, gloss, part, change & (part > 0.5))


def _tablet(
    x: np.ndarray, y: np.ndarray, turn: float, pose: Pose, *, coated: bool
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Coverage, brightness and colour of a tablet about the origin: round, white and scored, or longish and coated."""
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    far = np.hypot(np.clip(np.abs(u) - 0.06, 0, None), v) / 0.066 if coated else np.hypot(u, v) / 0.118
    cover = ramp(far, 1.03, 0.97)
    slope = ramp(far, 0.55, 1.0)
    lit = (x * pose.light[0] + y * pose.light[1]) / 0.118
    tone = 1 + 0.14 * slope * lit - 0.1 * slope
    if coated:
        return cover, tone, (0.83, 0.5, 0.2)
    score = np.exp(-((v / 0.008) ** 2)) * (far < 0.8)
    return cover, tone * (1 - 0.16 * score), (0.93, 0.92, 0.88)


_LOW, _HIGH = 3.0, 7.0
"""Readings between which the gauge's zone is green."""


_BEZEL = ((0.88, 146, 70, 190), (0.855, 190, 105, 235), (0.78, 205, 110, 235), (0.745, 58, 70, 60))
"""Radius, brightness, height and gloss of its rings, from outside in."""


def gauge(side: int, pose: Pose, defect: str | None, rng: random.Random) -> Relief:
    """A round gauge with a green zone; the needle can stand outside it, or be missing, or a number of the scale be blank."""
    drawing = Canvas(side)
    chance = random.Random(rng.random())
    for radius, tone, height, gloss in _BEZEL:
        drawing.disc(0, 0, radius, (tone, tone + 1, tone + 4), height, gloss)
    drawing.disc(0, 0, 0.725, (236, 236, 230), 40, 45)
    drawing.outline(0, 0, 1.76, 1.76, 0.88)
    blank = chance.choice((0, 2, 4, 6, 8, 10)) if defect == "missing_print" else None
    _scale(drawing, blank)
    reading = rng.uniform(_LOW + 0.5, _HIGH - 0.5)
    if defect == "out_of_range":
        reading = chance.choice((chance.uniform(0.2, _LOW - 0.9), chance.uniform(_HIGH + 0.9, 9.8)))
    if defect != "missing_part":
        drawing.polygon(_needle(reading), (28, 28, 32), 92, 120)
    if defect in {"out_of_range", "missing_part"}:
        drawing.mark(_needle(reading, 0.014))
    drawing.disc(0, 0, 0.062, (74, 74, 80), 112, 210)
    drawing.disc(0, 0, 0.03, (150, 150, 156), 124, 230)
    relief = drawing.posed(pose, (0.42, 0.43, 0.44), rng)
    # A faint sheet of light on the glass.
    x, y = plane(side, pose)
    sheen = 0.07 * ramp(np.abs(x * 0.8 + y * 0.6 + 0.35), 0.3, 0.1) * ramp(np.hypot(x, y), 0.73, 0.7)
    return relief._replace(colour=relief.colour + sheen[..., None])


def _scale(drawing: Canvas, blank: int | None) -> None:
    for low, high, colour in ((0, _LOW, (226, 190, 66)), (_LOW, _HIGH, (74, 158, 92)), (_HIGH, 10, (204, 70, 62))):
        drawing.arc(0.68, _angle(low), _angle(high), 0.045, colour)
    for step in range(51):
        value = step / 5
        inner, width = (0.6, 0.012) if step % 5 else (0.555, 0.02)
        drawing.line([_polar(_angle(value), inner), _polar(_angle(value), 0.635)], width, (30, 30, 30), 40, 45)
    for number in range(0, 11, 2):
        place = _polar(_angle(number), 0.455)
        if number == blank:
            drawing.mark_box(*place, 0.15, 0.12)
        else:
            drawing.write(*place, str(number), 0.115, 30)
    drawing.write(0, 0.25, "bar", 0.1, 50)
    drawing.write(0, 0.4, "DC-R2", 0.06, 90)


def _needle(reading: float, wider: float = 0.0) -> list[tuple[float, float]]:
    """Corners of the needle."""
    corners = ((0, 0.58), (90, 0.022), (180, 0.16), (270, 0.022))
    return [_polar(_angle(reading) + turn, far + wider) for turn, far in corners]


def _angle(reading: float) -> float:
    """Degrees clockwise from the right of a reading from 0 to 10."""
    return 135 + 27 * reading


def _polar(degrees: float, far: float) -> tuple[float, float]:
    return float(np.cos(np.deg2rad(degrees)) * far), float(np.sin(np.deg2rad(degrees)) * far)


_SCREWS = ((-0.44, -0.42), (0.44, -0.42), (0.0, 0.47))


def cover_plate(side: int, pose: Pose, defect: str | None, rng: random.Random) -> Relief:
    """A brushed cover with three screws about a bore; one screw can be missing, or be of another kind."""
    drawing = Canvas(side)
    drawing.box(0, 0, 1.5, 1.5, (150, 152, 156), 60, 120, 0.16)
    drawing.box(0, 0, 1.44, 1.44, (158, 160, 164), 66, 120, 0.14)
    drawing.outline(0, 0, 1.5, 1.5, 0.16)
    drawing.disc(0, -0.06, 0.235, (120, 122, 126), 58, 170)
    drawing.disc(0, -0.06, 0.2, (20, 20, 22), 0, 0)
    drawing.write(-0.5, 0.56, "A3-20", 0.09, 84)
    turns = [rng.uniform(0, 60) for _ in _SCREWS]
    odd = random.Random(rng.random()).randrange(len(_SCREWS))
    for number, ((x, y), turn) in enumerate(zip(_SCREWS, turns, strict=True)):
        other = defect if number == odd else None
        if other == "missing_fastener":
            drawing.disc(x, y, 0.105, (122, 124, 128), 60, 150)
            drawing.disc(x, y, 0.082, (96, 98, 102), 44, 120)
            drawing.disc(x, y, 0.07, (14, 14, 15), 0, 0)
        else:
            _screw(drawing, x, y, turn, slotted=other == "wrong_item")
        if other:
            drawing.mark_box(x, y, 0.31, 0.31, 0.155)
    relief = drawing.posed(pose, (0.3, 0.27, 0.24), rng)
    lines = np.interp(plane(side, pose)[1], np.linspace(-1.2, 1.2, 900), np.random.default_rng(11).normal(0, 1, 900))
    brushed = 1 + 0.045 * lines * (0.7 + 0.3 * smooth_noise((side, side), 7, rng))
    flat = (np.abs(relief.height - 66 / 255 * 0.17) < 0.002) & (relief.part > 0.5)
    return relief._replace(colour=np.where(flat[..., None], relief.colour * brushed[..., None], relief.colour))


def _screw(drawing: Canvas, x: float, y: float, turn: float, *, slotted: bool) -> None:
    drawing.disc(x, y, 0.15, (134, 136, 140), 92, 190)
    if slotted:
        drawing.disc(x, y, 0.12, (176, 142, 72), 132, 210)
        drawing.disc(x, y, 0.106, (196, 160, 86), 142, 220)
        (u, v), (w, z) = _polar(turn, 0.1), _polar(turn + 90, 0.016)
        slot = [(x + u + w, y + v + z), (x - u + w, y - v + z), (x - u - w, y - v - z), (x + u - w, y + v - z)]
        drawing.polygon(slot, (44, 34, 18), 100, 20)
        return
    drawing.disc(x, y, 0.12, (66, 67, 71), 150, 190)
    drawing.disc(x, y, 0.106, (78, 79, 84), 160, 200)
    drawing.polygon([(x + u, y + v) for u, v in (_polar(turn + 60 * k, 0.058) for k in range(6))], (12, 12, 13), 96, 0)
