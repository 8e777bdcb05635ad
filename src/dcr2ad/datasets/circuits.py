"""Painters of drawn defects on boards in black and white: tracks cut, bridged, nibbled or sprouting, islands and pinholes.

Each takes a `Surface` of such a picture, copper black, and a source of chance, and returns a `Layer`: one stroke of ground laid
over copper, or of copper over ground, as DeepPCB's defects are (Tang et al. 2019). Where a stroke may begin and end is measured
from a border of the copper, inwards through the track and outwards over the gap, so that an open circuit is cut through and a
mouse bite is not. Not in the paper.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from dcr2ad.datasets.surface import Layer, Point, Surface, polyline, smoothed

_TRIES = 200
"""Borders near the spot that are tried before the defect is given up."""
_FURTHEST = 70
"""How far a track or a gap is measured, in units of a 224-pixel picture."""
_CLEAR = 2.0
"""What must stay between an end that is free and the other side, in the same units."""


class _Border(NamedTuple):
    """A place on the border of the copper, and what lies on either side of it; lengths in pixels of the window."""

    point: np.ndarray
    outward: np.ndarray
    """Unit vector from the copper to the ground."""
    track: float
    """Width of the copper from here inwards."""
    gap: float
    """Width of the ground from here outwards."""
    lane: float
    """How far the ground goes on along the border from the middle of the gap, to the wider side."""
    unit: float
    """A pixel of a 224-pixel picture; less where the defect is to be harder to see."""

    def at(self, out: float, along: float = 0.0) -> Point:
        """A point so far outwards (inwards where negative), and so far along the border."""
        x, y = self.point + out * self.outward + along * np.array([-self.outward[1], self.outward[0]])
        return float(x), float(y)


class _Stroke(NamedTuple):
    points: list[Point]
    width: float
    free: tuple[Point, ...] = ()
    """Points that must stay clear of the other side."""


_Way = Callable[[_Border, random.Random], _Stroke | None]


def _open(border: _Border, rng: random.Random) -> _Stroke | None:
    if not 3 * border.unit <= border.track <= 22 * border.unit:
        return None
    slant, wide = rng.uniform(-0.9, 0.9), rng.uniform(3.5, 9) * border.unit
    reach = border.track + 3 * border.unit
    return _Stroke([border.at(3 * border.unit, 3 * border.unit * slant), border.at(-reach, -reach * slant)], wide)


def _short(border: _Border, rng: random.Random) -> _Stroke | None:
    if not 5 * border.unit <= border.gap <= 45 * border.unit or border.lane < border.gap:
        return None  # too wide a gap, or a hole in one and the same copper
    bow = rng.uniform(-0.15, 0.15) * border.gap
    return _Stroke(
        [border.at(-2 * border.unit), border.at(border.gap / 2, bow), border.at(border.gap + 3 * border.unit)],
        rng.uniform(3.5, 6) * border.unit,
    )


def _bite(border: _Border, rng: random.Random) -> _Stroke | None:
    return _twig(border, rng, -1, border.track, rng.uniform(6, 18))


def _spur(border: _Border, rng: random.Random) -> _Stroke | None:
    return _twig(border, rng, 1, border.gap, rng.uniform(6, 16))


def _twig(border: _Border, rng: random.Random, side: int, room: float, length: float) -> _Stroke | None:
    """A stroke that begins on the border and ends free, two thirds over at most."""
    wide = rng.uniform(3, 6.5) * border.unit
    reach = min(length * border.unit, 0.65 * room, room - wide / 2 - _CLEAR * border.unit)
    if reach < max(wide * 0.6, 3 * border.unit):
        return None
    slant, bend = rng.uniform(-0.6, 0.6) * reach, rng.uniform(-2, 2) * border.unit
    points = [border.at(-side), border.at(side * reach / 2, slant / 2 + bend), border.at(side * reach, slant)]
    return _Stroke(points, wide, (points[2],))


def _island(border: _Border, rng: random.Random) -> _Stroke | None:
    return _alone(border, rng, 1, border.gap)


def _pinhole(border: _Border, rng: random.Random) -> _Stroke | None:
    return _alone(border, rng, -1, border.track)


def _alone(border: _Border, rng: random.Random, side: int, room: float) -> _Stroke | None:
    """A stroke that touches nothing, in the middle of a gap or of the copper."""
    if room < 12 * border.unit:
        return None
    wide, half = rng.uniform(3, 6) * border.unit, rng.uniform(1, 12) * border.unit
    angle, bend = rng.uniform(0, 2 * np.pi), rng.uniform(-4, 4) * border.unit
    middle = side * room * rng.uniform(0.35, 0.65)
    out, along = half * np.sin(angle), half * np.cos(angle)
    ends = [border.at(middle + out, along), border.at(middle + bend * np.cos(angle), bend), border.at(middle - out, -along)]
    return _Stroke(ends, wide, tuple(ends))


_WAYS: dict[str, tuple[_Way, bool]] = {
    "open": (_open, False),
    "short": (_short, True),
    "mousebite": (_bite, False),
    "spur": (_spur, True),
    "spurious_copper": (_island, True),
    "pin_hole": (_pinhole, False),
}
"""By kind, how its stroke runs and whether it is of copper."""


def painter(kind: str) -> Callable[[Surface, random.Random], Layer]:
    """The painter of one of the kinds that `CIRCUITS` names; it paints nothing where no track allows the kind."""
    way, of_copper = _WAYS[kind]

    def paint(surface: Surface, rng: random.Random) -> Layer:
        copper = copper_of(surface.rgb.mean(axis=2))
        for border in _borders(surface, copper, rng):
            stroke = way(border, rng)
            if stroke is None:
                continue
            cover = polyline(surface.shape, stroke.points, [stroke.width] * len(stroke.points)) >= 0.5
            near = stroke.width / 2 + _CLEAR * border.unit
            if all((copper[_disc(surface, point, near)] != of_copper).all() for point in stroke.free):
                changed = cover & (copper != of_copper)
                return Layer(np.full_like(surface.rgb, 0.0 if of_copper else 1.0), changed.astype(np.float64))
        return Layer(surface.rgb, np.zeros(surface.shape))

    return paint


CIRCUITS = tuple(_WAYS)
"""What can be drawn onto a board in black and white; each name is also the label that knowledge resolves."""


def copper_of(grey: np.ndarray) -> np.ndarray:
    """Where copper is, the black of a grey picture (0 to 1); boolean."""
    return np.asarray(grey < 0.5)


def track_borders(copper: np.ndarray) -> np.ndarray:
    """Where copper borders on ground; boolean, the copper's side."""
    padded = np.pad(copper, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.asarray(copper & ~inner)


def _borders(surface: Surface, copper: np.ndarray, rng: random.Random) -> Iterator[_Border]:
    """Borders of the copper by lot, those near the spot first."""
    unit = surface.size / 224
    steep = smoothed(copper.astype(np.float64), max(2.0, 2 * unit))
    down, right = np.gradient(steep)
    rows, columns = np.nonzero(track_borders(copper) & (np.hypot(down, right) > 1e-3))
    far = np.hypot(columns - surface.spot[0], rows - surface.spot[1]) * np.array([rng.uniform(0.5, 1.5) for _ in rows])
    for index in np.argsort(far, kind="stable")[:_TRIES]:
        row, column = int(rows[index]), int(columns[index])
        outward = -np.array([right[row, column], down[row, column]])
        outward /= np.hypot(*outward)
        point = np.array([column, row], dtype=np.float64)
        track = _until(copper, point, -outward, True, _FURTHEST * unit)
        gap = _until(copper, point + 1.5 * outward, outward, False, _FURTHEST * unit)
        if track is None or gap is None:
            continue
        middle, along = point + (1.5 + gap / 2) * outward, np.array([-outward[1], outward[0]])
        lanes = [_until(copper, middle, way, False, _FURTHEST * unit) for way in (along, -along)]
        lane = max(_FURTHEST * unit if length is None else length for length in lanes)
        yield _Border(point, outward, track, gap + 1.5, lane, unit)


def _until(copper: np.ndarray, point: np.ndarray, way: np.ndarray, within: bool, most: float) -> float | None:
    """How far one goes from a point before the tone changes, `most` at most; None where the window ends first."""
    height, width = copper.shape
    for step in range(1, int(most) + 1):
        column, row = (int(value) for value in np.rint(point + step * way))
        if not (0 <= row < height and 0 <= column < width):
            return None
        if copper[row, column] != within:
            return float(step)
    return most


def _disc(surface: Surface, point: Point, radius: float) -> np.ndarray:
    return np.asarray(np.hypot(*surface.offsets(point)) <= radius)
