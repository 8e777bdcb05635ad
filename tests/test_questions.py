"""Questions: one right option, checked against mask and knowledge, and nothing in letter or text that tells which."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dcr2ad.balance import OptionBalance
from dcr2ad.datasets.folder import read_folder, with_knowledge
from dcr2ad.errors import ImageError
from dcr2ad.geometry import mask_geometry, sample_geometry
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.places import PLACES, cell_shares
from dcr2ad.questions import CLEAR_SHARE, MAIN_SHARE, QuestionMaker
from dcr2ad.rivals import answer_under
from dcr2ad.types import Question, Sample, Subtask
from dcr2ad.wordings import BENCHMARK_WORDING, INSTRUCT_WORDING, QuestionWording

REAL_MINI = Path(__file__).parents[2] / "shared" / "data" / "real-mini"
needs_real_mini = pytest.mark.skipif(not REAL_MINI.is_dir(), reason=f"the shared photographs are not at {REAL_MINI}")

KINDS = ("scratch", "pit", "dirt", "chip", "hole")


@pytest.fixture(scope="module")
def base() -> KnowledgeBase:
    return KnowledgeBase.builtin()


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory, base: KnowledgeBase) -> list[Sample]:
    """160 samples of four objects, half good, with masks of random place, size and shape; no picture is needed."""
    folder, rng = tmp_path_factory.mktemp("masks"), random.Random(0)
    made = []
    for index in range(160):
        bad, masks = index % 2 == 1, ()
        if bad:
            mask = np.zeros((90, 90), dtype=np.uint8)
            h, w = rng.choice(((3, 24), (20, 4), (8, 8), (16, 16)))
            y, x = rng.randrange(90 - h), rng.randrange(90 - w)
            mask[y : y + h, x : x + w] = 255
            mask[y, x] = 0  # so that it is an outline and no box
            path = folder / f"{index}.png"
            Image.fromarray(mask).save(path)
            masks = (str(path),)
        made.append(
            Sample(
                id=f"s{index}",
                image=f"{index}.png",
                masks=masks,
                dataset="made",
                object=("metal nut", "bottle cap", "cookie", "printed circuit board")[index // 2 % 4],
                defect=KINDS[index // 2 % 5] if bad else None,
                is_anomalous=bad,
            )
        )
    return list(with_knowledge(made, base))


def _all(base: KnowledgeBase, samples: list[Sample], **how: object) -> Iterator[Question]:
    maker = QuestionMaker(base, samples, **how)  # type: ignore[arg-type]
    for sample in samples:
        yield from maker.make(sample)[0]


@pytest.mark.parametrize("wording", [INSTRUCT_WORDING, BENCHMARK_WORDING])
def test_every_subtask_is_asked_with_distinct_options_and_the_seed_decides(
    base: KnowledgeBase, samples: list[Sample], wording: QuestionWording
) -> None:
    questions = list(_all(base, samples, seed=1, wording=wording))
    assert {q.subtask for q in questions} == set(Subtask)
    for question in questions:
        assert len({option.casefold() for option in question.options}) == len(question.options)
        assert question.options[question.answer] and "{" not in question.text and "[object]" not in str(question.options)
    assert len({q.id for q in questions}) == len(questions)
    assert questions == list(_all(base, samples, seed=1, wording=wording))
    assert questions != list(_all(base, samples, seed=2, wording=wording))


def test_every_letter_is_right_equally_often(base: KnowledgeBase, samples: list[Sample]) -> None:
    used: dict[tuple[Subtask, int, bool], Counter[int]] = {}
    for question in _all(base, samples):
        key = (question.subtask, len(question.options), question.sample.is_anomalous)
        used.setdefault(key, Counter()).update([question.answer])
    for key, counts in used.items():
        per_letter = [counts[i] for i in range(key[1])]
        assert max(per_letter) - min(per_letter) <= 1, (key, per_letter)


def test_right_options_say_what_mask_label_and_entry_say(base: KnowledgeBase, samples: list[Sample]) -> None:
    for question in _all(base, samples):
        right, sample = question.options[question.answer], question.sample
        if question.subtask is Subtask.DETECTION:
            template = next(t for t in INSTRUCT_WORDING.detection if t[0].format(object=sample.object) == question.text)
            assert right == (template[1] if sample.is_anomalous else template[2])
        if question.subtask is Subtask.CLASSIFICATION:
            assert sample.right_key and right == base.get(sample.right_key).title
        if question.subtask is Subtask.LOCALIZATION:
            geometry = sample_geometry(sample)
            assert geometry is not None and geometry.shares[PLACES.index(right)] >= MAIN_SHARE
            wrong = [PLACES.index(option) for option in question.options if option != right]
            assert all(geometry.shares[cell] <= CLEAR_SHARE for cell in wrong)
        if question.subtask is Subtask.OBJECT_CLASSIFICATION:
            assert right.lower() == sample.object
        keys = question.provenance.get("keys")
        if keys:
            assert keys.split()[question.answer] == sample.right_key and len(keys.split()) == len(question.options)


def test_no_wrong_option_could_be_called_right_as_well(base: KnowledgeBase) -> None:
    cracked = [
        Sample(id=f"c{i}", image="x", dataset="cookies", object="cookie", defect="cracked", is_anomalous=True)
        for i in range(30)
    ]
    keyed = list(with_knowledge(cracked, base))
    asked = [q for q in _all(base, keyed) if q.subtask is Subtask.CLASSIFICATION]
    assert len(asked) == 30
    for question in asked:
        wrong = [option for option in question.options if option != question.options[question.answer]]
        assert not any("crack" in option.lower() for option in wrong), question.options


def test_spread_masks_missing_masks_and_unknown_labels_are_rejected_with_a_reason(base: KnowledgeBase, tmp_path: Path) -> None:
    mask = np.zeros((90, 90), dtype=np.uint8)
    mask[10:14, 5:85] = 255
    Image.fromarray(mask).save(tmp_path / "wide.png")
    Image.new("L", (90, 90)).save(tmp_path / "empty.png")
    common = {"image": "x", "dataset": "d", "object": "tile", "is_anomalous": True}
    wide = Sample(
        id="wide", defect="scratch", masks=(str(tmp_path / "wide.png"),), right_key="General.surface.scratch", **common
    )
    empty = Sample(id="empty", defect="zork", masks=(str(tmp_path / "empty.png"),), **common)
    bare = Sample(id="bare", defect="bad", right_key="General.general.unknown_kind", **common)
    maker = QuestionMaker(base, [wide, empty, bare])
    reasons = {(r.sample, r.subtask): r.reason for s in (wide, empty, bare) for r in maker.make(s)[1]}
    assert reasons["wide", Subtask.LOCALIZATION] == "the defect spreads over several places"
    assert reasons["empty", Subtask.LOCALIZATION] == "the mask is empty"
    assert reasons["empty", Subtask.CLASSIFICATION] == "the label leads to no knowledge entry"
    assert reasons["bare", Subtask.LOCALIZATION] == "no mask to check a place against"
    assert reasons["bare", Subtask.CLASSIFICATION] == "the label names no kind of defect"
    broken = wide.model_copy(update={"masks": (str(tmp_path / "none.png"),)})
    with pytest.raises(ImageError):
        maker.make(broken)


def test_benchmark_wording_is_held_out() -> None:
    def templates(wording: QuestionWording) -> set[str]:
        texts = [t[0] for t in wording.detection]
        for name in (
            "classification",
            "localization",
            "description",
            "effect",
            "cause",
            "object_classification",
            "object_analysis",
        ):
            texts += getattr(wording, name)
        assert len(texts) == len(set(texts))
        return set(texts)

    assert not templates(INSTRUCT_WORDING) & templates(BENCHMARK_WORDING)


def test_options_are_wrong_about_three_times_as_often_as_right(base: KnowledgeBase, samples: list[Sample]) -> None:
    right: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for question in _all(base, samples):
        if question.subtask is Subtask.CLASSIFICATION:
            right[question.options[question.answer]] += 1
            wrong.update(o for i, o in enumerate(question.options) if i != question.answer)
    assert len(right) == len(KINDS)
    for title, count in right.items():
        assert 0.15 <= count / (count + wrong[title]) <= 0.4, (title, count, wrong[title])


def test_the_balance_follows_from_the_questions_alone(base: KnowledgeBase, samples: list[Sample]) -> None:
    whole = list(_all(base, samples))
    head = [q for q in whole if q.sample in samples[:70]]
    maker = QuestionMaker(base, samples)
    for question in head:
        maker.balance.count(question)
    assert head + [q for s in samples[70:] for q in maker.make(s)[0]] == whole


def test_answer_under_an_entry(base: KnowledgeBase, samples: list[Sample]) -> None:
    scratch, normal = base.get("General.surface.scratch"), base.get("General.surface.normal")
    seen = set()
    for question in _all(base, samples):
        sample = question.sample
        right = base.get(sample.right_key) if sample.right_key else None
        if right is not None:
            assert answer_under(right, question) == question.answer
        if question.subtask is Subtask.DETECTION:
            assert (answer_under(normal, question) == question.answer) != sample.is_anomalous
            assert (answer_under(scratch, question) == question.answer) == sample.is_anomalous
        if question.subtask is Subtask.LOCALIZATION:
            assert answer_under(scratch, question) == question.answer and answer_under(normal, question) is None
        if question.subtask is Subtask.CLASSIFICATION:
            expected = question.options.index(scratch.title) if scratch.title in question.options else None
            assert answer_under(scratch, question) == expected
        if question.subtask is Subtask.OBJECT_CLASSIFICATION:
            food = base.get("General.food.normal")
            assert answer_under(food, question) == question.options.index("Cookie")
            assert answer_under(scratch, question) is None
        seen.add(question.subtask)
    assert seen == set(Subtask)


def test_a_normal_state_leads_to_the_only_object_of_its_material(base: KnowledgeBase, samples: list[Sample]) -> None:
    question = next(q for q in _all(base, samples) if q.subtask is Subtask.OBJECT_CLASSIFICATION)
    asked = question.model_copy(update={"options": ("Cookie", "Ball screw", "Commutator", "Magnetic tile"), "answer": 0})
    assert answer_under(base.get("General.food.normal"), asked) == 0
    assert answer_under(base.get("General.ceramic.normal"), asked) == 3
    assert answer_under(base.get("General.metal.normal"), asked) is None, "of the screw and the commutator"
    assert answer_under(base.get("General.textile.normal"), asked) is None
    own = asked.model_copy(update={"options": ("Gear wheel", "Ball screw", "Commutator", "Magnetic tile"), "answer": 1})
    assert answer_under(base.get("General.metal.normal"), own) == 1, "one's own material holds for one's own part"


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(3, 60),
    columns=st.integers(3, 60),
    box=st.tuples(st.floats(0, 0.9), st.floats(0, 0.9), st.floats(0.02, 1), st.floats(0.02, 1)),
)
def test_geometry_of_any_box(rows: int, columns: int, box: tuple[float, float, float, float]) -> None:
    mask = np.zeros((rows, columns), dtype=bool)
    y, x = int(box[0] * rows), int(box[1] * columns)
    mask[y : y + max(1, int(box[2] * rows)), x : x + max(1, int(box[3] * columns))] = True
    geometry = mask_geometry(mask)
    assert geometry.extent == pytest.approx(mask.mean()) and geometry.elongation >= 1 - 1e-9 and not geometry.is_outline
    assert geometry.cell == int(cell_shares(mask).argmax())


def test_geometry_tells_lines_from_spots_and_one_region_from_two() -> None:
    line, spot, two = (np.zeros((100, 100), dtype=bool) for _ in range(3))
    np.fill_diagonal(line, True)
    rows, columns = np.indices(spot.shape)
    spot[np.hypot(rows - 50, columns - 50) < 9] = True
    two[np.hypot(rows - 20, columns - 20) < 6] = True
    two[np.hypot(rows - 80, columns - 80) < 6] = True
    assert mask_geometry(line).elongation > 20 and mask_geometry(line).is_outline
    assert mask_geometry(spot).elongation == pytest.approx(1, abs=0.05) and mask_geometry(spot).is_outline
    assert not mask_geometry(two).is_outline
    with pytest.raises(ValueError, match="empty"):
        mask_geometry(np.zeros((5, 5), dtype=bool))


@given(st.integers(2, 9), st.integers(0, 99))
def test_places_for_right_options_go_round(n: int, seed: int) -> None:
    balance, rng, used = OptionBalance(), random.Random(seed), Counter[int]()
    sample = Sample(id="s", image="x", dataset="d", object="o", is_anomalous=False)
    for _ in range(3 * n):
        place = balance.place(Subtask.DETECTION, n, False, rng)
        options = tuple(str(i) for i in range(n))
        balance.count(Question(id="q", sample=sample, subtask=Subtask.DETECTION, text="?", options=options, answer=place))
        used[place] += 1
    assert set(used.values()) == {3}


@needs_real_mini
def test_real_mini_gives_every_subtask_and_drops_only_with_known_reasons(base: KnowledgeBase) -> None:
    samples = list(with_knowledge(read_folder(REAL_MINI, split="dev", parts=("test",)), base))
    random.Random(0).shuffle(samples)
    maker = QuestionMaker(base, samples)
    questions, reasons = Counter[Subtask](), Counter[str]()
    for sample in samples:
        made, dropped = maker.make(sample)
        questions.update(q.subtask for q in made)
        reasons.update(r.reason for r in dropped)
    assert set(questions) == set(Subtask)
    assert set(reasons) <= {
        "no mask to check a place against",
        "the defect spreads over several places",
        "its answer would be right too often",
    }
    defective = sum(s.is_anomalous for s in samples)
    assert 0.9 * defective < questions[Subtask.CLASSIFICATION] <= defective


def test_hard_questions_offer_what_the_object_can_have(base: KnowledgeBase) -> None:
    """Otherwise the object's name rules most options out, and a reader learns the object instead of the defect."""
    kinds = {
        ("mtd", "magnetic tile"): ("crack", "blowhole", "break", "fray", "uneven"),
        ("deeppcb", "printed circuit board"): ("open", "short", "mousebite", "spur", "spurious_copper"),
    }
    made = [
        Sample(id=f"{name}{kind}{n}", image="x", dataset=dataset, object=name, defect=kind, is_anomalous=True)
        for (dataset, name), own in kinds.items()
        for kind in own
        for n in range(6)
    ]
    samples = list(with_knowledge(made, base))
    own_keys: dict[str, set[str]] = {}
    for sample in samples:
        own_keys.setdefault(sample.object, set()).add(str(sample.right_key))

    def share(**how: object) -> float:
        of_object = [
            key in own_keys[question.sample.object]
            for question in _all(base, samples, seed=3, **how)
            if question.subtask in {Subtask.CLASSIFICATION, Subtask.ANALYSIS}
            for place, key in enumerate(question.provenance["keys"].split())
            if place != question.answer
        ]
        return sum(of_object) / len(of_object)

    easy, mixed, hard = share(), share(hard_share=0.5), share(hard_share=1.0)
    assert easy + 0.1 < mixed < hard - 0.1
    few = [sample for sample in samples if sample.defect in {"crack", "blowhole", "spur"}]
    assert list(_all(base, few, hard_share=1.0)) == list(_all(base, few))  # too few kinds of their own
    assert hard > 0.85  # not all: a cause or effect that two kinds of the object share is no wrong option
    of_data = set().union(*own_keys.values())
    offered = [q for q in _all(base, samples, seed=3, hard_share=1.0) if q.provenance.get("keys")]
    # A kind that is right nowhere in the data would be known for wrong.
    assert {key for question in offered for key in question.provenance["keys"].split()} <= of_data
    names = [set(question.options) for question in offered if question.subtask is Subtask.CLASSIFICATION]
    assert any({"Open circuit", "Short circuit"} <= options for options in names)
