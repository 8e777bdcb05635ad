"""Which answers the visual expert's findings carry, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcr2ad.evidence import unsupported
from dcr2ad.geometry import sample_geometry
from dcr2ad.types import ExpertFindings, KindGuess, Question, Sample, Subtask

CRACK, PIT = "General.ceramic.crack", "General.surface.pit"


def _findings(score: float = 5.0, cell: int = 0, kinds: tuple[str, ...] = (), **more: float) -> ExpertFindings:
    return ExpertFindings(
        score=score,
        raw=0.2,
        threshold=3.7,
        cell=cell,
        cells=tuple(float(number == cell) for number in range(9)),
        extent=more.get("extent", 0.04),
        elongation=more.get("elongation", 1.0),
        tone="darker",
        box=(0.0, 0.0, 0.2, 0.2),
        kinds=tuple(KindGuess(key=key, title=key, probability=0.3) for key in kinds),
    )


@pytest.fixture
def mask(tmp_path: Path) -> str:
    """A square of 4 % of the picture, compact, at the top left."""
    drawn = np.zeros((100, 100), dtype=np.uint8)
    drawn[5:25, 5:25] = 255
    Image.fromarray(drawn).save(tmp_path / "mask.png")
    return str(tmp_path / "mask.png")


def _question(
    subtask: Subtask, findings: ExpertFindings | None, mask: str | None, *, verified: str = "entry", good: bool = False
) -> Question:
    sample = Sample(
        id="tile",
        image="tile.png",
        references=("good.png",),
        masks=(mask,) if mask and not good else (),
        dataset="mtd",
        object="magnetic tile",
        defect=None if good else "crack",
        is_anomalous=not good,
        right_key="General.ceramic.normal" if good else CRACK,
        expert=findings,
    )
    provenance = {"verified": verified}
    return Question(id="q", sample=sample, subtask=subtask, text="?", options=("a", "b"), answer=0, provenance=provenance)


def _why(question: Question) -> str:
    return unsupported(question, sample_geometry(question.sample))


def test_without_findings_nothing_is_gone_against(mask: str) -> None:
    assert all(_why(_question(subtask, None, mask)) == "" for subtask in Subtask)


def test_the_verdict_must_agree_where_it_is_asked_for(mask: str) -> None:
    below, above = _findings(score=2.0), _findings(score=5.0)
    assert "verdict" in _why(_question(Subtask.DETECTION, below, mask))
    assert _why(_question(Subtask.DETECTION, above, mask)) == ""
    assert "verdict" in _why(_question(Subtask.DETECTION, above, None, good=True))
    assert _why(_question(Subtask.DETECTION, below, None, good=True)) == ""
    assert _why(_question(Subtask.ANALYSIS, below, mask)) == ""  # the question itself says that there is a defect
    assert _why(_question(Subtask.OBJECT_CLASSIFICATION, above, None, good=True)) == ""


@pytest.mark.parametrize("subtask", [s for s in Subtask if not s.value.startswith("Object")])
def test_the_mark_must_be_where_the_expert_is_hottest(mask: str, subtask: Subtask) -> None:
    assert _why(_question(subtask, _findings(cell=0), mask)) == ""
    assert "place" in _why(_question(subtask, _findings(cell=8), mask))
    assert _why(_question(subtask, _findings(cell=8), None)) == ""  # no mask says where it is


def test_the_right_kind_must_be_among_those_told(mask: str) -> None:
    assert _why(_question(Subtask.CLASSIFICATION, _findings(kinds=(PIT, CRACK)), mask)) == ""
    assert "kind" in _why(_question(Subtask.CLASSIFICATION, _findings(kinds=(PIT,)), mask))
    assert "kind" in _why(_question(Subtask.CLASSIFICATION, _findings(kinds=(PIT, "a", "b", CRACK)), mask))  # three are told
    assert _why(_question(Subtask.CLASSIFICATION, _findings(), mask)) == ""


def test_size_and_shape_count_where_an_option_states_them(mask: str) -> None:
    for changed in (_findings(extent=0.001), _findings(elongation=5.0)):
        assert "size or shape" in _why(_question(Subtask.DESCRIPTION, changed, mask, verified="mask"))
        assert _why(_question(Subtask.DESCRIPTION, changed, mask, verified="entry")) == ""
    assert _why(_question(Subtask.DESCRIPTION, _findings(), mask, verified="mask")) == ""


def test_of_places_offered_the_first_one_told_must_be_right(mask: str) -> None:
    """The mask lies at the top left; the findings tell two places."""

    def why(hottest: int, second: int, *options: str) -> str:
        cells = tuple(2.0 if cell == hottest else 1.0 if cell == second else 0.0 for cell in range(9))
        findings = _findings(cell=hottest).model_copy(update={"cells": cells})
        question = _question(Subtask.LOCALIZATION, findings, mask)
        return _why(question.model_copy(update={"options": options, "answer": options.index("top left")}))

    assert why(0, 4, "centre", "top left") == ""
    assert why(4, 0, "bottom right", "top left") == "", "the hottest is not offered, the next one is right"
    assert "place" in why(4, 0, "centre", "top left")
    assert "place" in why(4, 8, "top right", "top left"), "neither place told is offered"


def test_of_kinds_offered_the_first_one_told_must_be_right(mask: str) -> None:
    def why(*told: str, keys: str) -> str:
        question = _question(Subtask.ANALYSIS, _findings(kinds=told), mask)
        return _why(question.model_copy(update={"provenance": {"verified": "entry", "keys": keys}}))

    assert why(CRACK, PIT, keys=f"{CRACK} {PIT}") == ""
    assert why("a", CRACK, PIT, keys=f"{CRACK} {PIT}") == "", "the kind told before is not offered"
    assert "told first" in why(PIT, CRACK, keys=f"{CRACK} {PIT}")
    assert "not among" in why(PIT, "a", keys=f"{CRACK} {PIT}")
