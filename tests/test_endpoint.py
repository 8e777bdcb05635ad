"""The endpoint backend against a server that speaks the protocol over real HTTP; what it says is scripted."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dcr2ad.artifacts import read_records
from dcr2ad.errors import CannotScoreError, ModelError, RequestError, UnknownNameError
from dcr2ad.models.base import letter_probabilities, open_model
from dcr2ad.models.endpoint import EndpointModel
from dcr2ad.stages.evaluate import evaluate
from dcr2ad.types import EvalProtocol, ImagePart, Prediction, Prompt, Sampling, TextPart
from tests.chat_server import ChatHandler, ChatServer, serving
from tests.tiny import tiny_base, tiny_questions

LOCK = threading.Lock()


class _Server(ChatServer):
    logprobs: bool
    fail: int
    refuses: str
    busy: int
    hangs_up: bool
    obeys: str
    at_once: int
    most_at_once: int


class _Handler(ChatHandler):
    server: _Server

    def do_POST(self) -> None:
        body = self.read_body()
        if self.server.hangs_up:
            self.close_connection = True
            return
        if self.server.busy:
            self.server.busy -= 1
            self.reply(429, {"error": {"message": "busy"}}, {"Retry-After": "0.3"})
            return
        with LOCK:
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        time.sleep(0.02)
        with LOCK:
            self.server.at_once -= 1
        fail = self.server.fail or (400 if self.server.refuses and self.server.refuses in str(body) else 0)
        if fail:
            self.reply(fail, {"error": {"message": "this model takes no images", "type": "bad"}})
            return
        content = {"role": "assistant", "content": " scratch</knowledge><answer>B</answer>"}
        if self.server.obeys and self.server.obeys in body:
            content["content"] = '{"answer": "Dent"}' if self.server.obeys == "response_format" else "Dent"
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "message": content}
        if body.get("logprobs") and self.server.logprobs:
            top = [{"token": t, "logprob": p, "bytes": None} for t, p in (("B", -0.2), (" A", -2.0), ("the", -3.0))]
            choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
        self.complete(choice, 7, 5)


@pytest.fixture
def server() -> Iterator[_Server]:
    made = _Server(("127.0.0.1", 0), _Handler)
    made.logprobs, made.fail, made.busy, made.refuses = True, 0, 0, ""
    made.hangs_up, made.obeys, made.at_once, made.most_at_once = False, "", 0, 0
    with serving(made):
        yield made


def _prompt(tmp_path: Path, opening: str = "") -> Prompt:
    Image.new("RGB", (1024, 256), "red").save(tmp_path / "wide.png")
    return Prompt(parts=(TextPart(text="What?"), ImagePart(path=str(tmp_path / "wide.png"))), opening=opening)


def test_generation_sends_images_and_opening(server: _Server, tmp_path: Path) -> None:
    model = open_model(server.spec)
    written = model.generate([_prompt(tmp_path, "<knowledge>")] * 3, Sampling(max_new_tokens=9))
    assert [c[0].text for c in written] == [" scratch</knowledge><answer>B</answer>"] * 3
    assert (written[0][0].prompt_tokens, written[0][0].new_tokens) == (7, 5)
    request = server.requests[0]
    text, picture = request["messages"][0]["content"]
    assert text == {"type": "text", "text": "What?"}
    data = picture["image_url"]["url"].removeprefix("data:image/png;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (512, 128)
    assert request["messages"][1] == {"role": "assistant", "content": "<knowledge>"}
    assert request["continue_final_message"] is True and request["max_tokens"] == 9


def test_letters_are_scored_from_one_token(server: _Server, tmp_path: Path) -> None:
    a, b = letter_probabilities(open_model(server.spec), [_prompt(tmp_path, "<answer>")], [2])[0]
    assert a + b == pytest.approx(1) and b == pytest.approx(1 / (1 + 2.718281828 ** (-2.0 + 0.2)), abs=1e-9)


def test_a_server_that_cannot_score_is_named(server: _Server, tmp_path: Path) -> None:
    server.logprobs = False
    with pytest.raises(CannotScoreError, match="gives no log-probabilities"):
        letter_probabilities(open_model(server.spec), [_prompt(tmp_path)], [2])
    with pytest.raises(CannotScoreError, match="cannot score a continuation"):
        open_model(server.spec).score([_prompt(tmp_path)], [["Surface scratch:"]])


def test_refusals_and_dead_servers_are_one_line(server: _Server, tmp_path: Path) -> None:
    server.fail = 400
    failed = open_model(server.spec).generate([_prompt(tmp_path)], Sampling())[0][0]
    assert failed.status == "failed" and "takes no images" in failed.error
    with pytest.raises(ModelError, match="takes no images"):
        letter_probabilities(open_model(server.spec), [_prompt(tmp_path)], [2])


def test_a_refused_request_is_a_failed_answer_and_the_rest_go_on(server: _Server, tmp_path: Path) -> None:
    questions = [
        q.model_copy(update={"text": "Is this refused?" if number == 3 else q.text})
        for number, q in enumerate(tiny_questions(tmp_path / "p", 6))
    ]
    server.refuses = "Is this refused?"
    report = evaluate(open_model(server.spec), questions, tiny_base(), EvalProtocol(expert=False), tmp_path / "out")
    made = {p.question_id: p for p in read_records(tmp_path / "out" / "predictions.jsonl", Prediction)}
    assert (report.questions, report.answered, report.status_counts) == (6, 5, {"answered": 5, "failed": 1})
    assert made[questions[3].id].status == "failed" and "takes no images" in made[questions[3].id].error
    server.refuses = "Question:"
    with pytest.raises(ModelError, match="takes no images"):  # all of them: nothing is recorded, and the command says why
        evaluate(open_model(server.spec), questions, tiny_base(), EvalProtocol(expert=False), tmp_path / "all")
    assert not (tmp_path / "all" / "predictions.jsonl").read_text()
    server.fail = 401
    with pytest.raises(ModelError) as raised:
        letter_probabilities(open_model(server.spec), [_prompt(tmp_path)], [2])
    assert not isinstance(raised.value, RequestError), "no access concerns every request"


def test_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openai

    client = openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0, timeout=2)
    model = EndpointModel("m", "http://127.0.0.1:9/v1", client=client)
    with pytest.raises(ModelError, match="no server answers"):
        model.generate([_prompt(tmp_path)], Sampling())


def test_a_server_that_dies_ends_the_evaluation_and_its_next_run_asks_what_is_left(server: _Server, tmp_path: Path) -> None:
    questions = tiny_questions(tmp_path / "p", 70)  # more than are asked together
    protocol, out = EvalProtocol(expert=False, answering="reason"), tmp_path / "out"
    model = open_model(f"{server.spec}?retries=0&concurrency=1")

    def die_after_one(done: int, total: int) -> None:
        assert done < total
        server.hangs_up = True

    with pytest.raises(ModelError, match="no server answers"):
        evaluate(model, questions, tiny_base(), protocol, out, progress=die_after_one)
    before = list(read_records(out / "predictions.jsonl", Prediction))
    assert 0 < len(before) < len(questions) and {p.status for p in before} == {"answered"}
    server.hangs_up, asked = False, len(server.requests)
    report = evaluate(model, questions, tiny_base(), protocol, out)
    assert report.status_counts == {"answered": len(questions)}
    again, answered = str(server.requests[asked:]), {p.question_id for p in before}
    assert all((q.text in again) == (q.id not in answered) for q in questions), "what was answered is not asked again"


def test_a_busy_server_is_waited_for_as_long_as_it_says(server: _Server, tmp_path: Path) -> None:
    server.busy = 2
    start = time.monotonic()
    done = open_model(server.spec).generate([_prompt(tmp_path)], Sampling())[0][0]
    assert done.status == "stop" and len(server.requests) == 3
    assert time.monotonic() - start >= 0.6
    server.busy = 1
    failed = open_model(f"{server.spec}?retries=0").generate([_prompt(tmp_path)], Sampling())[0][0]
    assert failed.status == "failed" and "429" in failed.error


def test_requests_run_side_by_side_up_to_the_limit_and_keep_their_order(server: _Server, tmp_path: Path) -> None:
    open_model(f"{server.spec}?concurrency=3").generate([_prompt(tmp_path)] * 12, Sampling())
    assert 1 < server.most_at_once <= 3


def test_a_server_that_does_not_answer_in_time_is_named(server: _Server, tmp_path: Path) -> None:
    done = open_model(f"{server.spec}?timeout=0.001&retries=0").generate([_prompt(tmp_path)], Sampling())[0][0]
    assert done.status == "failed" and "gave no answer in 0.001 s" in done.error


@pytest.mark.parametrize("form", ["structured_outputs", "guided_choice", "response_format"])
def test_a_choice_is_held_to_its_options_by_the_form_the_server_knows(server: _Server, tmp_path: Path, form: str) -> None:
    """Servers ignore fields they do not know and write freely; that is noticed, and the next form is tried."""
    server.obeys = form
    model = open_model(server.spec)
    assert isinstance(model, EndpointModel)
    assert model.choose([_prompt(tmp_path)], [["Scratch", "Dent"]]) == [1]
    asked = len(server.requests)
    assert model.choose([_prompt(tmp_path)], [["Scratch", "Dent"]]) == [1] and len(server.requests) == asked + 1
    server.obeys = ""
    with pytest.raises(ModelError, match="cannot be held to given options"):
        EndpointModel.from_spec(server.spec).choose([_prompt(tmp_path)], [["Scratch", "Dent"]])


def test_images_keep_within_the_limits_asked_for(server: _Server, tmp_path: Path) -> None:
    Image.new("RGB", (2000, 1500)).save(tmp_path / "large.png")
    prompt = Prompt(parts=(ImagePart(path=str(tmp_path / "large.png")),))
    sizes = []
    for side in ("side=640", "side=0"):
        open_model(f"{server.spec}?{side}").generate([prompt], Sampling())
        url = server.requests[-1]["messages"][0]["content"][0]["image_url"]["url"]
        sizes.append(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size)
    assert sizes[0] == (640, 480)
    assert 0.99 * 1280 * 28 * 28 < sizes[1][0] * sizes[1][1] <= 1280 * 28 * 28


@pytest.mark.parametrize("query", ["speed=9", "concurrency=0", "timeout=soon"])
def test_settings_that_do_not_exist_are_one_line(query: str) -> None:
    with pytest.raises(UnknownNameError, match=query.split("=")[0]):
        open_model(f"openai:org/m@v2@http://127.0.0.1:9/v1?{query}")
