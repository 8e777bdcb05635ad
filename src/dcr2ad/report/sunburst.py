"""The sunburst of Figure 5: questions by component, sub-task and object, with counts, as a PNG.

Reads counts; returns a file's bytes. Knows nothing about questions or files.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

_SHADES = {0: ("#2b6cb0", "#4a90d0", "#7db3e0", "#a9cdec"), 1: ("#b7472a", "#d0694c", "#e08e74", "#ecb3a0", "#f3cfc2")}
_RINGS = ((0.34, 0.26), (0.60, 0.34), (0.94, 0.30))
"""Inner radius and width of each ring, from the centre out."""
_LEAST_DEGREES = 2.4
"""Slices narrower than this have no room for a name."""

_LONGEST = 24
"""Letters of an object's name that the margin has room for."""


class Slice(NamedTuple):
    """A part of one ring."""

    path: tuple[str, ...]
    """Component, sub-task and object, as far as the ring goes."""
    questions: int
    start: float
    """Degrees from the top, clockwise."""
    end: float


def slices(counts: Mapping[tuple[str, str, str], int]) -> list[Slice]:
    """Every ring's slices, the inner rings first; each slice spans its children. Angles are proportional to counts."""
    total = sum(counts.values())
    order = sorted(counts)
    found = []
    for depth in range(1, 4):
        before = 0
        for path, members in groupby(order, key=lambda key, depth=depth: key[:depth]):  # type: ignore[misc]
            count = sum(counts[member] for member in members)
            found.append(Slice(path, count, 360 * before / total, 360 * (before + count) / total))
            before += count
    return found


def sunburst_png(counts: Mapping[tuple[str, str, str], int]) -> bytes:
    """Draw Figure 5.

    Args:
        counts: number of questions by component, sub-task and object; not empty.
    """
    with matplotlib.rc_context({"font.size": 9, "font.family": "sans-serif"}):
        figure = Figure(figsize=(10, 10), dpi=140)
        axes = figure.add_axes((0.02, 0.02, 0.96, 0.96))
        axes.set_aspect("equal")
        axes.set_xlim(-1.9, 1.9)
        axes.set_ylim(-1.9, 1.9)
        axes.axis("off")
        axes.text(0, 0, f"{sum(counts.values()):,}\nquestions", ha="center", va="center", fontsize=15, fontweight="bold")
        for piece, colour in _coloured(slices(counts)):
            _draw(axes, piece, colour)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _coloured(pieces: list[Slice]) -> Iterator[tuple[Slice, Any]]:
    """Each slice with its colour: a hue a component, a shade a sub-task, its objects paler."""
    components = list(dict.fromkeys(piece.path[0] for piece in pieces))
    shades: dict[tuple[str, ...], str] = {}
    used: Counter[str] = Counter()
    for piece in pieces:
        hue = _SHADES[components.index(piece.path[0]) % 2]
        if len(piece.path) == 1:
            yield piece, hue[0]
            continue
        if len(piece.path) == 2:
            shades[piece.path] = hue[1 + used[piece.path[0]] % (len(hue) - 1)]
            used[piece.path[0]] += 1
        pale = 0.0 if len(piece.path) == 2 else 0.45
        yield piece, 1 - (1 - np.array(matplotlib.colors.to_rgb(shades[piece.path[:2]]))) * (1 - pale)


def _draw(axes: Any, piece: Slice, colour: Any) -> None:
    inner, width = _RINGS[len(piece.path) - 1]
    start, wide = np.deg2rad(piece.start), np.deg2rad(piece.end - piece.start)
    around = np.linspace(start, start + wide, max(2, round(piece.end - piece.start)))
    edge = [(r * np.sin(a), r * np.cos(a)) for r, way in ((inner, around), (inner + width, around[::-1])) for a in way]
    axes.add_patch(matplotlib.patches.Polygon(edge, facecolor=colour, edgecolor="white", linewidth=0.8))
    degrees = piece.end - piece.start
    if degrees < _LEAST_DEGREES:
        return
    middle = (piece.start + piece.end) / 2
    outer = len(piece.path) == 3
    text = f"{_short(piece.path[-1])} {piece.questions:,}" if outer else f"{_broken(piece.path[-1])}\n{piece.questions:,}"
    along = inner + width + 0.02 if outer else inner + width / 2
    x, y = along * np.sin(np.deg2rad(middle)), along * np.cos(np.deg2rad(middle))
    turned = (90 - middle) if middle <= 180 else (270 - middle)
    side = ("left" if middle <= 180 else "right") if outer else "center"
    flat = not outer and degrees > 40
    axes.text(
        *(x, y),
        text,
        rotation=0 if flat else turned,
        rotation_mode="anchor",
        ha=side,
        va="center",
        fontsize=8 if outer else 9,
        color="#222222" if outer or len(piece.path) == 2 else "white",
    )


def _broken(name: str) -> str:
    """A name of two words on two lines."""
    return name.replace(" ", "\n", 1)


def _short(name: str) -> str:
    """A name as long as the margin allows."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
