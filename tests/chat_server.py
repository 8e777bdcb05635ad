"""A server that speaks the chat protocol over real HTTP; tests script what it says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar


class ChatServer(ThreadingHTTPServer):
    """Keeps every request's body."""

    requests: list[dict[str, Any]]

    @property
    def spec(self) -> str:
        """Name of the model behind it."""
        return f"openai:m@http://127.0.0.1:{self.server_address[1]}/v1"


class ChatHandler(BaseHTTPRequestHandler):
    """Reads requests and writes replies; a test's `do_POST` decides which."""

    server: ChatServer

    def read_body(self) -> dict[str, Any]:
        """The request's body, which the server keeps."""
        body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        return body

    def complete(self, choice: dict[str, Any], prompt_tokens: int, completion_tokens: int) -> None:
        """Reply with one choice."""
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
        usage["total_tokens"] = prompt_tokens + completion_tokens
        self.reply(
            200, {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
        )

    def reply(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        """Reply with any JSON."""
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


Server = TypeVar("Server", bound=ChatServer)


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Serve until the block ends."""
    server.requests = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
