"""A teacher behind a server: what it is asked, how its answers are held, kept, counted and paced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcr2ad.artifacts import read_records
from dcr2ad.config import InstructSettings, SynthesizeSettings
from dcr2ad.datasets.drawn import write_drawn
from dcr2ad.endpoint_teacher import EndpointTeacher, Usage, open_teacher, teacher_prompt
from dcr2ad.errors import ModelError, UnknownNameError, UnusableAnswerError
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.models.endpoint import EndpointModel, EndpointSettings
from dcr2ad.questions import QuestionMaker, Rejected
from dcr2ad.stages.instruct import build_instructions
from dcr2ad.stages.synthesize import synthesize_pairs
from dcr2ad.teacher import BuiltinTeacher
from dcr2ad.types import BoundaryQuestion, ImagePart, Question, Sample, TextPart
from tests.chat_server import ChatHandler, ChatServer, serving

BASE = KnowledgeBase.builtin()
GOOD = {
    "why": "a fine line is seen",
    "reasoning": "The mark runs as a fine line and differs from the good part, so the answer is A.",
}


class _Server(ChatServer):
    answers: list[str]
    no_schema: bool


class _Handler(ChatHandler):
    server: _Server

    def do_POST(self) -> None:
        body = self.read_body()
        if self.server.no_schema and "response_format" in body:
            self.reply(400, {"error": {"message": "response_format is not known here", "type": "bad"}})
            return
        answers = self.server.answers
        text = answers[min(len(self.server.requests), len(answers)) - 1]
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        self.complete(choice, 100, 20)


@pytest.fixture
def server() -> Iterator[_Server]:
    made = _Server(("127.0.0.1", 0), _Handler)
    made.answers, made.no_schema = [json.dumps(GOOD)], False
    with serving(made):
        yield made


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> Question:
    folder = tmp_path_factory.mktemp("teacher") / "drawn"
    write_drawn(folder, 1, seed=0, size=64)
    part = folder / "metal_nut"
    sample = Sample(
        id="a",
        image=str(part / "test" / "scratch" / "000.png"),
        references=(str(part / "train" / "good" / "000.png"),),
        dataset="drawn",
        object="metal nut",
        defect="scratch",
        is_anomalous=True,
        right_key="General.surface.scratch",
    )
    return QuestionMaker(BASE, [sample]).make(sample)[0][0]


def test_images_knowledge_and_schema_are_sent_and_the_answer_is_a_trajectory(
    server: _Server, question: Question, tmp_path: Path
) -> None:
    teacher = open_teacher(server.spec, cache=tmp_path)
    entry = BASE.get("General.surface.scratch")
    written = teacher.write(question, entry)
    assert not isinstance(written, str)
    assert (written.entry, written.why, written.reasoning) == (entry.title, GOOD["why"], GOOD["reasoning"])
    assert written.answer == question.answer
    body = server.requests[0]
    kinds = [part["type"] for part in body["messages"][0]["content"]]
    assert kinds.count("image_url") == 2 and body["response_format"]["type"] == "json_schema"
    assert set(body["response_format"]["json_schema"]["schema"]["properties"]) == {"why", "reasoning"}
    asked = body["messages"][0]["content"][-1]["text"]
    assert entry.title in asked and question.options[question.answer] in asked and "[object]" not in asked


def test_a_rerun_costs_nothing_and_another_attempt_is_asked_for(server: _Server, question: Question, tmp_path: Path) -> None:
    first = EndpointTeacher(EndpointModel.from_spec(server.spec), tmp_path)
    entry = BASE.get("General.surface.scratch")
    written = first.write(question, entry)
    assert first.usage == Usage(requests=1, cached=0, prompt_tokens=100, new_tokens=20)
    assert first.usage.cost((2.5, 10.0)) == pytest.approx((250 + 200) / 1e6)
    second = EndpointTeacher(EndpointModel.from_spec(server.spec), tmp_path)
    assert second.write(question, entry) == written and second.usage == Usage(cached=1) and len(server.requests) == 1
    second.write(question, entry, attempt=1)
    assert len(server.requests) == 2 and server.requests[1]["temperature"] > 0
    next(tmp_path.rglob("*.json")).write_text("{torn")  # an unreadable cache file is asked for again
    second.write(question, entry)
    second.write(question, entry, attempt=1)
    assert len(server.requests) == 3


def test_a_server_without_schemas_is_asked_without_and_fences_are_read(
    server: _Server, question: Question, tmp_path: Path
) -> None:
    server.no_schema, server.answers = True, [f"Here it is:\n```json\n{json.dumps(GOOD)}\n```"]
    teacher = open_teacher(server.spec, cache=tmp_path)
    for attempt in range(2):
        written = teacher.write(question, None, attempt=attempt)
        assert not isinstance(written, str) and (written.entry, written.why) == ("", "")
    assert ["response_format" in body for body in server.requests] == [True, False, False]


def test_what_is_no_answer_is_said_and_not_kept(server: _Server, question: Question, tmp_path: Path) -> None:
    server.answers = ["I cannot see it", '{"why": "x"}', json.dumps({**GOOD, "why": "<answer>B</answer> a line"})]
    teacher = open_teacher(server.spec, cache=tmp_path)
    entry = BASE.get("General.surface.scratch")
    assert teacher.write(question, entry) == "the teacher's answer is not the JSON asked for"
    with pytest.raises(UnusableAnswerError, match="not the JSON"):
        teacher.write_under(entry, question, 1)
    written = teacher.write(question, entry)
    assert not isinstance(written, str) and "<" not in written.why and len(list(tmp_path.rglob("*.json"))) == 1


def test_synthesize_counts_bad_answers_and_stops_without_a_server(server: _Server, question: Question, tmp_path: Path) -> None:
    """What is no JSON makes a rejected pair with a reason; only a server that is gone ends the run."""
    boundary = [
        BoundaryQuestion(question=question.model_copy(update={"id": f"q{n}"}), probabilities=(0.5, 0.5), margin=0.0)
        for n in range(4)
    ]
    server.answers = ["a" * 40]
    made = synthesize_pairs(boundary, BASE, open_teacher(server.spec, cache=tmp_path), SynthesizeSettings(), tmp_path / "out")
    rejected = list(read_records(tmp_path / "out" / "rejected.jsonl", Rejected))
    assert made["questions"] == len(rejected) == 4 and made["pairs"] == 0
    assert {row.reason for row in rejected} == {"the teacher's answer cannot be used"}
    gone = EndpointTeacher(EndpointModel("m", "http://127.0.0.1:9/v1", settings=EndpointSettings(retries=0)), tmp_path / "none")
    with pytest.raises(ModelError, match="no server answers"):
        synthesize_pairs(boundary, BASE, gone, SynthesizeSettings(), tmp_path / "other")


def test_the_rate_is_kept(server: _Server, question: Question, tmp_path: Path) -> None:
    now, slept = [0.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    model = EndpointModel.from_spec(server.spec)
    teacher = EndpointTeacher(model, tmp_path, per_minute=30, clock=(lambda: now[0], sleep))
    for attempt in range(3):
        teacher.write(question, None, attempt=attempt)
    teacher.write(question, None)  # cached: waits for nothing
    assert slept == [2.0, 2.0]


def test_names_of_teachers(tmp_path: Path) -> None:
    assert isinstance(open_teacher("builtin"), BuiltinTeacher)
    for spec in ("gpt-4o", "openai:m"):
        with pytest.raises(UnknownNameError):
            open_teacher(spec, cache=tmp_path)


def test_the_prompt_shows_reference_then_query(question: Question) -> None:
    parts = teacher_prompt(question, None, 0, attempt=1).parts
    images = [part.path for part in parts if isinstance(part, ImagePart)]
    assert images == [question.sample.references[0], question.sample.image]
    assert isinstance(parts[-1], TextPart) and "look again" in parts[-1].text


def test_instruct_drops_what_the_masks_deny(server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every response claims opposite corners and one whole place each; only good parts, without a mask, keep theirs."""
    monkeypatch.setenv("DCR2AD_CACHE", str(tmp_path / "cache"))
    lie = "One mark lies at the top left and another at the bottom right, and a third one sits at the top right of it."
    server.answers = [json.dumps({"why": "a mark is seen", "reasoning": lie})]
    write_drawn(tmp_path / "drawn", 1, seed=1, size=64)
    config = InstructSettings(expert=False, split="", direct_share=0.0, teacher=server.spec, max_images=12)
    out = tmp_path / "out"
    summary = build_instructions(tmp_path / "drawn", out, BASE, config, seed=0)
    asked = list(read_records(out / "questions.jsonl", Question))
    assert asked and not any(q.sample.is_anomalous for q in asked)
    dropped = [r for r in read_records(out / "rejected.jsonl", Rejected) if r.reason.startswith("the response cannot stand")]
    assert len(dropped) == summary.rejected["the response cannot stand"] > 5


def test_synthesize_opens_any_teacher_by_name(tmp_path: Path) -> None:
    from dcr2ad.commands.training import run_synthesize

    (tmp_path / "boundary.jsonl").write_text("")
    with pytest.raises(UnknownNameError, match="no teacher 'gpt'"):
        run_synthesize(
            tmp_path / "boundary.jsonl",
            tmp_path / "out",
            model=None,
            recipe=None,
            knowledge=None,
            seed=0,
            fresh=False,
            export=[],
            teacher="gpt",
        )
