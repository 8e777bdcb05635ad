"""The endpoint backend against a server that speaks the protocol over real HTTP; what it says is scripted."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dcr2ad.errors import CannotScoreError, ModelError
from dcr2ad.models.base import letter_probabilities, open_model
from dcr2ad.types import ImagePart, Prompt, Sampling, TextPart


class _Server(ThreadingHTTPServer):
    requests: list[dict[str, Any]]
    logprobs: bool
    fail: int


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        if self.server.fail:
            self._reply(self.server.fail, {"error": {"message": "this model takes no images", "type": "bad"}})
            return
        content = {"role": "assistant", "content": " scratch</knowledge><answer>B</answer>"}
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "message": content}
        if body.get("logprobs") and self.server.logprobs:
            top = [{"token": t, "logprob": p, "bytes": None} for t, p in (("B", -0.2), (" A", -2.0), ("the", -3.0))]
            choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
        usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
        self._reply(
            200, {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
        )

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[_Server]:
    made = _Server(("127.0.0.1", 0), _Handler)
    made.requests, made.logprobs, made.fail = [], True, 0
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


def _spec(server: _Server) -> str:
    return f"openai:m@http://127.0.0.1:{server.server_address[1]}/v1"


def _prompt(tmp_path: Path, opening: str = "") -> Prompt:
    Image.new("RGB", (1024, 256), "red").save(tmp_path / "wide.png")
    return Prompt(parts=(TextPart(text="What?"), ImagePart(path=str(tmp_path / "wide.png"))), opening=opening)


def test_generation_sends_images_and_opening(server: _Server, tmp_path: Path) -> None:
    model = open_model(_spec(server))
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
    a, b = letter_probabilities(open_model(_spec(server)), [_prompt(tmp_path, "<answer>")], [2])[0]
    assert a + b == pytest.approx(1) and b == pytest.approx(1 / (1 + 2.718281828 ** (-2.0 + 0.2)), abs=1e-9)


def test_a_server_that_cannot_score_is_named(server: _Server, tmp_path: Path) -> None:
    server.logprobs = False
    with pytest.raises(CannotScoreError, match="gives no log-probabilities"):
        letter_probabilities(open_model(_spec(server)), [_prompt(tmp_path)], [2])
    with pytest.raises(CannotScoreError, match="cannot score the continuation"):
        open_model(_spec(server)).score([_prompt(tmp_path)], [["Surface scratch:"]])


def test_refusals_and_dead_servers_are_one_line(server: _Server, tmp_path: Path) -> None:
    server.fail = 400
    failed = open_model(_spec(server)).generate([_prompt(tmp_path)], Sampling())[0][0]
    assert failed.status == "failed" and "takes no images" in failed.error
    with pytest.raises(ModelError, match="takes no images"):
        letter_probabilities(open_model(_spec(server)), [_prompt(tmp_path)], [2])


def test_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openai

    from dcr2ad.models.endpoint import EndpointModel

    client = openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0, timeout=2)
    model = EndpointModel("m", "http://127.0.0.1:9/v1", client=client)
    assert "no server answers" in model.generate([_prompt(tmp_path)], Sampling())[0][0].error
