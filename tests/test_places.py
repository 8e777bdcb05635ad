"""The 3x3 grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcr2ad.places import PLACES, cell_maxima, cell_shares, main_cell, named_cells, neighbours


@given(st.integers(0, 8), st.integers(9, 60), st.integers(9, 60))
def test_a_blob_in_a_cell_is_found_there(cell: int, height: int, width: int) -> None:
    mask = np.zeros((height, width), bool)
    rows, columns = np.array_split(np.arange(height), 3), np.array_split(np.arange(width), 3)
    mask[rows[cell // 3][1], columns[cell % 3][1]] = True
    assert main_cell(mask) == cell
    assert cell_shares(mask)[cell] == 1.0
    assert int(cell_maxima(mask).argmax()) == cell


@pytest.mark.parametrize("cell", range(9))
def test_every_name_names_its_cell(cell: int) -> None:
    assert named_cells(PLACES[cell]) == {cell}


@pytest.mark.parametrize(
    ("phrase", "cells"),
    [
        ("upper left corner", {0}),
        ("the lower right", {8}),
        ("center", {4}),
        ("central area", {4}),
        ("along the top", {0, 1, 2}),
        ("left side", {0, 3, 6}),
        ("bottom middle", {7}),
        ("near the rim", set()),
        ("top and bottom", set()),
        ("left or right", set()),
    ],
)
def test_phrases(phrase: str, cells: set[int]) -> None:
    assert named_cells(phrase) == cells


def test_neighbours_and_empty_masks() -> None:
    assert neighbours(0) == (1, 3, 4) and len(neighbours(4)) == 8
    assert cell_shares(np.zeros((9, 9))).sum() == 0
    with pytest.raises(ValueError, match="empty"):
        main_cell(np.zeros((9, 9)))
