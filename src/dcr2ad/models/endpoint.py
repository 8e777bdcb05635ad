"""Any OpenAI-compatible server behind `generate` and `score`.

Reads prompts and image files; talks HTTP through the `openai` client, which owns retries, back-off and time-outs. A response
is opened by sending its beginning as the assistant's turn (vLLM's ``continue_final_message``). A server that gives no
log-probabilities cannot score, and the error says so. Knows nothing about questions or stages.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar

from dcr2ad.errors import CannotScoreError, Dcr2adError, ModelError, UnknownNameError
from dcr2ad.images import load_image
from dcr2ad.models.base import ModelInfo
from dcr2ad.types import Completion, ImagePart, OptionScores, Prompt, Sampling

MAX_SIDE = 512
"""Images are scaled to this longest side, in pixels (MMAD: images of API models at most 512)."""
CONCURRENCY = 8
TOP_LOGPROBS = 20
_FLOOR = -30.0
"""Log-probability given to an option outside the server's top list: the list's least would overstate it."""

T = TypeVar("T")


class EndpointModel:
    """A model behind an OpenAI-compatible server.

    Args:
        model: the server's name of the model.
        url: base address, for example ``http://127.0.0.1:8000/v1``.
        client: an `openai.OpenAI` client; made from `url` and OPENAI_API_KEY when left out.
    """

    def __init__(self, model: str, url: str, *, client: Any = None) -> None:
        self._model = model
        self._url = url
        self._given = client

    @classmethod
    def from_spec(cls, spec: str) -> EndpointModel:
        """Open ``openai:MODEL@URL``; without ``@URL`` the environment variable OPENAI_BASE_URL is used.

        Raises:
            UnknownNameError: no model, or no address.
        """
        model, _, url = spec.removeprefix("openai:").partition("@")
        url = url or os.environ.get("OPENAI_BASE_URL", "")
        if not model or not url.startswith(("http://", "https://")):
            raise UnknownNameError(f"{spec!r} names no model at an address", "Use openai:MODEL@http://HOST:PORT/v1")
        return cls(model, url)

    @property
    def info(self) -> ModelInfo:
        """What the model is; its digest is the server's address and name, since the weights cannot be seen."""
        return ModelInfo(name=f"openai:{self._model}", digest=f"{self._model}@{self._url}", backend="openai", can_score=True)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """See `ChatModel.generate`; a failing request is a ``failed`` completion with the server's words."""
        return self._parallel(lambda prompt: self._complete(prompt, sampling), prompts)

    def score(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[OptionScores]:
        """Log-probabilities of one-token continuations, such as option letters, from one generated token.

        Raises:
            CannotScoreError: a continuation is longer than a token, or the server gives no log-probabilities.
            ModelError: the server cannot be reached.
        """
        for listed in options:
            for option in listed:
                if len(option.strip()) > 1:
                    raise CannotScoreError(
                        f"an endpoint cannot score the continuation {option!r}", "Use a model that runs in process, or letters"
                    )
        return self._parallel(lambda job: self._first_token(*job), list(zip(prompts, options, strict=True)))

    def _complete(self, prompt: Prompt, sampling: Sampling) -> list[Completion]:
        try:
            reply = self._request(
                prompt,
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                n=sampling.n,
                seed=sampling.seed,
            )
        except Dcr2adError as error:
            return [Completion(text="", status="failed", error=str(error))] * sampling.n
        found = []
        for choice in reply.choices:
            refused = getattr(choice.message, "refusal", None)
            status = "refused" if refused or choice.finish_reason == "content_filter" else "stop"
            found.append(
                Completion(
                    text=choice.message.content or refused or "",
                    status="length" if choice.finish_reason == "length" else status,
                    prompt_tokens=reply.usage.prompt_tokens if reply.usage else 0,
                    new_tokens=reply.usage.completion_tokens if reply.usage else 0,
                )
            )
        return found

    def _first_token(self, prompt: Prompt, options: Sequence[str]) -> OptionScores:
        reply = self._request(prompt, max_tokens=1, temperature=0.0, logprobs=True, top_logprobs=TOP_LOGPROBS)
        listed = reply.choices[0].logprobs
        if listed is None or not listed.content:
            raise CannotScoreError(f"the server at {self._url} gives no log-probabilities", "Use --answering reason with it")
        known = {item.token: item.logprob for item in listed.content[0].top_logprobs}
        return OptionScores(
            logprobs=tuple(max(known.get(option, _FLOOR), _FLOOR) for option in options), tokens=(1,) * len(options)
        )

    def _request(self, prompt: Prompt, **settings: Any) -> Any:
        import openai

        messages: list[dict[str, Any]] = [{"role": "user", "content": [_content(part) for part in prompt.parts]}]
        if prompt.opening:
            messages.append({"role": "assistant", "content": prompt.opening})
            settings["extra_body"] = {"continue_final_message": True, "add_generation_prompt": False}
        try:
            return self._client.chat.completions.create(model=self._model, messages=messages, **settings)
        except openai.APIConnectionError:
            raise ModelError(f"no server answers at {self._url}", "Start it, or check the address") from None
        except openai.APIStatusError as error:
            words = str(error.message).splitlines()[0][:300]
            raise ModelError(f"the server at {self._url} refused the request ({error.status_code}): {words}") from None

    @cached_property
    def _client(self) -> Any:
        if self._given is not None:
            return self._given
        import openai

        return openai.OpenAI(base_url=self._url, api_key=os.environ.get("OPENAI_API_KEY", "none"), max_retries=4, timeout=120.0)

    def _parallel(self, work: Callable[[Any], T], jobs: Sequence[Any]) -> list[T]:
        with ThreadPoolExecutor(min(CONCURRENCY, max(1, len(jobs)))) as pool:
            return list(pool.map(work, jobs))


def _content(part: Any) -> dict[str, Any]:
    if not isinstance(part, ImagePart):
        return {"type": "text", "text": part.text}
    image = load_image(part.path)
    scale = MAX_SIDE / max(image.size)
    if scale < 1:
        image = image.resize((max(1, math.floor(image.width * scale)), max(1, math.floor(image.height * scale))))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"}}
