"""A flat drawing in layers (colour, height, gloss), for drawn parts made of blocks, discs and print.

Coordinates are the part's own: -1 to 1 over the picture, before its pose. Returns a `Relief`. Not in the paper.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from dcr2ad.datasets.scene import Pose, Relief, bench_top, blurred, smooth_noise

Colour = tuple[int, int, int]
Place = tuple[float, float]


class Canvas:
    """The layers of a drawing.

    Args:
        side: side in pixels.
    """

    def __init__(self, side: int) -> None:
        self.side = side
        self.colour = Image.new("RGB", (side, side))
        self.height, self.gloss, self.part, self.change = (Image.new("L", (side, side)) for _ in range(4))

    def box(self, x: float, y: float, w: float, h: float, colour: Colour, height: int, gloss: int, r: float = 0) -> None:
        """A block with centre, size and corner radius."""
        for layer, value in self._values(colour, height, gloss):
            ImageDraw.Draw(layer).rounded_rectangle(self.edges(x, y, w, h), r * self.side / 2, fill=value)

    def disc(self, x: float, y: float, radius: float, colour: Colour, height: int, gloss: int) -> None:
        """A round block."""
        self.box(x, y, 2 * radius, 2 * radius, colour, height, gloss, radius)

    def polygon(self, points: Sequence[Place], colour: Colour, height: int, gloss: int) -> None:
        """A block of any outline."""
        for layer, value in self._values(colour, height, gloss):
            ImageDraw.Draw(layer).polygon([self.at(*point) for point in points], fill=value)

    def line(self, points: Sequence[Place], width: float, colour: Colour, height: int, gloss: int) -> None:
        """A bar along a way."""
        ends = [self.at(*point) for point in points]
        for layer, value in self._values(colour, height, gloss):
            ImageDraw.Draw(layer).line(ends, fill=value, width=max(1, round(width * self.side / 2)), joint="curve")

    def arc(self, radius: float, start: float, end: float, width: float, colour: Colour) -> None:
        """A printed arc about the middle, from `start` to `end` degrees clockwise from the right."""
        edges = self.edges(0, 0, 2 * radius, 2 * radius)
        ImageDraw.Draw(self.colour).arc(edges, start, end, fill=colour, width=round(width * self.side / 2))

    def write(self, x: float, y: float, text: str, size: float, grey: int) -> None:
        """Print, centred."""
        pen = ImageDraw.Draw(self.colour)
        pen.text(self.at(x, y), text, fill=(grey, grey, grey), font_size=size * self.side / 2, anchor="mm")

    def outline(self, x: float, y: float, w: float, h: float, r: float) -> None:
        """Say that this rounded block is part; all else is bench."""
        ImageDraw.Draw(self.part).rounded_rectangle(self.edges(x, y, w, h), r * self.side / 2, fill=255)

    def mark(self, points: Sequence[Place]) -> None:
        """Note that this polygon was changed."""
        ImageDraw.Draw(self.change).polygon([self.at(*point) for point in points], fill=255)

    def mark_box(self, x: float, y: float, w: float, h: float, r: float = 0) -> None:
        """Note that this block was changed."""
        ImageDraw.Draw(self.change).rounded_rectangle(self.edges(x, y, w, h), r * self.side / 2, fill=255)

    def at(self, x: float, y: float) -> Place:
        """A place in pixels."""
        return (x + 1) * self.side / 2, (y + 1) * self.side / 2

    def edges(self, x: float, y: float, w: float, h: float) -> list[float]:
        """Left, top, right and bottom of a block in pixels."""
        return [*self.at(x - w / 2, y - h / 2), *self.at(x + w / 2, y + h / 2)]

    def posed(self, pose: Pose, bench: tuple[float, float, float], rng: random.Random) -> Relief:
        """The drawing turned and shifted, on a bench of a colour."""
        side = self.side
        turn, grow = np.deg2rad(pose.angle), 1 / pose.scale
        a, b = np.cos(turn) * grow, np.sin(turn) * grow
        middle = side / 2
        dx, dy = middle + pose.x * side, middle + pose.y * side
        matrix = (a, b, middle - a * dx - b * dy, -b, a, middle + b * dx - a * dy)

        def moved(layer: Image.Image) -> np.ndarray:
            turned = layer.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
            return np.asarray(turned, dtype=np.float64) / 255

        part = moved(self.part)
        top, grain = bench_top(side, rng, bench)
        height = np.where(part > 0.5, blurred(moved(self.height), side * 0.0022) * 0.17, grain)
        texture = 1 + 0.025 * smooth_noise((side, side), 130, rng)
        colour = np.where((part > 0.5)[..., None], moved(self.colour) * texture[..., None], top)
        return Relief(height, colour, moved(self.gloss) * part * 0.8, part, moved(self.change) > 0.5)

    def _values(self, colour: Colour, height: int, gloss: int) -> tuple[tuple[Image.Image, Colour | int], ...]:
        return (self.colour, colour), (self.height, height), (self.gloss, gloss)
