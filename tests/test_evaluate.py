"""Evaluation, mining and KR-RTS on tiny photographs: what is written, and that a stop costs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dcr2ad.artifacts import read_manifest, read_records, write_records
from dcr2ad.cli import app
from dcr2ad.config import MineSettings, SynthesizeSettings
from dcr2ad.errors import InputError, RunError
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.base import ChatModel, letter_probabilities
from dcr2ad.models.hf import HFModel
from dcr2ad.models.scripted import ScriptedModel
from dcr2ad.parsing import LETTERS, write_response
from dcr2ad.prompts import DEFAULT_WORDING, Wording, answer_prompt, build_prompt
from dcr2ad.questions import Rejected
from dcr2ad.reasoning import write_responses
from dcr2ad.report.tables import protocol_label
from dcr2ad.stages.asking import _with, ask_together
from dcr2ad.stages.evaluate import evaluate, read_report
from dcr2ad.stages.mine import calibrate, fill_up, mine_boundary
from dcr2ad.stages.paired import compare
from dcr2ad.stages.synthesize import check_pair, make_pair, one_sided, synthesize_pairs
from dcr2ad.teacher import BuiltinTeacher
from dcr2ad.types import (
    BoundaryQuestion,
    Completion,
    EvalProtocol,
    ExpertFindings,
    Prediction,
    PreferencePair,
    Prompt,
    Question,
    RankedEntry,
    Sampling,
    Subtask,
    Trajectory,
)
from tests.tiny import tiny_base, tiny_internvl, tiny_photograph, tiny_questions


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> HFModel:
    return HFModel.open(f"hf:{tiny_internvl(tmp_path_factory.mktemp('m'))}")


@pytest.fixture
def questions(tmp_path: Path) -> list[Question]:
    return tiny_questions(tmp_path / "photographs", 8)


@pytest.fixture
def routable(questions: list[Question]) -> list[Question]:
    """Half yes/no questions, half with options that come from entries, as the instruct stage makes them."""
    keys = [entry.key for entry in tiny_base()][:3]
    titles = tuple(tiny_base().get(key).title for key in keys)
    made = []
    for i, q in enumerate(questions):
        if i % 2:
            update = {"subtask": Subtask.DETECTION, "text": "Any defect?", "options": ("Yes", "No"), "answer": 0}
        else:
            right = keys.index(str(q.sample.right_key))
            update = {"options": titles, "answer": right, "provenance": {"keys": " ".join(keys)}}
        made.append(q.model_copy(update={**update, "candidates": (), "response": None}))
    return made


def _text(prompt: Prompt) -> str:
    return "".join(part.text for part in prompt.parts if part.kind == "text")


def _knows(questions: list[Question], wrong: set[str] = frozenset()) -> ScriptedModel:  # type: ignore[assignment]
    """A model that recognises the image and option texts, and answers some questions wrongly."""

    def find(prompt: Prompt) -> Question:
        images = [part.path for part in prompt.parts if part.kind == "image"]
        return next(q for q in questions if q.sample.image == images[-1] and f"Question: {q.text}\n" in _text(prompt))

    def letter(prompt: Prompt) -> str:
        question = find(prompt)
        return LETTERS[(question.answer + (question.id in wrong)) % len(question.options)]

    def respond(prompt: Prompt) -> str:
        answer = LETTERS.index(letter(prompt))
        return write_response(Trajectory(entry="Scratch", why="a line", reasoning="It is so.", answer=answer))

    return ScriptedModel(respond, lambda p, option: 0.0 if option.strip() == letter(p) else -5.0)


@pytest.mark.parametrize("answering", ["score", "reason"])
def test_a_knowing_model_scores_what_it_knows(questions: list[Question], tmp_path: Path, answering: str) -> None:
    wrong = {questions[0].id}
    report = evaluate(
        _knows(questions, wrong),
        questions,
        tiny_base(),
        EvalProtocol(answering=answering),  # type: ignore[arg-type]
        tmp_path / "e",
    )
    predictions = list(read_records(tmp_path / "e" / "predictions.jsonl", Prediction))
    assert {p.question_id for p in predictions if not p.is_correct} == wrong
    assert report.questions == report.answered == len(questions)
    assert (tmp_path / "e" / "report.json").exists()


@pytest.mark.parametrize("context", ["none", "category", "routed", "oracle"])
def test_every_context_runs_on_a_real_model(model: HFModel, questions: list[Question], tmp_path: Path, context: str) -> None:
    protocol = EvalProtocol(context=context)  # type: ignore[arg-type]
    report = evaluate(model, questions, tiny_base(), protocol, tmp_path / "e")
    assert report.answered == len(questions)
    assert bool(report.routing) == (context == "routed")
    for p in read_records(tmp_path / "e" / "predictions.jsonl", Prediction):
        assert p.probabilities is not None and sum(p.probabilities) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("routing", ["recall", "listed", "hybrid"])
def test_own_wording_reaches_every_prompt_and_the_routing_ones_too(
    questions: list[Question], tmp_path: Path, routing: str
) -> None:
    seen: list[str] = []

    def logprob(prompt: Prompt, option: str) -> float:
        seen.append(_text(prompt))
        return -1.0

    wording = Wording(instruction="Look twice.", query="\nLooked at:", question="\nAsked: {question}", knowledge="\nKnown:")
    protocol = EvalProtocol(context="routed", routing=routing, prompts="own")  # type: ignore[arg-type]
    evaluate(ScriptedModel(lambda p: "", logprob), questions, tiny_base(), protocol, tmp_path / "e", wording=wording)
    assert seen and all(text.startswith("Look twice.") and "\nAsked: " in text for text in seen)
    assert not [
        text for text in seen if DEFAULT_WORDING.instruction in text or "Inspected part" in text or "Knowledge:" in text
    ]
    assert any("\nKnown:" in text for text in seen)


def test_what_is_prescribed_is_listed_in_place_of_the_last() -> None:
    one, two, three = list(tiny_base())[:3]
    ranking = [RankedEntry(key=e.key, title=e.title, probability=p, score=0) for e, p in ((three, 0.5), (two, 0.3), (one, 0.2))]
    assert _with(three, [one, two], ranking) == sorted([two, three], key=lambda entry: entry.key)
    assert _with(three, [one], ranking) == [three]


@pytest.mark.parametrize("threshold", [0.99, 0.01])
def test_the_best_entries_are_listed_and_a_defect_is_prescribed_where_one_is_spoken_of(
    routable: list[Question], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threshold: float
) -> None:
    monkeypatch.setattr("dcr2ad.routing.ABSTAIN_BELOW", threshold)
    seen: list[Prompt] = []

    def respond(prompt: Prompt) -> str:
        seen.append(prompt)
        return write_response(Trajectory(entry="Scratch", why="a line", reasoning="It is so.", answer=0))

    model = ScriptedModel(respond, lambda p, option: 0.0 if option.startswith("Dent") else -2.0)
    report = evaluate(model, routable, tiny_base(), EvalProtocol(context="routed", answering="reason"), tmp_path / "e")
    assert report.routing is not None and len(seen) == len(routable)
    assert all("\nKnowledge:\n- Dent: " in _text(prompt) for prompt in seen)
    openings = {("Any defect?" in _text(prompt), prompt.opening) for prompt in seen}
    assert openings == {(True, ""), (False, "<knowledge>Dent:")}
    for p in read_records(tmp_path / "e" / "predictions.jsonl", Prediction):
        assert p.routed[0].title == "Dent"


@pytest.mark.parametrize(("shots", "seen"), [(0, 1), (1, 1), (2, 2), (5, 5), (8, 6)])
def test_the_expert_compares_with_what_the_protocol_shows(
    questions: list[Question], tmp_path: Path, shots: int, seen: int
) -> None:
    compared: list[tuple[int, float]] = []

    class Counting:
        limit = 1.0

        def own_limit(self, paths: Sequence[str], share: float) -> float:
            return 10.0 * len(paths)

        def with_limit(self, limit: float) -> Counting:
            other = Counting()
            other.limit = limit
            return other

        def inspect(self, image: str, references: Sequence[str]) -> tuple[ExpertFindings, None]:
            compared.append((len(references), self.limit))
            cells = (2.0, *(0.0,) * 8)
            shape = {"cell": 0, "cells": cells, "extent": 0.01, "elongation": 1.0, "tone": "same"}
            return ExpertFindings(score=2.0, raw=0.1, threshold=self.limit, **shape), None

    six = tuple(tiny_photograph(tmp_path / "good", 100 + number) for number in range(6))
    plain = {"references": six, "expert": None}
    asked = [q.model_copy(update={"sample": q.sample.model_copy(update=plain)}) for q in questions[:2]]
    shown: list[int] = []

    def logprob(prompt: Prompt, option: str) -> float:
        shown.append(sum(part.kind == "image" for part in prompt.parts) - 1)
        return -1.0

    model = ScriptedModel(lambda p: "", logprob)
    evaluate(model, asked, tiny_base(), EvalProtocol(shots=shots), tmp_path / "e", expert=Counting())
    assert compared == [(seen, 10.0 * seen if seen >= 5 else 1.0)], "the limit is the line's own from five on"
    assert set(shown) == {min(shots, 6)}


def test_written_responses_equal_each_written_alone(model: HFModel, questions: list[Question], tmp_path: Path) -> None:
    evaluate(model, questions, tiny_base(), EvalProtocol(answering="reason"), tmp_path / "e")
    found = {p.question_id: p for p in read_records(tmp_path / "e" / "predictions.jsonl", Prediction)}
    for question in questions:
        model.runner.reset()
        alone = write_responses(model, [build_prompt(question)], [question.options])[0]
        assert found[question.id].raw == alone.text
        assert found[question.id].probabilities == pytest.approx(alone.probabilities, abs=1e-5)


def test_written_responses_of_whole_images_are_decoded_together_up_to_a_limit(questions: list[Question]) -> None:
    groups = [questions[i : i + 2] for i in range(0, 8, 2)] * 10
    for answering, size in (("score", 32), ("reason", 32), ("reason@8", 4), ("reason@40", 2)):
        together = list(ask_together(groups, EvalProtocol(answering=answering)))
        assert {sum(map(len, part)) for part in together[:-1]} == {size}
        assert [q for part in together for group in part for q in group] == [q for group in groups for q in group]


def test_questions_scored_together_equal_questions_scored_alone(
    model: HFModel, questions: list[Question], tmp_path: Path
) -> None:
    evaluate(model, questions, tiny_base(), EvalProtocol(), tmp_path / "e")
    found = {p.question_id: p.probabilities for p in read_records(tmp_path / "e" / "predictions.jsonl", Prediction)}
    for question in questions:
        model.runner.reset()
        alone = letter_probabilities(model, [answer_prompt(build_prompt(question))], [len(question.options)])[0]
        assert found[question.id] == pytest.approx(alone, abs=1e-5)


def test_a_stopped_evaluation_continues_to_the_same_report(
    model: HFModel, questions: list[Question], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcr2ad.stages.asking.ASKED_TOGETHER", 2)
    whole = evaluate(model, questions, tiny_base(), EvalProtocol(), tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop_after_two(done: int, total: int) -> None:
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        evaluate(model, questions, tiny_base(), EvalProtocol(), tmp_path / "e", progress=stop_after_two)
    file = tmp_path / "e" / "predictions.jsonl"
    file.write_bytes(file.read_bytes()[:-7])  # as a kill in the middle of a line leaves it
    again = evaluate(model, questions, tiny_base(), EvalProtocol(), tmp_path / "e")
    # Probabilities may differ in the last place, since the cache is cold after a stop; nothing counted may.
    assert again.model_dump(exclude={"calibration_error"}) == whole.model_dump(exclude={"calibration_error"})
    assert again.calibration_error == pytest.approx(whole.calibration_error, abs=1e-3)
    rows = [list(read_records(tmp_path / name / "predictions.jsonl", Prediction)) for name in ("e", "whole")]
    assert [p.question_id for p in rows[0]] == [p.question_id for p in rows[1]]
    for one, two in zip(*rows, strict=True):
        assert one.answer == two.answer and one.probabilities == pytest.approx(two.probabilities, abs=2e-6)


def test_another_protocol_never_mixes(model: HFModel, questions: list[Question], tmp_path: Path) -> None:
    evaluate(model, questions, tiny_base(), EvalProtocol(), tmp_path / "e")
    with pytest.raises(RunError, match="protocol"):
        evaluate(model, questions, tiny_base(), EvalProtocol(shots=0), tmp_path / "e")


def test_the_command_computes_in_the_precision_asked_for(questions: list[Question], tmp_path: Path) -> None:
    write_records(tmp_path / "questions.jsonl", questions)
    asked = ["evaluate", str(tmp_path / "questions.jsonl"), "-m", f"hf:{tiny_internvl(tmp_path / 'm')}", "--no-expert"]
    found = []
    for precision in ("fp32", "bf16"):
        done = CliRunner().invoke(app, [*asked, "--precision", precision, "-o", str(tmp_path / precision)])
        assert done.exit_code == 0, done.output
        report = read_report(tmp_path / precision)
        told = f"{len(questions)} questions: {protocol_label(report.protocol)}"
        assert " ".join(done.output.split()).startswith(told), "a protocol not meant is seen before it has cost an hour"
        assert report.protocol.precision == precision
        found.append([p.probabilities for p in read_records(tmp_path / precision / "predictions.jsonl", Prediction)])
        named = read_manifest(tmp_path / precision).config["protocol"].get("precision")
        assert named == (None if precision == "fp32" else precision), "evaluations of versions without precision go on"
    assert found[0] != found[1] and all(a == pytest.approx(b, abs=0.05) for a, b in zip(*found, strict=True))
    with pytest.raises(InputError, match="--differ precision"):
        compare(tmp_path / "fp32", tmp_path / "bf16")
    for model, precision, told in (("openai:m@http://127.0.0.1:9/v1", "bf16", "run here"), (asked[3], "fp8", "precision")):
        refused = CliRunner().invoke(app, [*asked[:3], model, "--precision", precision, "-o", str(tmp_path / "no")])
        assert isinstance(refused.exception, InputError) and told in str(refused.exception)
    refused = CliRunner().invoke(app, [*asked, "--what", "routing", "--precision", "bf16", "-o", str(tmp_path / "no")])
    assert isinstance(refused.exception, InputError) and "float32" in str(refused.exception)
    assert not (tmp_path / "no").exists()


def test_a_broken_image_is_a_failed_answer_and_the_rest_go_on(
    questions: list[Question], tmp_path: Path, model: HFModel
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    sample = questions[0].sample.model_copy(update={"image": str(broken)})
    asked = [questions[0].model_copy(update={"sample": sample}), *questions[1:]]
    report = evaluate(model, asked, tiny_base(), EvalProtocol(), tmp_path / "e")
    assert report.status_counts["failed"] == 1 and report.questions == len(questions)


def test_no_question_and_equal_ids_are_refused(model: ChatModel, questions: list[Question], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no question"):
        evaluate(model, [], tiny_base(), EvalProtocol(), tmp_path / "e")
    with pytest.raises(InputError, match="occur twice"):
        evaluate(model, questions[:1] * 2, tiny_base(), EvalProtocol(), tmp_path / "e")


def test_mining_keeps_the_band_and_counts_both_sides(questions: list[Question], tmp_path: Path) -> None:
    # p(gold) runs over known values; with n options chance is 1/n.
    offsets = [-0.3, -0.1001, -0.05, -0.01, 0.02, 0.09, 0.11, 0.2]

    def logprob(prompt: Prompt, option: str) -> float:
        images = [part.path for part in prompt.parts if part.kind == "image"]
        q = next(q for q in questions if q.sample.image == images[-1] and f"Question: {q.text}\n" in _text(prompt))
        n = len(q.options)
        gold = max(1e-9, 1 / n + offsets[questions.index(q)])
        p = gold if LETTERS.index(option.strip()) == q.answer else (1 - gold) / (n - 1)
        return log(p)

    model = ScriptedModel(lambda p: "", logprob)
    made = mine_boundary(model, questions, tiny_base(), MineSettings(), tmp_path / "mine")
    kept = list(read_records(tmp_path / "mine" / "boundary.jsonl", BoundaryQuestion))
    expected = [questions[i].id for i in (3, 4, 2, 5)]
    assert [row.question.id for row in kept] == expected
    assert made["sides"] == {"below": 2, "above": 2} and made["in_band"] == 4 and not made["enough"]
    assert sum(made["histogram"]) == len(questions)
    only = mine_boundary(model, questions, tiny_base(), MineSettings(wanted=1), tmp_path / "one")
    assert only["kept"] == 1 and only["enough"]
    mixed = [q.model_copy(update={"subtask": Subtask.DETECTION}) if n < 3 else q for n, q in enumerate(questions)]
    kinds = MineSettings(subtasks=(Subtask.CLASSIFICATION,))
    named = mine_boundary(model, mixed, tiny_base(), kinds, tmp_path / "named")
    read = read_records(tmp_path / "named" / "probabilities.jsonl", BoundaryQuestion)
    assert {row.question.id for row in read} == {question.id for question in questions[3:]}, "the others are not asked"
    assert named["questions"] == len(questions) - 3 and named["other_subtasks"] == 3 and named["exchanged"] == 0


class Leaning(ScriptedModel):
    """Says yes with 0.75, whatever the question and wherever the option stands."""

    def __init__(self, asked: Sequence[Question]) -> None:
        orders = {f"{LETTERS[n]}. {option}": option for q in asked for n, option in enumerate(q.options)}

        def logprob(prompt: Prompt, option: str) -> float:
            named = [meant for line, meant in orders.items() if line.startswith(option.strip()) and line in _text(prompt)]
            return log(0.75 if named == ["Yes"] else 0.25)

        super().__init__(lambda prompt: "", logprob)


class Undecided(ScriptedModel):
    """Its sampled responses name each letter of a list in turn."""

    def __init__(self, letters: str) -> None:
        super().__init__(lambda prompt: "")
        self._letters = letters

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """The responses, the same for every prompt."""
        form = "<knowledge>crack: seen</knowledge><think>so</think><answer>{}</answer>"
        return [[Completion(text=form.format(x) if x != "-" else "no idea") for x in self._letters[: sampling.n]]] * len(
            prompts
        )


def test_mining_behind_sampled_responses_reads_their_share(questions: list[Question], tmp_path: Path) -> None:
    two = [question for question in questions if len(question.options) == 2]
    assert two
    half = MineSettings(answering="reason@4")
    made = mine_boundary(Undecided("ABBA"), two, tiny_base(), half, tmp_path / "half")
    assert made["kept"] == made["in_band"] == len(two) and made["unread"] == 0
    read = read_records(tmp_path / "half" / "boundary.jsonl", BoundaryQuestion)
    assert all(row.probabilities == (0.5, 0.5) and row.margin == 0 for row in read)
    # an unreadable response has no vote: 2 of 3 lie outside the band
    assert mine_boundary(Undecided("AA-B"), two, tiny_base(), half, tmp_path / "third")["in_band"] == 0
    none = mine_boundary(Undecided("----"), two, tiny_base(), half, tmp_path / "none")
    assert none["unread"] == len(two) and none["kept"] == 0
    sure = mine_boundary(Undecided("A"), two, tiny_base(), MineSettings(answering="reason"), tmp_path / "sure")
    assert sure["questions"] == len(two) and sure["in_band"] == 0


def _verdict(question: Question, number: int, answer: str, yes: float) -> BoundaryQuestion:
    """A yes/no question with its options in one of two orders, and the probability of yes."""
    options = ("Yes", "No") if number % 2 else ("No", "Yes")
    update = {"id": f"{answer}-{number}", "options": options, "answer": options.index(answer), "subtask": Subtask.DETECTION}
    probabilities = tuple(yes if option == "Yes" else 1 - yes for option in options)
    gold = probabilities[options.index(answer)]
    return BoundaryQuestion(question=question.model_copy(update=update), probabilities=probabilities, margin=gold - 0.5)


def test_a_lean_that_the_picture_does_not_move_is_the_new_chance(questions: list[Question]) -> None:
    """Hand arithmetic: yes has 0.8 on average over defects (15) and 0.7 over good parts (5), so 0.75 in all, no 0.25."""
    first = questions[0]
    rows = [_verdict(first, n, "Yes", 0.9 if n < 5 else 0.75) for n in range(15)]
    rows += [_verdict(first, n, "No", 0.75 if n < 4 else 0.5) for n in range(5)]
    by_id = {row.question.id: row for row in calibrate(rows)}
    yes, no = 0.8, 0.7
    mean = (yes + no) / 2
    odds = {p: (p / mean) / (p / mean + (1 - p) / (1 - mean)) for p in (0.9, 0.75, 0.5)}
    assert odds[0.75] == pytest.approx(0.5) and odds[0.5] == pytest.approx(0.25) and odds[0.9] == pytest.approx(0.75)
    assert by_id["Yes-0"].margin == pytest.approx(0.25) and by_id["Yes-9"].margin == pytest.approx(0)
    assert by_id["No-0"].margin == pytest.approx(0) and by_id["No-4"].margin == pytest.approx(0.25)
    assert by_id["Yes-0"].probabilities == rows[0].probabilities, "what the model said stays on record"


def test_few_or_one_sided_questions_are_not_calibrated(questions: list[Question]) -> None:
    few = [_verdict(questions[0], n, "Yes" if n % 3 else "No", 0.75) for n in range(19)]
    assert calibrate(few) == few
    one_answer = [_verdict(questions[0], n, "Yes", 0.75) for n in range(40)]
    assert calibrate(one_answer) == one_answer
    certain = [_verdict(questions[0], n, "Yes" if n % 3 else "No", 1.0) for n in range(40)]
    assert calibrate(certain) == certain, "what has no probability at all cannot be divided by it"


def test_mining_keeps_a_calibrated_band(questions: list[Question], tmp_path: Path) -> None:
    """A model that says yes with 0.75 whatever it sees: undecided by its own measure alone."""
    first = questions[0]
    asked = [_verdict(first, n, "Yes" if n % 3 else "No", 0.75).question for n in range(30)]
    model = Leaning(asked)
    plain = mine_boundary(model, asked, tiny_base(), MineSettings(), tmp_path / "plain")
    assert plain["in_band"] == 0
    made = mine_boundary(model, asked, tiny_base(), MineSettings(calibrated=True), tmp_path / "calibrated")
    assert made["in_band"] == made["kept"] == sum(made["histogram"][9:11]) == 30, "the histogram is of what the band is of"
    read = list(read_records(tmp_path / "calibrated" / "probabilities.jsonl", BoundaryQuestion))
    assert {round(abs(row.margin), 6) for row in read} == {0.25}, "every question's own probabilities and margin are kept"


def test_sub_tasks_are_filled_up_with_what_lies_nearest_to_the_band(questions: list[Question], tmp_path: Path) -> None:
    """Verdicts at 0.5 are all that is wanted; of two sub-tasks the model is sure of, the least sure come beside them."""
    rows = [_verdict(questions[0], n, "Yes", 0.5) for n in range(3)]
    for subtask in (Subtask.OBJECT_ANALYSIS, Subtask.ANALYSIS):
        for number in range(4):
            sure = _verdict(questions[0], number, "Yes", 0.9 - 0.1 * number)
            update = {"id": f"{subtask}-{number}", "subtask": subtask}
            rows.append(sure.model_copy(update={"question": sure.question.model_copy(update=update)}))
    ordered = sorted(rows, key=lambda row: (abs(row.margin), row.question.id))
    names = [row.question.id for row in fill_up(ordered[:2], ordered, 2)]
    assert names[:2] == ["Yes-0", "Yes-1"]
    assert sorted(names[2:]) == sorted(f"{s}-{n}" for s in (Subtask.OBJECT_ANALYSIS, Subtask.ANALYSIS) for n in (2, 3))
    assert fill_up(ordered[:2], ordered, 0) == ordered[:2]
    assert len(fill_up(ordered[:2], ordered, 99)) == len(rows), "as far as there are so many"
    asked = [_verdict(questions[0], n, "Yes", 0.75).question for n in range(30)]
    made = mine_boundary(Leaning(asked), asked, tiny_base(), MineSettings(least_each=7), tmp_path)
    assert (made["in_band"], made["kept"], made["filled_up"], made["enough"]) == (0, 7, 7, False)
    assert len(list(read_records(tmp_path / "boundary.jsonl", BoundaryQuestion))) == 7


def test_pairs_differ_in_the_knowledge_and_stand_every_check(routable: list[Question], tmp_path: Path) -> None:
    boundary = [BoundaryQuestion(question=q, probabilities=(0.5,) * 2, margin=0.0) for q in routable]
    settings = SynthesizeSettings(candidates=3)
    made = synthesize_pairs(boundary, tiny_base(), BuiltinTeacher(0), settings, tmp_path / "s", seed=1)
    pairs = list(read_records(tmp_path / "s" / "pairs.jsonl", PreferencePair))
    rejected = list(read_records(tmp_path / "s" / "rejected.jsonl", Rejected))
    assert pairs and len(pairs) == made["pairs"] and len(pairs) + len(rejected) == len(routable)
    for pair in pairs:
        assert check_pair(pair, tiny_base(), length_ratio=settings.length_ratio) == ""
        assert pair.right_key == pair.question.sample.right_key != pair.wrong_key
        assert pair.chosen.entry != pair.rejected.entry
        assert pair.unrouted is not None and pair.unrouted.entry == pair.chosen.entry
        assert pair.unrouted.answer != pair.chosen.answer
        assert pair.kind == "path" or pair.unrouted.answer == pair.rejected.answer
    assert made["unrouted"] == len(pairs)
    assert made["about_good_parts"] == sum(not pair.question.sample.is_anomalous for pair in pairs)
    again = synthesize_pairs(boundary, tiny_base(), BuiltinTeacher(0), settings, tmp_path / "t", seed=1)
    assert (tmp_path / "t" / "pairs.jsonl").read_bytes() == (tmp_path / "s" / "pairs.jsonl").read_bytes() and again == made


@pytest.mark.parametrize("asked", ["its name", "its looks"])
def test_good_parts_are_deceived_by_another_material(questions: list[Question], tmp_path: Path, asked: str) -> None:
    """What a good part is called and looks like: k_l is the normal state of another option's material."""
    base = KnowledgeBase.builtin()
    names, keys = ("Cookie", "Magnetic tile"), ("General.food.normal", "General.ceramic.normal")
    update: dict[str, object] = {"subtask": Subtask.OBJECT_CLASSIFICATION, "options": names, "answer": 1, "provenance": {}}
    if asked == "its looks":
        looks = tuple(base.get(key).text for key in keys)
        update |= {"subtask": Subtask.OBJECT_ANALYSIS, "options": looks, "provenance": {"keys": " ".join(keys)}}
    good = {"object": "magnetic tile", "right_key": keys[1], "defect": None, "is_anomalous": False, "masks": ()}
    tile = questions[0].sample.model_copy(update=good)
    question = questions[0].model_copy(update={**update, "sample": tile, "candidates": ()})
    pair = make_pair(question, base, BuiltinTeacher(0), SynthesizeSettings(length_ratio=0.9), seed=1)
    assert isinstance(pair, PreferencePair)
    assert (pair.wrong_key, pair.rejected.answer, pair.chosen.answer) == (keys[0], 0, 1)
    assert pair.wrong_reason.endswith(pair.question.options[0]) and set(keys) <= set(pair.question.candidates)


def test_pairs_about_defects_alone_are_told() -> None:
    told = one_sided({"pairs": 40, "about_good_parts": 3})
    assert "3 of 40" in told and "Overkill" in told
    assert not one_sided({"pairs": 40, "about_good_parts": 4})
    assert not one_sided({"pairs": 0, "about_good_parts": 0}), "that no pair was made is told elsewhere"
    assert not one_sided({"pairs": 40}), "made by a version that did not count them"


OUTLINES = tuple(
    f"{look} mark {place}" for look in ("Small, compact", "Tiny, line-like") for place in ("in the centre", "at the top left")
)


@pytest.mark.parametrize(
    ("subtask", "options"),
    [(Subtask.LOCALIZATION, ("centre", "top left", "top right", "bottom left")), (Subtask.DESCRIPTION, OUTLINES)],
)
def test_a_deceptive_response_may_look_elsewhere(routable: list[Question], subtask: Subtask, options: tuple[str, ...]) -> None:
    """Every defect answers a place alike: under a wrong entry the mark is then seen where the wrong option says."""
    defective = next(q for q in routable if q.sample.is_anomalous)
    update = {"subtask": subtask, "options": options, "answer": 0, "provenance": {"verified": "mask"}}
    question = defective.model_copy(update=update)
    settings = SynthesizeSettings(candidates=3, length_ratio=0.5)
    same = make_pair(question, tiny_base(), BuiltinTeacher(0), settings, seed=1)
    assert isinstance(same, PreferencePair) and same.kind == "path" and same.rejected.answer == 0
    pair = make_pair(question, tiny_base(), BuiltinTeacher(0), settings.model_copy(update={"elsewhere": True}), seed=1)
    assert isinstance(pair, PreferencePair) and pair.kind == "elsewhere" and pair.chosen == same.chosen
    place = options[pair.rejected.answer].rpartition(" mark ")[2]
    assert pair.rejected.answer != 0 and pair.rejected.entry == same.rejected.entry and place in pair.rejected.why
    assert "does not follow" in check_pair(pair.model_copy(update={"kind": "answer"}), tiny_base(), length_ratio=0.5)
    right = pair.model_copy(update={"rejected": same.rejected})
    assert "kind" in check_pair(right, tiny_base(), length_ratio=0.5)


def test_the_wrong_entry_is_one_that_is_right_elsewhere(routable: list[Question]) -> None:
    """Of what deceives, the entry that was wrong least often beyond being right; a name alone tells nothing then."""
    settings = SynthesizeSettings(candidates=3, length_ratio=0.5)
    changed = 0
    for question in routable:
        plain = make_pair(question, tiny_base(), BuiltinTeacher(0), settings, seed=1)
        if isinstance(plain, PreferencePair):
            often = make_pair(question, tiny_base(), BuiltinTeacher(0), settings, seed=1, balance={plain.wrong_key: 5})
            assert isinstance(often, PreferencePair) and often.kind == plain.kind
            changed += often.wrong_key != plain.wrong_key
    assert changed


def test_planted_faults_in_a_pair_are_caught(routable: list[Question]) -> None:
    base = tiny_base()
    settings = SynthesizeSettings(candidates=3, length_ratio=0.5)
    pairs = [make_pair(q, base, BuiltinTeacher(0), settings, seed=1) for q in routable]
    pair = next(p for p in pairs if isinstance(p, PreferencePair) and p.kind == "answer")

    def faulty(**update: object) -> str:
        return check_pair(pair.model_copy(update=update), base, length_ratio=0.5)

    def changed(trajectory: Trajectory, **update: object) -> Trajectory:
        return trajectory.model_copy(update=update)

    other = (pair.chosen.answer + 1) % len(pair.question.options)
    assert faulty() == ""
    assert "does not parse" in faulty(chosen=changed(pair.chosen, entry="Sc:ratch"))
    assert "another entry" in faulty(chosen=changed(pair.chosen, entry=pair.rejected.entry))
    assert "does not follow" in faulty(chosen=changed(pair.chosen, answer=other))
    assert "kind" in faulty(kind="path")
    assert "list both" in faulty(question=pair.question.model_copy(update={"candidates": (pair.right_key,)}))
    assert "length" in faulty(chosen=changed(pair.chosen, reasoning=" ".join(["So."] * 200)))
    assert pair.unrouted is not None
    assert "unrouted response does not parse" in faulty(unrouted=changed(pair.unrouted, entry="Sc:ratch"))
    assert "than the right one" in faulty(unrouted=pair.rejected)
    assert "unrouted answer is right" in faulty(unrouted=pair.chosen)
    assert "unrouted response differs" in faulty(unrouted=changed(pair.unrouted, reasoning=" ".join(["So."] * 200)))
    assert faulty(unrouted=None) == ""
    plain = make_pair(pair.question, base, BuiltinTeacher(0), settings.model_copy(update={"unrouted": False}), seed=1)
    assert isinstance(plain, PreferencePair) and plain.unrouted is None
