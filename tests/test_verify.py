"""Planted false statements of place, size and number are all caught, and true ones stand."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcr2ad.artifacts import read_records
from dcr2ad.config import InstructSettings
from dcr2ad.datasets.drawn import write_drawn
from dcr2ad.geometry import Geometry, mask_geometry, sample_geometry
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.prompts import size_word
from dcr2ad.questions import Rejected
from dcr2ad.stages import instruct
from dcr2ad.statements import at_place
from dcr2ad.teacher import BuiltinTeacher
from dcr2ad.types import KnowledgeEntry, Question, Trajectory
from dcr2ad.verify import false_statements

SENTENCES = (
    "The mark lies {place}, dark and thin.",
    "A scratch is visible {place}; it is unlike the grain around it.",
    "Beside a good nut, the mark {place} does not belong there.",
    "The expert scores 9.1, hottest at the middle left, yet the mark lies {place}.",
)


def _spot(*centres: tuple[float, float], side: int = 90, radius: float = 5) -> Geometry:
    rows, columns = np.indices((side, side))
    mask = np.zeros((side, side), dtype=bool)
    for y, x in centres:
        mask |= np.hypot(rows - y * side, columns - x * side) < radius
    return mask_geometry(mask)


def test_every_planted_false_place_is_caught_and_every_true_one_stands() -> None:
    planted = caught = stood = 0
    for cell in range(9):
        geometry = _spot(((cell // 3 + 0.5) / 3, (cell % 3 + 0.5) / 3))
        for told in range(9):
            for sentence in SENTENCES:
                found = false_statements(sentence.format(place=at_place(told)), geometry)
                if told == cell:
                    stood += not found
                else:
                    planted += 1
                    caught += bool(found)
    assert planted == 9 * 8 * len(SENTENCES)
    assert caught == planted and stood == 9 * len(SENTENCES)


@pytest.mark.parametrize(
    "text",
    [
        "It is in the upper left.",
        "On the left side a crack runs down.",
        "The top-left corner is worn.",
        "A dent at the top, beside the hole.",
        "The damage sits near the rim.",
        "The left edge is chipped.",
        "It sits on the left.",
        "A small dark spot in the upper left corner.",
        "There is one defect.",
    ],
)
def test_what_is_true_of_a_spot_at_the_top_left_is_false_of_one_at_the_lower_right_centre(text: str) -> None:
    assert false_statements(text, _spot((0.12, 0.12))) == []
    if "one defect" not in text:
        assert false_statements(text, _spot((0.6, 0.62), radius=6)) != []


def test_several_defects_and_defects_across_cells() -> None:
    two = _spot((0.15, 0.15), (0.85, 0.85))
    assert two.regions == (2, 2)
    assert false_statements("Two spots, at the top left and at the bottom right.", two) == []
    assert false_statements("A spot at the top left and another at the top right.", two)
    assert false_statements("There is a single spot.", two) and false_statements("Three spots are visible.", two)
    across = _spot((0.5, 1 / 3), radius=8)  # half in the middle left, half in the centre
    for place in ("in the centre", "at the middle left", "on the left side"):
        assert false_statements(f"The mark lies {place}.", across) == []
    assert false_statements("The mark lies at the middle right.", across)
    unequal = mask_geometry(_blocks((2, 2, 30), (70, 70, 6)))  # a small second defect may be named beside the first
    assert false_statements("Stains at the top left and at the bottom right.", unequal) == []
    assert false_statements("A stain at the bottom right.", unequal)  # but not alone


def _blocks(*blocks: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros((90, 90), dtype=bool)
    for y, x, side in blocks:
        mask[y : y + side, x : x + side] = True
    return mask


def test_sizes_within_the_slack_stand() -> None:
    spot = _spot((0.5, 0.5), radius=8)  # 2.5 % of the picture: small
    assert size_word(spot.extent) == "small"
    for text, wrong in (
        ("A small spot.", False),
        ("A medium mark.", False),
        ("A tiny mark.", True),
        ("A large, dark stain.", True),
    ):
        assert bool(false_statements(text, spot)) == wrong, text


def test_quotes_denials_and_words_that_only_look_like_statements() -> None:
    spot = _spot((0.15, 0.15))
    for text in (
        'It fits "large dark stain at the bottom".',
        "Nothing differs at the bottom right.",
        "The expert is hottest at the bottom right.",
        "That is the right option.",
        "Two features fit the entry.",
        "The machine left a mark.",
        "It is top of the list.",
    ):
        assert false_statements(text, spot) == [], text


def test_the_rim_is_the_parts_where_its_outline_is_known() -> None:
    foreground = np.zeros((90, 90), dtype=bool)
    foreground[30:60, 30:60] = True
    spot = _spot((0.38, 0.5), radius=3)
    assert false_statements("A chip near the rim.", spot)
    assert false_statements("A chip near the rim.", spot, foreground) == []


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_number_of_regions_is_never_below_the_closed_and_never_above_the_open_count(seed: int) -> None:
    rng = random.Random(seed)
    geometry = _spot(*[(rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9)) for _ in range(rng.randint(1, 5))], radius=4)
    assert 1 <= geometry.regions[0] <= geometry.regions[1] <= 5
    assert all(sum(part) == pytest.approx(1) for part in geometry.parts)


class _Liar(BuiltinTeacher):
    """Writes a false place: always, or in its first response only."""

    learns = False

    def write(self, question: Question, entry: KnowledgeEntry | None, *, attempt: int = 0) -> Trajectory:
        told = super().write(question, entry, attempt=attempt)
        if self.learns and attempt:
            return told
        geometry = sample_geometry(question.sample)
        if geometry is None:
            return told
        cell = min(range(9), key=lambda cell: geometry.shares[cell])
        return told.model_copy(update={"reasoning": f"{told.reasoning} The mark lies {at_place(cell)}."})


class _LearningLiar(_Liar):
    learns = True


@pytest.mark.parametrize("teacher", [_Liar, _LearningLiar])
def test_instruct_regenerates_then_drops_and_counts(
    teacher: type[_Liar], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_drawn(tmp_path / "drawn", 2, seed=1, size=64)
    monkeypatch.setattr(instruct, "open_teacher", lambda spec, seed: teacher(seed))
    config = InstructSettings(expert=False, split="", direct_share=0.0)
    out = tmp_path / "out"
    summary = instruct.build_instructions(tmp_path / "drawn", out, KnowledgeBase.builtin(), config, seed=0)
    kept = [q for q in read_records(out / "questions.jsonl", Question) if q.sample.is_anomalous]
    dropped = [r for r in read_records(out / "rejected.jsonl", Rejected) if r.reason.startswith("the response cannot stand")]
    if teacher is _Liar:
        assert not kept and summary.rejected["the response cannot stand"] == len(dropped) > 20
        assert all("place" in item.reason for item in dropped)
    else:
        # A cue may speak of an edge, which without the part's outline is taken for the picture's.
        assert len(dropped) <= 0.02 * len(kept) and all("edge" in item.reason for item in dropped)
        assert kept and summary.rewritten == len(kept) == sum("tries" in q.provenance for q in kept)
