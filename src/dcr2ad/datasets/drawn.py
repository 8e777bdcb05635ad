"""Parts the product draws itself, good and defective, with exact masks: a nut, a board, a blister pack, a gauge and others.

Reads nothing; returns pictures and masks, or writes them in the MVTec layout. A part is a map of heights, colours and
gloss, lit by one lamp; every picture varies pose, light and grain. Knows nothing about knowledge or questions; the names of
defects are labels that knowledge resolves. Not in the paper: these are the examples and tests that need no download.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dcr2ad.datasets.board_part import board
from dcr2ad.datasets.defects import draw_defect
from dcr2ad.datasets.scene import OVER, Pose, Relief, new_pose, photograph, reduced
from dcr2ad.datasets.set_parts import blister, cover_plate, gauge
from dcr2ad.datasets.simple_parts import cap, cloth, nut
from dcr2ad.errors import InputError, UnknownNameError


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
    pose = new_pose(random.Random(f"pose/{kind}/{seed}"))
    painted = defect if defect in part.own else None
    relief = part.paint(size * OVER, pose, painted, random.Random(f"part/{kind}/{seed}"))
    picture = photograph(relief, pose, random.Random(f"camera/{kind}/{seed}"))
    if painted:
        return picture, reduced(relief.change)
    if defect is None:
        return picture, np.zeros((size, size), dtype=bool)
    flat = np.array(pose.light[:2]) / np.hypot(*pose.light[:2])
    # Beside the outline: a bite needs the bench behind it, the other defects must not touch it.
    inside = reduced(relief.part > 0.5)
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


PART_KINDS: dict[str, PartKind] = {
    "metal_nut": PartKind(nut, ("scratch", "pit", "dent", "chip", "dirt")),
    "printed_circuit_board": PartKind(
        board,
        ("missing_component", "missing_pin", "open", "scratch", "foreign_object"),
        ("missing_component", "missing_pin", "open"),
    ),
    "bottle_cap": PartKind(cap, ("crack", "chip", "dirt", "scratch", "discolouration")),
    "woven_cloth": PartKind(cloth, ("hole", "dirt", "foreign_object", "discolouration")),
    "blister_pack": PartKind(blister, ("missing_item", "wrong_item", "dirt", "foreign_object"), ("missing_item", "wrong_item")),
    "pressure_gauge": PartKind(
        gauge, ("out_of_range", "missing_part", "missing_print", "crack"), ("out_of_range", "missing_part", "missing_print")
    ),
    "cover_plate": PartKind(cover_plate, ("missing_fastener", "wrong_item", "scratch"), ("missing_fastener", "wrong_item")),
}
"""What can be drawn; the names are categories of the MVTec layout."""
