"""A drawn circuit board with components; a component or a pin can be missing and a track be broken.

Takes the drawing's side in pixels, a pose, a defect or None, and chance; returns a `Relief`. Not in the paper.
"""

from __future__ import annotations

import random
from itertools import pairwise
from typing import NamedTuple

from PIL import ImageDraw

from dcr2ad.datasets.canvas import Canvas
from dcr2ad.datasets.scene import Pose, Relief


class _Chip(NamedTuple):
    """One component of the board: name, look, centre, width, height, in the board's frame."""

    name: str
    look: str
    x: float
    y: float
    w: float
    h: float


_COMPONENTS = (
    _Chip("U1", "ic", -0.3, -0.02, 0.38, 0.38),
    _Chip("U2", "ic", 0.42, 0.3, 0.3, 0.2),
    _Chip("Y1", "can", 0.1, -0.3, 0.26, 0.11),
    _Chip("C1", "drum", 0.52, -0.2, 0.24, 0.24),
    _Chip("C2", "drum", -0.6, 0.48, 0.2, 0.2),
    *(_Chip(f"R{i + 1}", "resistor", -0.3 + 0.17 * i, 0.47, 0.07, 0.13) for i in range(3)),
    *(_Chip(f"R{i + 4}", "resistor", 0.14, 0.02 + 0.15 * i, 0.13, 0.07) for i in range(3)),
    _Chip("C3", "ceramic", -0.66, -0.12, 0.08, 0.13),
    _Chip("C4", "ceramic", -0.66, 0.1, 0.08, 0.13),
    _Chip("D1", "led", 0.66, 0.53, 0.12, 0.08),
)
_REMOVABLE = ("can", "drum", "resistor", "ceramic", "led")
_TRACKS = (
    ((-0.08, -0.14), (0.0, -0.14), (0.0, -0.3), (0.03, -0.3)),
    ((-0.08, -0.06), (0.05, -0.06), (0.12, -0.13), (0.4, -0.13)),
    ((-0.08, 0.02), (0.06, 0.02)),
    ((-0.08, 0.1), (0.0, 0.17), (0.06, 0.17)),
    ((0.22, 0.02), (0.34, 0.02), (0.42, 0.1), (0.42, 0.17)),
    ((0.22, 0.17), (0.27, 0.22), (0.27, 0.24)),
    ((-0.52, -0.12), (-0.61, -0.12)),
    ((-0.52, 0.06), (-0.57, 0.1), (-0.61, 0.1)),
    ((-0.42, -0.24), (-0.42, -0.46)),
    ((-0.3, -0.24), (-0.3, -0.46)),
    ((-0.18, -0.24), (-0.18, -0.46)),
    ((0.22, -0.3), (0.34, -0.38), (0.34, -0.46)),
    ((-0.36, 0.2), (-0.36, 0.3), (-0.3, 0.36), (-0.3, 0.4)),
    ((-0.2, 0.2), (-0.2, 0.32), (-0.13, 0.38), (-0.13, 0.4)),
    ((0.04, 0.54), (0.1, 0.6), (0.5, 0.6), (0.57, 0.53), (0.6, 0.53)),
    ((-0.5, 0.48), (-0.42, 0.56), (-0.3, 0.56)),
    ((0.62, -0.3), (0.7, -0.38), (0.7, -0.5)),
    ((0.58, 0.3), (0.66, 0.22), (0.66, 0.0), (0.6, -0.08)),
)
_VIAS = ((0.34, -0.46), (0.7, -0.5), (0.0, -0.18), (0.28, 0.4), (-0.75, 0.3), (0.7, 0.1), (-0.55, -0.3), (0.3, 0.5))


def board(side: int, pose: Pose, defect: str | None, rng: random.Random) -> Relief:
    """A green circuit board with components; a component or a pin can be missing and a track be broken."""
    drawing = Canvas(side)
    drawing.box(0, 0, 1.66, 1.4, (18, 88, 58), 44, 90, 0.05)
    drawing.outline(0, 0, 1.66, 1.4, 0.05)
    chance = random.Random(rng.random())
    for points in _TRACKS:
        drawing.line(points, 0.03, (46, 138, 92), 47, 110)
    if defect == "open":
        _break_track(drawing, chance)
    for x, y in _VIAS:
        drawing.disc(x, y, 0.03, (196, 178, 118), 48, 220)
        drawing.disc(x, y, 0.013, (12, 12, 12), 20, 0)
    for x, y in ((-0.73, -0.6), (0.73, -0.6), (-0.73, 0.6), (0.75, 0.42)):
        drawing.disc(x, y, 0.07, (202, 184, 124), 46, 200)
        drawing.disc(x, y, 0.042, (14, 14, 14), 0, 0)
    drawing.box(-0.12, -0.55, 0.84, 0.13, (22, 22, 24), 80, 60)
    absent = chance.randrange(8) if defect == "missing_pin" else -1
    for pin in range(8):
        x = -0.47 + pin * 0.1
        if pin == absent:
            drawing.box(x, -0.55, 0.044, 0.044, (8, 8, 9), 62, 10)
            drawing.mark_box(x, -0.55, 0.05, 0.05)
        else:
            drawing.box(x, -0.55, 0.04, 0.04, (222, 192, 104), 120, 230)
    missing = chance.choice([c for c in _COMPONENTS if c.look in _REMOVABLE]) if defect == "missing_component" else None
    for component in _COMPONENTS:
        _place(drawing, component, component is missing)
    return drawing.posed(pose, (0.5, 0.5, 0.52), rng)


def _break_track(drawing: Canvas, rng: random.Random) -> None:
    """Take a stretch out of one track."""
    (x1, y1), (x2, y2) = rng.choice([
        (start, end) for track in _TRACKS for start, end in pairwise(track)
        if max(abs(start[0] - end[0]), abs(start[1] - end[1])) > 0.14 and (start[0] == end[0] or start[1] == end[1])
    ])  # fmt: skip
    t = rng.uniform(0.4, 0.6)
    gap = rng.uniform(0.06, 0.09)
    w, h = (0.036, gap) if x1 == x2 else (gap, 0.036)
    drawing.box(x1 + t * (x2 - x1), y1 + t * (y2 - y1), w, h, (52, 70, 44), 40, 30)
    drawing.mark_box(x1 + t * (x2 - x1), y1 + t * (y2 - y1), w, h)


def _place(drawing: Canvas, part: _Chip, missing: bool) -> None:
    """One component with its pads and print; or only the pads, where it is missing."""
    tin, _, x, y, w, h = (196, 198, 202), *part[1:]
    wide = w > h
    if part.look == "ic":
        pins = round(h / 0.054)
        for i in range(pins):
            at = -0.5 + (i + 0.5) / pins
            drawing.box(x, y + at * h, w + 0.1, 0.026, tin, 58, 220)
            if w == h:
                drawing.box(x + at * w, y, 0.026, h + 0.1, tin, 58, 220)
        drawing.box(x, y, w, h, (30, 30, 33), 96, 50, 0.012)
        drawing.disc(x - w / 2 + 0.05, y - h / 2 + 0.05, 0.018, (58, 58, 60), 92, 40)
        drawing.write(x, y, "DC-R2" if w == h else "AD24", 0.075, 150)
        return
    ends = ((-0.5, 0.0), (0.5, 0.0)) if wide or part.look == "drum" else ((0.0, -0.5), (0.0, 0.5))
    for dx, dy in ends:
        pad = (0.05, h * 0.95) if dx else (w * 0.95, 0.05)
        pad = (0.09, 0.07) if part.look == "drum" else pad
        drawing.box(x + dx * w * 0.86, y + dy * h * 0.86, *pad, tin, 52, 240, 0.012)
    drawing.write(x, y + h / 2 + 0.055, part.name, 0.055, 214)
    if missing:
        drawing.mark_box(x, y, w, h)
        return
    if part.look == "drum":
        drawing.disc(x, y, w / 2, (34, 34, 40), 118, 80)
        drawing.disc(x, y, w / 2 - 0.012, (186, 188, 192), 124, 170)
        chord = [*drawing.at(x - w / 2 + 0.014, y - w / 2 + 0.014), *drawing.at(x + w / 2 - 0.014, y + w / 2 - 0.014)]
        ImageDraw.Draw(drawing.colour).chord(chord, 140, 220, fill=(30, 30, 36))
    elif part.look == "can":
        drawing.box(x, y, w, h, (176, 178, 180), 108, 190, h / 2)
        drawing.write(x, y, "16.0", 0.06, 90)
    elif part.look == "led":
        drawing.box(x, y, w, h, (232, 226, 208), 76, 90)
        drawing.disc(x, y, h * 0.36, (244, 196, 72), 84, 200)
    else:
        body = (26, 26, 28) if part.look == "resistor" else (158, 122, 82)
        drawing.box(x, y, w, h, tin, 70, 200, 0.008)
        drawing.box(x, y, *((w - 0.044, h) if wide else (w, h - 0.044)), body, 74, 60)
        if part.look == "resistor" and wide:
            drawing.write(x, y, "103", 0.045, 205)
