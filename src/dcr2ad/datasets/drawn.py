"""Parts the product draws itself, good and defective, with exact masks: a nut, a circuit board, a bottle cap, woven cloth.

Reads nothing; returns pictures and masks, or writes them in the MVTec layout. A part is a map of heights, colours and
gloss, lit by one lamp; every picture varies pose, light and grain. Knows nothing about knowledge or questions; the names of
defects are labels that knowledge resolves. Not in the paper: these are the examples and tests that need no download.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from dcr2ad.datasets.defects import blurred, draw_defect, smooth_noise
from dcr2ad.errors import InputError, UnknownNameError

_OVER = 2
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


class PartKind(NamedTuple):
    """One kind of part."""

    paint: Callable[[int, Pose, str | None, random.Random], Relief]
    """Side of the drawing in pixels, pose, defect, chance -> relief."""
    defects: tuple[str, ...]
    """Labels of its defects."""
    own: tuple[str, ...] = ()
    """Of these, those `paint` makes itself; the others are drawn onto the picture."""


def draw_part(kind: str, defect: str | None, seed: int, size: int = 336) -> tuple[Image.Image, np.ndarray]:
    """Draw one picture of a part.

    The same seed gives the same picture with and without a defect, so that the two differ in the defect alone.

    Args:
        kind: one of `PART_KINDS`.
        defect: one of that kind's defects, or None for a good part.
        seed: decides pose, light, grain and the defect's place and form.
        size: side in pixels, 64 or more.

    Returns:
        RGB picture of `size` x `size`, and the boolean mask of the same shape, empty for a good part.

    Raises:
        UnknownNameError: no such kind, or no such defect of this kind.
        InputError: the size is under 64.
    """
    if kind not in PART_KINDS:
        raise UnknownNameError(f"no drawn part {kind!r}", f"Parts: {', '.join(PART_KINDS)}")
    part = PART_KINDS[kind]
    if defect is not None and defect not in part.defects:
        raise UnknownNameError(f"no drawn defect {defect!r} of {kind}", f"Its defects: {', '.join(part.defects)}")
    if size < 64:
        raise InputError(f"a drawing of {size} pixels shows nothing", "Use 64 or more")
    pose = _pose(random.Random(f"pose/{kind}/{seed}"))
    painted = defect if defect in part.own else None
    relief = part.paint(size * _OVER, pose, painted, random.Random(f"part/{kind}/{seed}"))
    picture = _photograph(relief, pose, random.Random(f"camera/{kind}/{seed}"))
    if painted:
        return picture, _reduced(relief.change)
    if defect is None:
        return picture, np.zeros((size, size), dtype=bool)
    flat = np.array(pose.light[:2]) / np.hypot(*pose.light[:2])
    # Beside the outline: a bite needs the bench behind it, the other defects must not touch it.
    inside = _reduced(relief.part > 0.5)
    return draw_defect(picture, defect, seed=seed, foreground=inside, light=(float(flat[0]), float(flat[1])))


def write_drawn(folder: str | Path, n_per_kind: int, seed: int = 0, *, size: int = 336) -> int:
    """Write drawn parts in the MVTec layout.

    Of every kind: `n_per_kind` pictures for ``train/good``, as many for ``test/good`` and for each of its defects.

    Returns:
        number of pictures written, masks not counted.

    Raises:
        InputError: `n_per_kind` is under 1.
    """
    if n_per_kind < 1:
        raise InputError(f"{n_per_kind} pictures of each kind are none", "Ask for 1 or more")
    written = 0
    for kind, part in PART_KINDS.items():
        shelves: list[tuple[str, str | None]] = [
            ("train", None),
            ("test", None),
            *(("test", defect) for defect in part.defects),
        ]
        for number, (shelf, defect) in enumerate(shelves):
            name = defect or "good"
            for index in range(n_per_kind):
                picture, mask = draw_part(kind, defect, (seed * 1000 + number) * 10_000 + index, size)
                path = Path(folder) / kind / shelf / name / f"{index:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path)
                if defect:
                    truth = Path(folder) / kind / "ground_truth" / defect / f"{index:03d}_mask.png"
                    truth.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(mask.astype(np.uint8) * 255).save(truth)
                written += 1
    return written


def _pose(rng: random.Random) -> Pose:
    around, above = rng.gauss(-2.2, 0.12), rng.uniform(0.85, 0.98)
    light = (float(np.cos(around) * np.cos(above)), float(np.sin(around) * np.cos(above)), float(np.sin(above)))
    shift = (rng.uniform(-0.015, 0.015), rng.uniform(-0.015, 0.015))
    return Pose(rng.gauss(0, 2.0), *shift, rng.uniform(0.985, 1.015), light, rng.uniform(0.94, 1.06))


def _photograph(relief: Relief, pose: Pose, rng: random.Random) -> Image.Image:
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
    small = picture.resize((side // _OVER, side // _OVER), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(0.45))
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


def _reduced(flags: np.ndarray) -> np.ndarray:
    """A boolean map of the drawing at the picture's size."""
    side = flags.shape[0] // _OVER
    return np.asarray(flags.reshape(side, _OVER, side, _OVER).mean(axis=(1, 3)) >= 0.5)


def _plane(side: int, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of every pixel in the part's own frame, -1 to 1 over the picture before the pose."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    x, y = x - 2 * pose.x, y - 2 * pose.y
    turn = np.deg2rad(pose.angle)
    return (x * np.cos(turn) + y * np.sin(turn)) / pose.scale, (y * np.cos(turn) - x * np.sin(turn)) / pose.scale


def _ramp(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 at `low`, 1 at `high`, smooth between; `high` may be the smaller one."""
    t = np.clip((values - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def _coloured(colour: tuple[float, float, float], values: np.ndarray) -> np.ndarray:
    return np.array(colour) * values[..., None]


def _bench(side: int, rng: random.Random, colour: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Colour and height of a bench: a mat with fine grain and slow blotches."""
    shape = (side, side)
    fine = np.random.default_rng(rng.getrandbits(32)).normal(0, 1, shape)
    slow = smooth_noise(shape, 5, rng) * 0.05 + smooth_noise(shape, 60, rng) * 0.06
    return _coloured(colour, 1 + slow + 0.05 * fine), 0.0006 * blurred(0.5 + 0.2 * fine, 1.2)


def _nut(side: int, pose: Pose, defect: str | None, rng: random.Random) -> Relief:
    """A turned hexagon nut with a threaded hole on a dark mat."""
    x, y = _plane(side, pose)
    rho, phi = np.hypot(x, y), np.arctan2(y, x)
    six = np.maximum.reduce([np.abs(x * np.cos(a) + y * np.sin(a)) for a in np.deg2rad([0, 60, 120])])
    part = _ramp(six, 0.704, 0.696) * _ramp(rho, 0.33, 0.338)
    rings = np.interp(rho, np.linspace(0, 1.5, 700), np.random.default_rng(7).normal(0, 1, 700))
    thread = np.sin((0.43 - rho) * 170 + phi) * _ramp(rho, 0.425, 0.41) * _ramp(rho, 0.31, 0.33)
    slope = np.clip(rho - 0.665, 0, None) * 0.55 + np.clip(0.45 - rho, 0, None) * 0.9
    mat, grain = _bench(side, rng, (0.2, 0.22, 0.25))
    height = np.where(part > 0.5, 0.14 - slope * 0.5 + 0.0009 * rings * _ramp(rho, 0.45, 0.46) + 0.004 * thread, grain)
    # Turned metal shows a bow tie of light across the lathe marks.
    bow = np.abs(np.cos(phi - np.arctan2(pose.light[1], pose.light[0]))) ** 3
    sheen = 0.43 + 0.24 * bow + 0.035 * rings + 0.04 * smooth_noise((side, side), 9, rng)
    flat = _ramp(rho, 0.455, 0.465) * _ramp(rho, 0.67, 0.66)
    tone = np.where(flat > 0.5, sheen, 0.5 + 0.02 * rings) * (1 - 0.35 * _ramp(rho, 0.43, 0.4)) * (1 + 0.25 * thread)
    steel = _coloured((0.98, 0.99, 1.03), tone)
    hole = _coloured((0.05, 0.05, 0.055), _ramp(rho, 0.36, 0.1) * 0.4 + 0.6)
    colour = np.where((part > 0.5)[..., None], steel, np.where((rho < 0.335)[..., None], hole, mat))
    gloss = part * (0.35 + 0.3 * bow)
    return Relief(height, colour, gloss, part, np.zeros_like(part, dtype=bool))


def _cap(side: int, pose: Pose, defect: str | None, rng: random.Random) -> Relief:
    """A ribbed plastic closure with an embossed star, seen from above on a light bench."""
    x, y = _plane(side, pose)
    rho, phi = np.hypot(x, y), np.arctan2(y, x)
    rim = 0.79 + 0.012 * np.cos(60 * phi)
    part = _ramp(rho / rim, 1.004, 0.996)
    star = 0.27 + 0.1 * np.cos(5 * (phi + np.pi / 2))
    relief = 0.012 * _ramp(rho, star + 0.012, star - 0.012) + 0.016 * _ramp(np.abs(rho - 0.56), 0.035, 0.015)
    side_wall = 0.1 * _ramp(rho / rim, 0.97, 0.9) + 0.05
    bench, grain = _bench(side, rng, (0.62, 0.58, 0.52))
    skin = 0.0003 * smooth_noise((side, side), 90, rng)
    height = np.where(part > 0.5, side_wall + relief + skin, grain)
    ribs = 1 - 0.3 * _ramp(rho, 0.72, 0.76) * (0.5 - 0.5 * np.cos(60 * phi))
    tint = (0.12 + rng.uniform(-0.01, 0.01), 0.33 + rng.uniform(-0.015, 0.015), 0.66 + rng.uniform(-0.02, 0.02))
    plastic = _coloured(tint, ribs * (1 + 0.03 * smooth_noise((side, side), 6, rng)))
    colour = np.where((part > 0.5)[..., None], plastic, bench)
    return Relief(height, colour, part * 0.55, part, np.zeros_like(part, dtype=bool))


def _cloth(side: int, pose: Pose, defect: str | None, rng: random.Random) -> Relief:
    """Plain weave of two yarns that fills the picture."""
    x, y = _plane(side, pose)
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


class _Board:
    """The layers a circuit board is drawn in, before its pose."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.colour = Image.new("RGB", (side, side))
        self.height, self.gloss, self.part, self.change = (Image.new("L", (side, side)) for _ in range(4))

    def box(
        self, x: float, y: float, w: float, h: float, colour: tuple[int, int, int], height: int, gloss: int, r: float = 0
    ) -> None:
        """A block with centre, size and corner radius, in the board's frame."""
        edges = [*self._at(x - w / 2, y - h / 2), *self._at(x + w / 2, y + h / 2)]
        for layer, value in ((self.colour, colour), (self.height, height), (self.gloss, gloss)):
            ImageDraw.Draw(layer).rounded_rectangle(edges, r * self.side / 2, fill=value)

    def disc(self, x: float, y: float, radius: float, colour: tuple[int, int, int], height: int, gloss: int) -> None:
        """A round block."""
        self.box(x, y, 2 * radius, 2 * radius, colour, height, gloss, radius)

    def track(self, points: tuple[tuple[float, float], ...], width: float) -> None:
        """A copper track under the green lacquer."""
        ends = [self._at(*point) for point in points]
        for layer, value in ((self.colour, (46, 138, 92)), (self.height, 47), (self.gloss, 110)):
            ImageDraw.Draw(layer).line(ends, fill=value, width=round(width * self.side / 2), joint="curve")

    def write(self, x: float, y: float, text: str, size: float, grey: int) -> None:
        """Silk-screen print, centred."""
        pen = ImageDraw.Draw(self.colour)
        pen.text(self._at(x, y), text, fill=(grey, grey, grey), font_size=size * self.side / 2, anchor="mm")

    def mark(self, x: float, y: float, w: float, h: float) -> None:
        """Note that this rectangle was changed."""
        edges = [*self._at(x - w / 2, y - h / 2), *self._at(x + w / 2, y + h / 2)]
        ImageDraw.Draw(self.change).rectangle(edges, fill=255)

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return (x + 1) * self.side / 2, (y + 1) * self.side / 2


def _board(side: int, pose: Pose, defect: str | None, rng: random.Random) -> Relief:
    """A green circuit board with components; a component can be missing and a track be broken."""
    board = _Board(side)
    board.box(0, 0, 1.66, 1.4, (18, 88, 58), 44, 90, 0.05)
    ImageDraw.Draw(board.part).rounded_rectangle([side * 0.085, side * 0.15, side * 0.915, side * 0.85], side * 0.025, fill=255)
    chance = random.Random(rng.random())
    for points in _TRACKS:
        board.track(points, 0.03)
    if defect == "open":
        _break_track(board, chance)
    for x, y in _VIAS:
        board.disc(x, y, 0.03, (196, 178, 118), 48, 220)
        board.disc(x, y, 0.013, (12, 12, 12), 20, 0)
    for x, y in ((-0.73, -0.6), (0.73, -0.6), (-0.73, 0.6), (0.75, 0.42)):
        board.disc(x, y, 0.07, (202, 184, 124), 46, 200)
        board.disc(x, y, 0.042, (14, 14, 14), 0, 0)
    board.box(-0.12, -0.55, 0.84, 0.13, (22, 22, 24), 80, 60)
    for pin in range(8):
        board.box(-0.47 + pin * 0.1, -0.55, 0.04, 0.04, (222, 192, 104), 120, 230)
    missing = chance.choice([c for c in _COMPONENTS if c.look in _REMOVABLE]) if defect == "missing_component" else None
    for component in _COMPONENTS:
        _place(board, component, component is missing)
    return _posed(board, pose, rng)


def _break_track(board: _Board, rng: random.Random) -> None:
    """Take a stretch out of one track."""
    (x1, y1), (x2, y2) = rng.choice([
        (start, end) for track in _TRACKS for start, end in pairwise(track)
        if max(abs(start[0] - end[0]), abs(start[1] - end[1])) > 0.14 and (start[0] == end[0] or start[1] == end[1])
    ])  # fmt: skip
    t = rng.uniform(0.4, 0.6)
    gap = rng.uniform(0.06, 0.09)
    w, h = (0.036, gap) if x1 == x2 else (gap, 0.036)
    board.box(x1 + t * (x2 - x1), y1 + t * (y2 - y1), w, h, (52, 70, 44), 40, 30)
    board.mark(x1 + t * (x2 - x1), y1 + t * (y2 - y1), w, h)


def _place(board: _Board, part: _Chip, missing: bool) -> None:
    """One component with its pads and print; or only the pads, where it is missing."""
    tin, _, x, y, w, h = (196, 198, 202), *part[1:]
    wide = w > h
    if part.look == "ic":
        pins = round(h / 0.054)
        for i in range(pins):
            at = -0.5 + (i + 0.5) / pins
            board.box(x, y + at * h, w + 0.1, 0.026, tin, 58, 220)
            if w == h:
                board.box(x + at * w, y, 0.026, h + 0.1, tin, 58, 220)
        board.box(x, y, w, h, (30, 30, 33), 96, 50, 0.012)
        board.disc(x - w / 2 + 0.05, y - h / 2 + 0.05, 0.018, (58, 58, 60), 92, 40)
        board.write(x, y, "DC-R2" if w == h else "AD24", 0.075, 150)
        return
    ends = ((-0.5, 0.0), (0.5, 0.0)) if wide or part.look == "drum" else ((0.0, -0.5), (0.0, 0.5))
    for dx, dy in ends:
        pad = (0.05, h * 0.95) if dx else (w * 0.95, 0.05)
        pad = (0.09, 0.07) if part.look == "drum" else pad
        board.box(x + dx * w * 0.86, y + dy * h * 0.86, *pad, tin, 52, 240, 0.012)
    board.write(x, y + h / 2 + 0.055, part.name, 0.055, 214)
    if missing:
        board.mark(x, y, w, h)
        return
    if part.look == "drum":
        board.disc(x, y, w / 2, (34, 34, 40), 118, 80)
        board.disc(x, y, w / 2 - 0.012, (186, 188, 192), 124, 170)
        chord = [*board._at(x - w / 2 + 0.014, y - w / 2 + 0.014), *board._at(x + w / 2 - 0.014, y + w / 2 - 0.014)]
        ImageDraw.Draw(board.colour).chord(chord, 140, 220, fill=(30, 30, 36))
    elif part.look == "can":
        board.box(x, y, w, h, (176, 178, 180), 108, 190, h / 2)
        board.write(x, y, "16.0", 0.06, 90)
    elif part.look == "led":
        board.box(x, y, w, h, (232, 226, 208), 76, 90)
        board.disc(x, y, h * 0.36, (244, 196, 72), 84, 200)
    else:
        body = (26, 26, 28) if part.look == "resistor" else (158, 122, 82)
        board.box(x, y, w, h, tin, 70, 200, 0.008)
        board.box(x, y, *((w - 0.044, h) if wide else (w, h - 0.044)), body, 74, 60)
        if part.look == "resistor" and wide:
            board.write(x, y, "103", 0.045, 205)


def _posed(board: _Board, pose: Pose, rng: random.Random) -> Relief:
    """The board's layers turned and shifted, on a bench."""
    side = board.side
    turn, grow = np.deg2rad(pose.angle), 1 / pose.scale
    a, b = np.cos(turn) * grow, np.sin(turn) * grow
    middle = side / 2
    dx, dy = middle + pose.x * side, middle + pose.y * side
    matrix = (a, b, middle - a * dx - b * dy, -b, a, middle + b * dx - a * dy)

    def moved(layer: Image.Image) -> np.ndarray:
        turned = layer.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        return np.asarray(turned, dtype=np.float64) / 255

    part = moved(board.part)
    bench, grain = _bench(side, rng, (0.5, 0.5, 0.52))
    height = np.where(part > 0.5, blurred(moved(board.height), side * 0.0022) * 0.17, grain)
    laminate = 1 + 0.025 * smooth_noise((side, side), 130, rng)
    colour = np.where((part > 0.5)[..., None], moved(board.colour) * laminate[..., None], bench)
    return Relief(height, colour, moved(board.gloss) * part * 0.8, part, moved(board.change) > 0.5)


PART_KINDS: dict[str, PartKind] = {
    "metal_nut": PartKind(_nut, ("scratch", "pit", "chip", "dirt")),
    "printed_circuit_board": PartKind(
        _board, ("missing_component", "open", "scratch", "foreign_object"), ("missing_component", "open")
    ),
    "bottle_cap": PartKind(_cap, ("crack", "chip", "dirt", "scratch")),
    "woven_cloth": PartKind(_cloth, ("hole", "dirt", "foreign_object")),
}
"""What can be drawn; the names are categories of the MVTec layout."""
