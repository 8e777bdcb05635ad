"""Defects drawn onto boards in black and white: what they do to the tracks, and where they are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcr2ad.datasets.circuits import CIRCUITS
from dcr2ad.datasets.defects import DEFECT_KINDS, draw_defect
from dcr2ad.datasets.onto import plan_defects
from dcr2ad.errors import ImageError
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.regions import connected
from dcr2ad.types import Sample

CHANGES = {
    "open": (1, 0),
    "short": (-1, 0),
    "mousebite": (0, 0),
    "spur": (0, 0),
    "spurious_copper": (1, 0),
    "pin_hole": (0, 1),
}
"""How many pieces of copper, and of ground, each kind makes more."""


def board(*, inverted: bool = False) -> Image.Image:
    """Four tracks and a pad, none of which touches another or the border."""
    copper = np.zeros((224, 224), dtype=bool)
    for top in (30, 62, 94, 126):
        copper[top : top + 11, 20:204] = True
    copper[150:205, 20:204] = True
    return Image.fromarray(np.where(copper != inverted, 0, 255).astype(np.uint8)).convert("RGB")


def pieces(flags: np.ndarray) -> int:
    """How many connected pieces there are."""
    left, count = flags.copy(), 0
    while left.any():
        row, column = np.argwhere(left)[0]
        left &= ~connected(left, (int(row), int(column)))
        count += 1
    return count


def test_every_kind_is_tested() -> None:
    assert set(CHANGES) == set(CIRCUITS) and not set(CIRCUITS) & set(DEFECT_KINDS)


@pytest.mark.parametrize("kind", CIRCUITS)
def test_a_kind_does_to_the_tracks_what_its_name_says(kind: str) -> None:
    photograph = board()
    before = np.asarray(photograph.convert("L")) < 128
    found = []
    for seed in range(20):
        picture, mask = draw_defect(photograph, kind, seed=seed)
        if not mask.any():
            continue
        after = np.asarray(picture.convert("L")) < 128
        assert ((before != after) == mask).all()
        assert after[mask].all() if kind in {"short", "spur", "spurious_copper"} else not after[mask].any()
        found.append((pieces(after) - pieces(before), pieces(~after) - pieces(~before)))
    assert len(found) >= 4
    assert set(found) == {CHANGES[kind]}


def test_where_there_are_no_black_tracks_on_white_it_is_refused() -> None:
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    for photograph in (grey, board(inverted=True), Image.new("RGB", (64, 64), "white")):
        with pytest.raises(ImageError, match="black tracks on white"):
            draw_defect(photograph, "open", seed=0)


def test_boards_in_black_and_white_get_the_defects_of_circuits(tmp_path: Path) -> None:
    base = KnowledgeBase.builtin()
    board().save(tmp_path / "binary.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "colour.png")

    def kinds(image: str, name: str) -> set[str]:
        sample = Sample(id=image, image=str(tmp_path / image), object=name, dataset="line", is_anomalous=False)
        return {planned.kind for planned in plan_defects([sample], 14, tmp_path, base, seed=0)}

    assert kinds("binary.png", "printed circuit board") == set(CIRCUITS)
    assert kinds("colour.png", "printed circuit board") <= set(DEFECT_KINDS)
    assert kinds("binary.png", "woven cloth") <= set(DEFECT_KINDS)
    assert kinds("absent.png", "printed circuit board") <= set(DEFECT_KINDS), "said where it is drawn onto"
