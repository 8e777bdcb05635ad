"""One photograph in, a routed diagnosis out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcr2ad.artifacts import read_records
from dcr2ad.datasets.drawn import draw_part
from dcr2ad.errors import ImageError, InputError, RunError, UnknownNameError
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.scripted import ScriptedModel
from dcr2ad.places import PLACES
from dcr2ad.stages.diagnose import Diagnoser, FailedImage, diagnose, diagnose_folder
from dcr2ad.types import Diagnosis, ExpertFindings, KindGuess, Prompt

BASE = KnowledgeBase.builtin()
SCRATCH = next(entry for entry in BASE if entry.title == "Surface scratch")
NORMAL = next(entry for entry in BASE if entry.is_normal)


class StubExpert:
    """Findings that never change: a hot spot at the top right."""

    def inspect(self, image: str | Path, references: Sequence[str | Path]) -> tuple[ExpertFindings, np.ndarray]:
        cells = tuple(5.0 if cell == 2 else 0.5 for cell in range(9))
        findings = ExpertFindings(
            score=5.0,
            raw=0.4,
            threshold=2.0,
            cell=2,
            cells=cells,
            extent=0.01,
            elongation=4.0,
            tone="brighter",
            box=(0.7, 0.1, 0.9, 0.2),
        )
        return findings, np.zeros((12, 12), np.float32)


def model(title: str, letter: str, *, place: int = 2, scores: bool = True, response: str | None = None) -> ScriptedModel:
    """A model that believes one title, gives one letter to the yes/no question, and one place."""

    def text(prompt: Prompt) -> str:
        return "".join(part.text for part in prompt.parts if part.kind == "text")

    def respond(prompt: Prompt) -> str:
        if response is not None:
            return response
        return f" a thin bright line</knowledge><think>It is bright.</think><answer>{letter}</answer>"

    def logprob(prompt: Prompt, option: str) -> float:
        if option.endswith(":"):
            return 0.0 if option == f"{title}:" else -9.0
        wanted = "ABCDEFGHI"[place] if "Where is the defect" in text(prompt) else letter
        return 0.0 if option.strip() == wanted else -2.0

    return ScriptedModel(respond, logprob if scores else None)


@pytest.fixture
def photographs(tmp_path: Path) -> tuple[Path, Path]:
    for name, defect in (("good", None), ("bad", "scratch")):
        draw_part("metal_nut", defect, 3, 128)[0].save(tmp_path / f"{name}.png")
    return tmp_path / "bad.png", tmp_path / "good.png"


def diagnoser(which: ScriptedModel, context: str = "routed", *, expert: bool = True) -> Diagnoser:
    return Diagnoser(which, BASE, StubExpert() if expert else None, context)  # type: ignore[arg-type]


def test_a_defect_is_told_with_what_it_rests_on(photographs: tuple[Path, Path]) -> None:
    bad, good = photographs
    made = diagnose(diagnoser(model("Surface scratch", "A")), bad, [good], object_name="metal nut")
    assert made.verdict == "anomalous"
    # Two spellings of each letter: (1 + 1) e^0 against (1 + 1) e^-2.
    assert made.probability == pytest.approx(1 / (1 + np.exp(-2)))
    assert made.knowledge is not None and made.knowledge.key == SCRATCH.key
    assert made.runners_up and all(r.key != SCRATCH.key for r in made.runners_up)
    assert made.location == PLACES[2] and made.defect_type == "Surface scratch"
    assert made.reasoning == "It is bright." and made.effect == SCRATCH.effect
    assert made.expert is not None and made.expert_map is not None
    assert made.sources["expert"] == "visual expert" and made.sources["effect"] == "knowledge base"
    assert "visual expert" in made.description and not made.notes


def test_where_the_router_abstains_the_experts_clear_kind_is_the_type(
    photographs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcr2ad.routing.ABSTAIN_BELOW", 0.99)

    class Sure(StubExpert):
        probability = 0.9

        def inspect(self, image: str | Path, references: Sequence[str | Path]) -> tuple[ExpertFindings, np.ndarray]:
            findings, anomaly = super().inspect(image, references)
            dent = BASE.get("General.surface.dent")
            shares = ((SCRATCH, self.probability), (dent, 1 - self.probability))
            kinds = tuple(KindGuess(key=entry.key, title=entry.title, probability=share) for entry, share in shares)
            return findings.model_copy(update={"kinds": kinds}), anomaly

    unsure = model("no title at all", "A")
    made = diagnose(Diagnoser(unsure, BASE, Sure(), "routed"), photographs[0], [photographs[1]])  # type: ignore[arg-type]
    assert made.routing is not None and made.routing.abstained and made.knowledge is None
    assert made.defect_type == SCRATCH.title and made.sources["defect_type"] == "visual expert"
    assert made.effect == SCRATCH.effect and made.sources["effect"] == "knowledge base"
    assert made.sources["knowledge"] == "model and visual expert"
    Sure.probability = 0.6
    vague = diagnose(Diagnoser(unsure, BASE, Sure(), "routed"), photographs[0], [photographs[1]])  # type: ignore[arg-type]
    assert vague.defect_type is None and vague.effect == ""


def test_the_place_is_the_one_the_reasoning_names(photographs: tuple[Path, Path]) -> None:
    said = " a line</knowledge><think>The mark lies at the bottom left.</think><answer>A</answer>"
    made = diagnose(diagnoser(model("Surface scratch", "A", response=said)), photographs[0], [photographs[1]])
    assert made.location == "bottom left"


def test_a_good_part_has_no_place_and_no_type(photographs: tuple[Path, Path]) -> None:
    made = diagnose(diagnoser(model(NORMAL.title, "B")), photographs[0], [photographs[1]])
    assert made.verdict == "normal" and made.probability < 0.5
    assert made.location is None and made.defect_type is None and made.effect == ""


def test_a_verdict_against_its_own_entry_is_said(photographs: tuple[Path, Path]) -> None:
    made = diagnose(diagnoser(model(NORMAL.title, "A")), photographs[0], [photographs[1]])
    assert made.verdict == "anomalous" and made.defect_type is not None
    assert any("normal state" in note for note in made.notes)


@pytest.mark.parametrize("context", ["none", "category", f"oracle:{SCRATCH.key}"])
def test_contexts(photographs: tuple[Path, Path], context: str) -> None:
    made = diagnose(
        diagnoser(model("Surface scratch", "A"), context), photographs[0], [photographs[1]], object_name="metal nut"
    )
    assert made.context == context
    if context.startswith("oracle"):
        assert made.knowledge is not None and made.knowledge.probability == 1.0
    if context == "none":
        assert made.knowledge is None and made.runners_up == ()


def test_without_expert_or_reference(photographs: tuple[Path, Path]) -> None:
    bad, good = photographs
    off = diagnose(diagnoser(model("Surface scratch", "A"), expert=False), bad, [good])
    assert off.expert is None and off.expert_map is None and "expert" not in off.sources and not off.notes
    alone = diagnose(diagnoser(model("Surface scratch", "A")), bad)
    assert alone.expert is None and any("No reference" in note for note in alone.notes)


@pytest.mark.parametrize(("references", "own"), [(1, False), (4, False), (5, True), (7, True)])
def test_five_references_set_the_experts_limit_and_the_model_is_shown_one(
    photographs: tuple[Path, Path], references: int, own: bool
) -> None:
    class WithLimits(StubExpert):
        limit, asked = 3.67, None

        def own_limit(self, paths: Sequence[str], share: float) -> float:
            WithLimits.asked = (len(paths), share)
            return 1.25

        def with_limit(self, limit: float) -> WithLimits:
            other = WithLimits()
            other.limit = limit
            return other

        def inspect(self, image: str | Path, references: Sequence[str | Path]) -> tuple[ExpertFindings, np.ndarray]:
            findings, anomaly = super().inspect(image, references)
            return findings.model_copy(update={"threshold": self.limit, "extent": len(references) / 100}), anomaly

    shown: list[int] = []

    def respond(prompt: Prompt) -> str:
        shown.append(sum(part.kind == "image" for part in prompt.parts))
        return " a line</knowledge><think>It is bright.</think><answer>A</answer>"

    asks = Diagnoser(ScriptedModel(respond, None), BASE, WithLimits(), "none", alarms=0.1)  # type: ignore[arg-type]
    made = diagnose(asks, photographs[0], [photographs[1]] * references)
    assert made.expert is not None and made.expert.extent == references / 100, "the expert sees all references"
    assert len(made.references) == references and set(shown) == {2}, "the model is shown the part and one of them"
    assert made.expert.threshold == (1.25 if own else 3.67)
    assert WithLimits.asked == ((references, 0.9) if own else None)
    assert any("set from the" in note and "1.2" in note and "3.7" in note for note in made.notes) == own


def test_a_reference_of_another_size_is_noted(photographs: tuple[Path, Path], tmp_path: Path) -> None:
    Image.open(photographs[1]).resize((90, 70)).save(tmp_path / "small.png")
    made = diagnose(diagnoser(model("Surface scratch", "A")), photographs[0], [tmp_path / "small.png"])
    assert any("90x70" in note and "128x128" in note for note in made.notes)


def test_an_unreadable_response_is_said_and_the_letter_read_alone(photographs: tuple[Path, Path]) -> None:
    garbled = model("Surface scratch", "A", response=" blah blah")
    made = diagnose(diagnoser(garbled), photographs[0], [photographs[1]])
    assert made.verdict == "anomalous" and "blah" in made.response
    assert any("could not be read" in note for note in made.notes)
    silent = model("Surface scratch", "A", scores=False, response=" blah blah")
    with pytest.raises(InputError, match="no answer"):
        diagnose(diagnoser(silent, "none"), photographs[0], [photographs[1]])


def test_a_users_own_question(photographs: tuple[Path, Path]) -> None:
    bad, good = photographs
    asked = diagnose(diagnoser(model("Surface scratch", "B")), bad, [good], question="Which side?", options=["left", "right"])
    assert asked.answer == "right" and asked.answer_probabilities is not None
    free = diagnose(diagnoser(model("Surface scratch", "A", response="On the left.")), bad, [good], question="Which side?")
    assert free.answer == "On the left." and free.answer_probabilities is None
    with pytest.raises(InputError, match="options need a question"):
        diagnose(diagnoser(model("Surface scratch", "A")), bad, [good], options=["left", "right"])


@pytest.mark.parametrize("context", ["all", "oracle", "oracle:", "none:x", "oracle:General.none.none"])
def test_unknown_contexts_and_keys_are_refused(context: str) -> None:
    with pytest.raises(UnknownNameError):
        diagnoser(model("x", "A"), context)


def test_bad_photographs_are_refused(photographs: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    for image, reference in ((tmp_path / "text.png", photographs[1]), (photographs[0], tmp_path / "text.png")):
        with pytest.raises(ImageError, match=r"text\.png"):
            diagnose(diagnoser(model("Surface scratch", "A")), image, [reference])


def test_a_folder_continues_after_a_stop_and_bad_files_do_not_end_it(photographs: tuple[Path, Path], tmp_path: Path) -> None:
    bad, good = photographs
    folder = tmp_path / "parts"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.png").write_bytes(bad.read_bytes())
    (folder / "2.png").write_bytes(b"broken")
    images = sorted(folder.iterdir())
    which = diagnoser(model("Surface scratch", "A"))

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        diagnose_folder(which, images, [good], tmp_path / "out", progress=stop)
    assert len(list(read_records(tmp_path / "out" / "diagnoses.jsonl", Diagnosis))) == 2
    made, failed = diagnose_folder(which, images, [good], tmp_path / "out")
    assert [Path(d.image).name for d in made] == ["0.png", "1.png", "3.png"]
    assert [Path(f.image).name for f in failed] == ["2.png"] and "2.png" in failed[0].error
    assert len(list(read_records(tmp_path / "out" / "failed.jsonl", FailedImage))) == 1
    with pytest.raises(RunError, match="context"):
        diagnose_folder(diagnoser(model("Surface scratch", "A"), "none"), images, [good], tmp_path / "out")
