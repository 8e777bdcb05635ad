"""Pairs of evaluations: differences by hand, like with like, shards, and twenty kills."""

from __future__ import annotations

import multiprocessing
import random
import time
from math import comb
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dcr2ad import metrics
from dcr2ad.artifacts import read_records
from dcr2ad.cli import app
from dcr2ad.errors import InputError, RunError
from dcr2ad.models.scripted import ScriptedModel
from dcr2ad.parsing import LETTERS, write_response
from dcr2ad.stages.evaluate import evaluate, merge
from dcr2ad.stages.paired import compare
from dcr2ad.types import EvalProtocol, EvalReport, Prediction, Prompt, Question, Trajectory
from tests.tiny import tiny_base, tiny_questions


@pytest.fixture
def questions(tmp_path: Path) -> list[Question]:
    return tiny_questions(tmp_path / "photographs", 12)


def knows(questions: list[Question], wrong: set[str], name: str = "scripted") -> ScriptedModel:
    def letter(prompt: Prompt) -> str:
        text = "".join(part.text for part in prompt.parts if part.kind == "text")
        question = next(q for q in questions if f"Question: {q.text}\n" in text)
        return LETTERS[(question.answer + (question.id in wrong)) % len(question.options)]

    def respond(prompt: Prompt) -> str:
        return write_response(Trajectory(entry="Scratch", why="", reasoning="So.", answer=LETTERS.index(letter(prompt))))

    return ScriptedModel(respond, lambda p, option: 0.0 if option.strip() == letter(p) else -5.0, name=name)


def test_differences_by_hand(questions: list[Question], tmp_path: Path) -> None:
    base, protocol = tiny_base(), EvalProtocol()
    evaluate(knows(questions, {"q0", "q1", "q2"}, "one"), questions, base, protocol, tmp_path / "a")
    evaluate(knows(questions, {"q2"}, "two"), questions, base, protocol, tmp_path / "b")
    found = compare(tmp_path / "a", tmp_path / "b")
    assert found.average.value == pytest.approx(100 * 2 / 12)
    assert (found.only_first, found.only_second) == (0, 2) and found.p_value == pytest.approx(0.5)
    assert found.average.low >= 0, "q0 and q1 share an image: a draw has both or neither, never less than none"
    assert compare(tmp_path / "b", tmp_path / "a").average.value == pytest.approx(-found.average.value)
    same = compare(tmp_path / "a", tmp_path / "a")
    assert (same.average.value, same.average.low, same.average.high, same.p_value) == (0, 0, 0, 1)


def test_trainings_are_taken_together_by_hand(questions: list[Question], tmp_path: Path) -> None:
    base, protocol = tiny_base(), EvalProtocol()
    for name, wrong in (("a0", {"q0", "q1", "q2"}), ("b0", {"q2"}), ("a1", {"q4"}), ("b1", {"q4", "q5"})):
        evaluate(knows(questions, wrong, name), questions, base, protocol, tmp_path / name)
    a0, b0, a1, b1 = (tmp_path / name for name in ("a0", "b0", "a1", "b1"))
    found = compare(a0, b0, also=[(a1, b1)])
    assert found.trainings == pytest.approx((100 * 2 / 12, -100 / 12))
    assert found.average.value == pytest.approx(sum(found.trainings) / 2)
    assert (found.only_first, found.only_second, found.questions, found.average.n) == (1, 2, 12, 12)
    assert found.p_value is None, "two answers to one question are not independent"
    alone, twice = compare(a0, b0), compare(a0, b0, also=[(a0, b0)])
    assert (twice.average, twice.subtasks, twice.detection) == (alone.average, alone.subtasks, alone.detection), (
        "an image is drawn with its answers under every training: the same one twice tells nothing more"
    )
    assert alone.trainings == ()


def test_trainings_of_unlike_protocols_are_not_taken_together(questions: list[Question], tmp_path: Path) -> None:
    for name, protocol, asked in (
        ("a", EvalProtocol(), questions),
        ("b", EvalProtocol(context="category"), questions),
        ("c", EvalProtocol(), questions[:-1]),
    ):
        evaluate(knows(questions, {"q1"}, name), asked, tiny_base(), protocol, tmp_path / name)
        evaluate(knows(questions, set(), name + "2"), asked, tiny_base(), protocol, tmp_path / f"{name}2")
    first = (tmp_path / "a", tmp_path / "a2")
    with pytest.raises(InputError, match="differ in context"):
        compare(*first, also=[(tmp_path / "b", tmp_path / "b2")])
    with pytest.raises(InputError, match="questions are not the same"):
        compare(*first, also=[(tmp_path / "c", tmp_path / "c2")])
    told = CliRunner().invoke(app, ["compare", *map(str, first), str(tmp_path / "b")])
    assert isinstance(told.exception, InputError) and "two by two" in str(told.exception)
    told = CliRunner().invoke(app, ["compare", *map(str, (*first, *first))])
    assert told.exit_code == 0 and "mean of 2 trainings" in told.output and "McNemar" not in told.output, told.output


@pytest.mark.parametrize("counts", [(0, 0), (3, 3), (1, 9), (12, 2), (400, 500)])
def test_mcnemar_is_the_exact_binomial_test(counts: tuple[int, int]) -> None:
    a, b = counts
    first = [True] * a + [False] * b + [True] * 5
    second = [False] * a + [True] * b + [True] * 5
    n = a + b
    by_hand = min(1.0, 2 * sum(comb(n, i) for i in range(min(a, b) + 1)) / 2**n) if n else 1.0
    assert metrics.mcnemar(first, second) == (a, b, pytest.approx(by_hand))
    scipy = pytest.importorskip("scipy.stats")
    if n:
        assert metrics.mcnemar(first, second)[2] == pytest.approx(scipy.binomtest(a, n).pvalue)


def test_unlike_protocols_are_refused_unless_meant(questions: list[Question], tmp_path: Path) -> None:
    model = knows(questions, set())
    evaluate(model, questions, tiny_base(), EvalProtocol(), tmp_path / "a")
    evaluate(model, questions, tiny_base(), EvalProtocol(context="category"), tmp_path / "b")
    evaluate(model, questions, tiny_base(), EvalProtocol(context="category", shots=0), tmp_path / "c")
    evaluate(model, questions[:-1], tiny_base(), EvalProtocol(), tmp_path / "d")
    with pytest.raises(InputError, match="--differ context"):
        compare(tmp_path / "a", tmp_path / "b")
    assert compare(tmp_path / "a", tmp_path / "b", differ=["context"]).differ == ("context",)
    with pytest.raises(InputError, match="shots"):
        compare(tmp_path / "a", tmp_path / "c", differ=["context"])
    with pytest.raises(InputError, match="do not differ in shots"):
        compare(tmp_path / "a", tmp_path / "b", differ=["context", "shots"])
    with pytest.raises(InputError, match="questions are not the same"):
        compare(tmp_path / "a", tmp_path / "d")
    with pytest.raises(InputError, match="nothing is called"):
        compare(tmp_path / "a", tmp_path / "b", differ=["colour"])


def test_merged_shards_are_one_process(questions: list[Question], tmp_path: Path) -> None:
    model, protocol = knows(questions, {"q3"}), EvalProtocol(answering="reason")
    whole = evaluate(model, questions, tiny_base(), protocol, tmp_path / "whole")
    parts = [tmp_path / f"part{i}" for i in (3, 1, 2)]
    for folder in parts:
        evaluate(model, questions, tiny_base(), protocol, folder, shard=(int(folder.name[-1]), 3))
    assert merge(parts, tmp_path / "all") == whole
    for name in ("predictions.jsonl", "report.json"):
        assert (tmp_path / "all" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(InputError, match="missing: 3"):
        merge(parts[1:], tmp_path / "x")
    with pytest.raises(InputError, match="is shard 1"):
        merge([parts[1], parts[1]], tmp_path / "x")
    with pytest.raises(RunError):
        evaluate(model, questions, tiny_base(), protocol, parts[0], shard=(1, 3))
    assert not (tmp_path / "x").exists()


def test_the_mean_of_sampled_probabilities_decides(questions: list[Question], tmp_path: Path) -> None:
    said = iter("AAB" * 100)
    model = ScriptedModel(lambda p: f"<answer>{next(said)}</answer>")
    asked = [q.model_copy(update={"options": ("one", "two"), "answer": 0}) for q in questions]
    report = evaluate(model, asked, tiny_base(), EvalProtocol(answering="reason@3"), tmp_path / "e")
    rows = list(read_records(tmp_path / "e" / "predictions.jsonl", Prediction))
    # The scripted model repeats one response for all k, so each question's answer is the next of A, A, B.
    assert [row.answer for row in rows] == [0, 0, 1] * 4 and report.protocol.trajectories == 3
    assert all(row.raw.count("<answer>") == 3 for row in rows)


def _slowly(questions: list[Question], out: Path) -> None:
    def logprob(prompt: Prompt, option: str) -> float:
        time.sleep(0.001)
        text = "".join(part.text for part in prompt.parts if part.kind == "text")
        return -float(sum(map(ord, text + option.strip())) % 7)

    evaluate(ScriptedModel(lambda p: "", logprob), questions, tiny_base(), EvalProtocol(), out)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def test_twenty_kills_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcr2ad.stages.asking.ASKED_TOGETHER", 2)  # so that kills fall between as well as within calls
    questions = tiny_questions(tmp_path / "p", 360)
    fork = multiprocessing.get_context("fork")
    _slowly(questions, tmp_path / "whole")
    file, rng, lengths = tmp_path / "killed" / "predictions.jsonl", random.Random(0), [0]
    for kill in range(20):
        process = fork.Process(target=_slowly, args=(questions, tmp_path / "killed"))
        process.start()
        # Three of four rounds get somewhere, however busy the machine is; the others are killed at the start.
        while kill % 4 and process.exitcode is None and _size(file) <= max(lengths):
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.02))
        assert process.exitcode is None, "it is killed before it is done"
        process.kill()
        process.join()
        lengths.append(_size(file))
    _slowly(questions, tmp_path / "killed")
    assert len(set(lengths)) > 15, "the kills fell into different places"
    for name in ("predictions.jsonl", "report.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert EvalReport.model_validate_json((tmp_path / "killed" / "report.json").read_text()).questions == 360
