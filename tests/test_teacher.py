"""The built-in teacher: short, parsable, true to what the prompt shows, and of one style for right and wrong entries."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dcr2ad.geometry import sample_geometry
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.parsing import LETTERS, parse_response, write_response
from dcr2ad.places import PLACES
from dcr2ad.prompts import describe_findings, shape_word, size_word
from dcr2ad.questions import QuestionMaker
from dcr2ad.rivals import answer_under
from dcr2ad.statements import at_place, statement
from dcr2ad.teacher import REASONING_WORDS, WHY_WORDS, BuiltinTeacher, Teacher, direct_answer
from dcr2ad.types import ExpertFindings, KnowledgeEntry, Question, Sample, Subtask, Trajectory

BASE = KnowledgeBase.builtin()
LABELS = (("magnetic tile", "mtd", "crack"), ("cookie", "cookies", "cracked"), ("printed circuit board", "deeppcb", "spur"))


@st.composite
def findings(draw: st.DrawFn) -> ExpertFindings:
    cells = draw(st.lists(st.floats(0, 20), min_size=9, max_size=9))
    hottest = max(range(9), key=lambda cell: cells[cell])
    return ExpertFindings(
        score=draw(st.floats(-3, 40)),
        raw=0.2,
        threshold=draw(st.floats(0.5, 9)),
        cell=hottest,
        cells=tuple(cells),
        extent=draw(st.floats(0, 1)),
        elongation=draw(st.floats(1, 30)),
        tone=draw(st.sampled_from(["darker", "brighter", "same"])),
        box=draw(st.sampled_from([None, (0.1, 0.1, 0.4, 0.5)])),
    )


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder, rng = tmp_path_factory.mktemp("masks"), random.Random(1)
    paths = []
    for index in range(9):
        mask = np.zeros((60, 60), dtype=np.uint8)
        y, x = 20 * (index // 3) + 4, 20 * (index % 3) + 4
        mask[y : y + rng.randint(2, 12), x : x + rng.randint(2, 12)] = 255
        mask[y, x] = 0
        paths.append(str(folder / f"{index}.png"))
        Image.fromarray(mask).save(paths[-1])
    return paths


def _questions(seen: ExpertFindings | None, mask: str | None, label: int, bad: bool) -> Iterator[Question]:
    name, dataset, defect = LABELS[label]
    entry = BASE.resolve_label(dataset, name, defect if bad else None, bad)
    assert entry is not None
    sample = Sample(
        id=f"{name}/{bad}/{mask}",
        image="x.png",
        references=("r.png",),
        masks=(mask,) if mask and bad else (),
        dataset=dataset,
        object=name,
        defect=defect if bad else None,
        is_anomalous=bad,
        right_key=entry.key,
        expert=seen,
    )
    yield from QuestionMaker(BASE, [sample]).make(sample)[0]


def _rivals(question: Question) -> list[tuple[KnowledgeEntry, int]]:
    """Wrong entries that lead to an option of the question."""
    right = BASE.get(question.sample.right_key or "")
    keys = [other.key for other, _ in BASE.look_alikes(right.key)] + question.provenance.get("keys", "").split()
    found = [(BASE.get(key), answer_under(BASE.get(key), question)) for key in dict.fromkeys(keys) if key != right.key]
    return [(entry, answer) for entry, answer in found if answer is not None]


@settings(max_examples=80, deadline=None)
@given(st.one_of(st.none(), findings()), st.integers(-1, 8), st.integers(0, 2), st.booleans(), st.integers(0, 5))
def test_responses_are_short_parse_and_conclude_with_their_option(
    masks: list[str], seen: ExpertFindings | None, mask: int, label: int, bad: bool, seed: int
) -> None:
    teacher: Teacher = BuiltinTeacher(seed)
    for question in _questions(seen, masks[mask] if mask >= 0 else None, label, bad):
        right = BASE.get(question.sample.right_key or "")
        for entry, answer in [(right, question.answer), *_rivals(question)]:
            written = teacher.write_under(entry, question, answer)
            assert parse_response(write_response(written), question.options) == written
            assert written.entry == entry.title and written.answer == answer
            assert 1 <= len(written.why.split()) <= WHY_WORDS, written.why
            assert REASONING_WORDS[0] <= len(written.reasoning.split()) <= REASONING_WORDS[1], written.reasoning
            assert written.reasoning.endswith(f"{question.options[answer]} ({LETTERS[answer]}).")
            assert not re.search(r"\s[,.]|\[object\]|\{|  |\.\.", f"{written.why} {written.reasoning}")
        assert teacher.write(question, right) == teacher.write_under(right, question, question.answer)


@settings(max_examples=60, deadline=None)
@given(findings(), st.integers(0, 8), st.integers(0, 2), st.booleans())
def test_what_is_said_of_the_findings_is_what_the_prompt_shows(
    masks: list[str], seen: ExpertFindings, mask: int, label: int, bad: bool
) -> None:
    shown = describe_findings(seen)
    for question in _questions(seen, masks[mask], label, bad):
        reasoning = BuiltinTeacher().write(question, BASE.get(question.sample.right_key or "")).reasoning
        numbers = re.findall(r"-?\d+\.\d", reasoning)
        assert all(number in shown for number in numbers) and len(numbers) == 2
        assert ("above the limit" in reasoning) == ("above the limit" in shown)
        geometry = sample_geometry(question.sample)
        said = {place for place in PLACES if re.search(rf"\b{at_place(PLACES.index(place))}\b", reasoning)}
        if geometry is None:
            assert said == {PLACES[seen.cell]}
        else:  # the mask corrects the expert, who is still quoted
            assert said == {PLACES[seen.cell], PLACES[geometry.cell]}
            if seen.cell != geometry.cell:
                assert f"hottest {at_place(seen.cell)}" in reasoning and f"lies {at_place(geometry.cell)}" in reasoning
                assert size_word(geometry.extent) in reasoning.lower() and shape_word(geometry.elongation) in reasoning.lower()
                assert "than normal" not in reasoning  # the tone is that of the hot spot, not of the mark


@pytest.mark.parametrize("label", range(len(LABELS)))
def test_what_is_known_of_an_entry_follows_its_title(masks: list[str], label: int) -> None:
    said: dict[str, set[str]] = {}
    for mask in masks:
        for question in _questions(None, mask, label, True):
            right = BASE.get(question.sample.right_key or "")
            for entry, answer in [(right, question.answer), *_rivals(question)]:
                written = BuiltinTeacher().write_under(entry, question, answer)
                link = {"effect": "leads to", "cause": "comes from", "cues": "shows"}.get(question.provenance.get("asks", ""))
                assert (f" {entry.title} {link}: " in written.reasoning) == (link is not None)
                said.setdefault(question.subtask, set()).add(str(link))
    assert said[Subtask.ANALYSIS] <= {"leads to", "comes from"} and said[Subtask.DESCRIPTION] <= {"shows", "None"}
    assert said[Subtask.DETECTION] == {"None"}


@settings(max_examples=60, deadline=None)
@given(findings(), st.integers(0, 8), st.integers(0, 2), st.booleans())
def test_a_wrong_entry_is_argued_in_the_same_words(
    masks: list[str], seen: ExpertFindings, mask: int, label: int, bad: bool
) -> None:
    teacher = BuiltinTeacher()
    for question in _questions(seen, masks[mask], label, bad):
        right = BASE.get(question.sample.right_key or "")
        chosen = write_response(teacher.write(question, right))
        for entry, answer in _rivals(question):
            rejected = teacher.write_under(entry, question, answer)
            if entry.is_normal == right.is_normal:  # same evidence, so the first sentence is the same to the letter
                first = teacher.write(question, right).reasoning.partition(". ")[0]
                assert rejected.reasoning.startswith(first)
            if question.subtask is Subtask.DETECTION:
                assert ("has no defect" in rejected.reasoning) == entry.is_normal
            length = len(write_response(rejected))
            assert abs(length - len(chosen)) <= 0.4 * max(length, len(chosen))


def test_a_cue_with_the_word_mark_is_no_outline(masks: list[str]) -> None:
    entry = next(entry for entry in BASE.entries if any(" mark points elsewhere" in cue for cue in entry.cues))
    question = next(q for q in _questions(None, masks[0], 2, True) if q.provenance.get("asks") == "cues")
    wrong = (question.answer + 1) % len(question.options)
    options = [*question.options]
    options[wrong] = statement(entry, "cues", question.sample.object)
    question = question.model_copy(update={"options": tuple(options)})
    teacher = BuiltinTeacher()
    chosen = teacher.write(question, BASE.get(question.sample.right_key or ""))
    rejected = teacher.write_under(entry, question, wrong)
    assert rejected.reasoning.startswith(chosen.reasoning.partition(". ")[0])
    assert at_place(0) in rejected.why


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.none(), findings()), st.integers(-1, 8), st.integers(0, 2), st.booleans())
def test_a_wrong_answer_under_the_right_entry_sees_what_it_concludes(
    masks: list[str], seen: ExpertFindings | None, mask: int, label: int, bad: bool
) -> None:
    teacher = BuiltinTeacher()
    for question in _questions(seen, masks[mask] if mask >= 0 else None, label, bad):
        right = BASE.get(question.sample.right_key or "")
        chosen = teacher.write(question, right)
        assert isinstance(chosen, Trajectory)
        for answer in range(len(question.options)):
            written = teacher.write_under(right, question, answer)
            assert parse_response(write_response(written), question.options) == written
            assert (written.entry, written.answer) == (right.title, answer)
            if answer == question.answer:
                assert written == chosen
                continue
            assert written != chosen and len(written.why.split()) <= WHY_WORDS
            assert len(written.reasoning.split()) <= REASONING_WORDS[1]
            if question.subtask is Subtask.DETECTION:
                assert ("has no defect" in written.reasoning) == bad != ("has no defect" in chosen.reasoning)
            if question.subtask is Subtask.LOCALIZATION and question.options[answer] in PLACES:
                assert f"the defect lies {at_place(PLACES.index(question.options[answer]))}" in written.reasoning


def test_the_teacher_is_reproducible_and_varied() -> None:
    questions = [
        question.model_copy(update={"id": f"{question.id}{i}"})
        for i in range(40)
        for question in _questions(None, None, 0, True)
    ]
    entry = BASE.get(questions[0].sample.right_key or "")
    first = [BuiltinTeacher(3).write(q, entry).reasoning for q in questions]
    assert first == [BuiltinTeacher(3).write(q, entry).reasoning for q in questions]
    assert len({text for text, q in zip(first, questions, strict=True) if q.subtask is Subtask.DETECTION}) > 8


def test_without_an_entry_there_is_reasoning_and_no_path() -> None:
    question = next(_questions(None, None, 0, True))
    written = BuiltinTeacher().write(question, None)
    assert (written.entry, written.why) == ("", "") and written.reasoning and written.answer == question.answer
    assert parse_response(write_response(written), question.options) == written


def test_a_direct_answer_has_neither() -> None:
    question = next(_questions(None, None, 1, False))
    written = direct_answer(question)
    assert write_response(written) == f"<answer>{LETTERS[question.answer]}</answer>"


def test_places_in_other_words_than_ours_are_repeated() -> None:
    question = next(_questions(None, None, 0, True))
    asked = question.model_copy(update={"subtask": Subtask.LOCALIZATION, "options": ("On the left connector", "Near the rim")})
    written = BuiltinTeacher().write(asked, BASE.get(asked.sample.right_key or ""))
    assert f"its place is {asked.options[asked.answer]} ({LETTERS[asked.answer]})." in written.reasoning
