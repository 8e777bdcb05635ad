"""Any OpenAI-compatible server behind `generate` and `score`, and `choose` for servers that only write.

Reads prompts and image files; talks HTTP through the `openai` client, which owns retries, exponential back-off, Retry-After and
time-outs. A response is opened by sending its beginning as the assistant's turn (vLLM's ``continue_final_message``). A server
that gives no log-probabilities cannot score, and the error says so. Knows nothing about questions or stages.

    openai:MODEL@http://HOST:8000/v1?concurrency=16&timeout=300&side=0
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from pydantic import Field, ValidationError

from dcr2ad.errors import CannotScoreError, InputError, ModelError, RequestError, UnknownNameError
from dcr2ad.models.base import ModelInfo
from dcr2ad.models.wire import forget_urls, prompt_content
from dcr2ad.types import Completion, OptionScores, Prompt, Record, Sampling

TOP_LOGPROBS = 20
"""Log-probabilities asked for at a position: the most that OpenAI and an unconfigured vLLM give."""
_FLOOR = -30.0
"""Log-probability of a letter outside the server's list that is not asked for apart; the list's least would overstate it."""
_NEGLIGIBLE = math.log(1e-4)
"""Where the list's least lies below this, what is outside cannot move a probability by 1e-3, and is not asked for."""
_CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}

_FOR_ALL = (401, 403, 404)
"""Refusals that concern every request: no access, no such model."""

T = TypeVar("T")


class EndpointSettings(Record):
    """How to talk to a server; each can stand behind a ``?`` in the model's name."""

    concurrency: int = Field(default=8, ge=1, le=512)
    """Requests at a time."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds to wait for one answer."""
    retries: int = Field(default=4, ge=0, le=100)
    """Further tries after a failed connection, a time-out, 408, 409, 429 or a server's fault; Retry-After is obeyed."""
    side: int = Field(default=512, ge=0)
    """Longest side of an image in pixels (MMAD: at most 512 for API models); 0 keeps images up to 1280 * 28 * 28 pixels, the
    limit of Qwen2.5-VL's own processing under MMAD."""


class EndpointModel:
    """A model behind an OpenAI-compatible server.

    Args:
        model: the server's name of the model.
        url: base address, for example ``http://127.0.0.1:8000/v1``.
        settings: how to talk to it.
        client: an `openai.OpenAI` client; made from `url` and OPENAI_API_KEY when left out.
    """

    def __init__(self, model: str, url: str, *, settings: EndpointSettings | None = None, client: Any = None) -> None:
        self._model = model
        self._url = url
        self._settings = settings or EndpointSettings()
        self._given = client
        self._prompts_unscored = False
        self._form: Callable[[Sequence[str]], dict[str, Any]] | None = None
        self._takes_schema = True

    @classmethod
    def from_spec(cls, spec: str) -> EndpointModel:
        """Open ``openai:MODEL@URL``, settings behind a ``?``; without ``@URL`` the variable OPENAI_BASE_URL is used.

        Raises:
            UnknownNameError: no model, no address, or a setting that does not exist.
        """
        model, _, address = spec.removeprefix("openai:").rpartition("@") if "@" in spec else (spec[7:], "", "")
        url, _, query = (address or os.environ.get("OPENAI_BASE_URL", "")).partition("?")
        if not model or not url.startswith(("http://", "https://")):
            raise UnknownNameError(f"{spec!r} names no model at an address", "Use openai:MODEL@http://HOST:PORT/v1")
        try:
            settings = EndpointSettings.model_validate(dict(parse_qsl(query, keep_blank_values=True)))
        except ValidationError as error:
            first = error.errors()[0]
            known = ", ".join(EndpointSettings.model_fields)
            raise UnknownNameError(f"{spec!r}: {first['loc'][0]}: {first['msg']}", f"Settings are {known}") from None
        return cls(model, url, settings=settings)

    @property
    def info(self) -> ModelInfo:
        """What the model is; its digest is the server's address and name, since the weights cannot be seen."""
        return ModelInfo(name=f"openai:{self._model}", digest=f"{self._model}@{self._url}", backend="openai", can_score=True)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """See `ChatModel.generate`; a refused request is a ``failed`` completion with the server's words.

        Raises:
            ModelError: the server cannot be reached, gives no access, or has no such model: every request would fail.
        """
        return self._parallel(lambda prompt: self._complete(prompt, sampling), prompts)

    def forget(self, images: Collection[str]) -> None:
        """See `dcr2ad.models.base.Forgets`."""
        forget_urls(images, self._settings.side)

    def score(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[OptionScores]:
        """Log-probabilities of continuations.

        Letters (one character, with or without a blank before) are read from one generated token's list, which servers keep
        their prefix cache for; letters outside the list and longer continuations from the log-probabilities of the prompt
        with the continuation behind it, which vLLM gives (``prompt_logprobs``).

        Raises:
            CannotScoreError: the server gives no log-probabilities, or none of a prompt where a continuation needs them.
            RequestError: it refuses a request, or does not answer it in time.
            ModelError: it cannot be reached.
        """
        return self._parallel(lambda job: self._score(*job), list(zip(prompts, options, strict=True)))

    def choose(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[int]:
        """Index of the option the server writes when it may write nothing else; for servers that cannot score.

        Tried in order, and the first that works is kept: vLLM's ``structured_outputs``, its older ``guided_choice``, and a
        JSON schema (``response_format``). A server that ignores them and writes something else is noticed.

        Raises:
            ModelError: no form works, or the server cannot be reached.
        """
        return self._parallel(lambda job: self._choose(*job), list(zip(prompts, options, strict=True)))

    def _complete(self, prompt: Prompt, sampling: Sampling, **more: Any) -> list[Completion]:
        if sampling.stop:
            more["stop"] = [sampling.stop]
        try:
            reply = self._request(
                prompt,
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                n=sampling.n,
                seed=sampling.seed,
                **more,
            )
        except (InputError, RequestError) as error:
            return [Completion(text="", status="failed", error=str(error))] * sampling.n
        found = []
        for choice in reply.choices:
            refused = getattr(choice.message, "refusal", None)
            status = "refused" if refused or choice.finish_reason == "content_filter" else "stop"
            # A server that does not continue an opened response begins it again.
            text = (choice.message.content or refused or "").removeprefix(prompt.opening) if prompt.opening else ""
            found.append(
                Completion(
                    text=text or choice.message.content or refused or "",
                    status="length" if choice.finish_reason == "length" else status,
                    prompt_tokens=reply.usage.prompt_tokens if reply.usage else 0,
                    new_tokens=reply.usage.completion_tokens if reply.usage else 0,
                )
            )
        return found

    def write_json(self, prompt: Prompt, schema: dict[str, Any], *, max_tokens: int, seed: int = 0) -> Completion:
        """One answer held to a JSON schema where the server can (``response_format``); status as in `generate`.

        A server that refuses the schema is asked again without: the prompt says what to write.

        Raises:
            ModelError: as `generate`.
        """
        held = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        sampling = Sampling(max_new_tokens=max_tokens, temperature=0.7 if seed else 0.0, seed=seed)
        if self._takes_schema:
            done = self._complete(prompt, sampling, response_format=held)[0]
            if done.status != "failed" or ("(400)" not in done.error and "(422)" not in done.error):
                return done
            plain = self._complete(prompt, sampling)[0]
            self._takes_schema = plain.status == "failed"  # the schema was not what it minded
            return plain
        return self._complete(prompt, sampling)[0]

    def _score(self, prompt: Prompt, options: Sequence[str]) -> OptionScores:
        if not all(len(option.strip()) == 1 for option in options):
            return self._whole(prompt, options)
        listed = self._first_token(prompt)
        missing = [option for option in options if option not in listed]
        if missing and min(listed.values()) > _NEGLIGIBLE and not self._prompts_unscored:
            try:
                listed |= dict(zip(missing, self._whole(prompt, missing).logprobs, strict=True))
            except ModelError:
                self._prompts_unscored = True
        found = tuple(max(listed.get(option, _FLOOR), _FLOOR) for option in options)
        return OptionScores(logprobs=found, tokens=(1,) * len(options))

    def _first_token(self, prompt: Prompt) -> dict[str, float]:
        """Log-probabilities of the likeliest next tokens by their text; ids that share a text are summed."""
        reply = self._request(prompt, max_tokens=1, temperature=0.0, logprobs=True, top_logprobs=TOP_LOGPROBS)
        listed = reply.choices[0].logprobs
        if listed is None or not listed.content or not listed.content[0].top_logprobs:
            raise CannotScoreError(f"the server at {self._url} gives no log-probabilities", "Use --answering reason with it")
        found: dict[str, float] = {}
        for item in listed.content[0].top_logprobs:
            found[item.token] = math.log(math.exp(found.get(item.token, -math.inf)) + math.exp(max(item.logprob, -700.0)))
        return found

    def _whole(self, prompt: Prompt, options: Sequence[str]) -> OptionScores:
        """Scores of whole continuations: log p(opening + continuation) - log p(opening), over the tokens that differ."""
        start = self._prompt_tokens(prompt)
        sums, counts = [], []
        for option in options:
            full = self._prompt_tokens(prompt.model_copy(update={"opening": prompt.opening + option}))
            pairs = zip(start, full, strict=False)
            same = next((i for i, (a, b) in enumerate(pairs) if a[0] != b[0]), min(len(start), len(full)))
            sums.append(sum(value for _, value in full[same:]) - sum(value for _, value in start[same:]))
            counts.append(max(1, len(full) - len(start)))
        return OptionScores(logprobs=tuple(sums), tokens=tuple(counts))

    def _prompt_tokens(self, prompt: Prompt) -> list[tuple[str, float]]:
        """Each token of a prompt, opening included, with its log-probability; the first has none and counts 0."""
        reply = self._request(prompt, max_tokens=1, temperature=0.0, more={"prompt_logprobs": 0})
        listed = (reply.model_extra or {}).get("prompt_logprobs")
        if not listed:
            raise CannotScoreError(
                f"the server at {self._url} cannot score a continuation of several tokens: no log-probabilities of prompts",
                "Use vLLM, or a model that runs in process",
            )
        found = []
        for position in listed:
            token, value = next(iter(position.items())) if position else ("", {"logprob": 0.0})
            found.append((token, float(value["logprob"])))
        return found

    def _choose(self, prompt: Prompt, options: Sequence[str]) -> int:
        refusal = ""
        for form in [self._form] if self._form else FORMS:
            try:
                asked = prompt if form is not _schema else prompt.model_copy(update={"opening": ""})
                reply = self._request(asked, max_tokens=256, temperature=0.0, **form(options))
            except ModelError as error:
                if "no server answers" in str(error):
                    raise
                refusal = str(error)
                continue
            written = _chosen(reply.choices[0].message.content or "")
            if written in options:
                self._form = form
                return list(options).index(written)
        raise ModelError(
            f"the server at {self._url} cannot be held to given options {refusal}", "Use --answering reason with it"
        )

    def _request(self, prompt: Prompt, *, more: Mapping[str, Any] | None = None, **settings: Any) -> Any:
        import openai

        content = prompt_content(prompt, self._settings.side)
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        extra = {**settings.pop("extra_body", {}), **(more or {})}
        if prompt.opening:
            messages.append({"role": "assistant", "content": prompt.opening})
            extra.update(_CONTINUE)
        if extra:
            settings["extra_body"] = extra
        try:
            return self._client.chat.completions.create(model=self._model, messages=messages, **settings)
        except openai.APITimeoutError:
            seconds = f"{self._settings.timeout:g} s"
            raise RequestError(
                f"the server at {self._url} gave no answer in {seconds}", "Raise ?timeout=, lower ?concurrency="
            ) from None
        except openai.APIConnectionError:
            raise ModelError(f"no server answers at {self._url}", "Start it, or check the address") from None
        except openai.APIStatusError as error:
            words = (str(error.message).splitlines() or [""])[0][:300]
            kind = ModelError if error.status_code in _FOR_ALL else RequestError
            raise kind(f"the server at {self._url} refused the request ({error.status_code}): {words}") from None

    @cached_property
    def _client(self) -> Any:
        if self._given is not None:
            return self._given
        import openai

        key, how = os.environ.get("OPENAI_API_KEY", "none"), self._settings
        return openai.OpenAI(base_url=self._url, api_key=key, max_retries=how.retries, timeout=how.timeout)

    def _parallel(self, work: Callable[[Any], T], jobs: Sequence[Any]) -> list[T]:
        pool = ThreadPoolExecutor(min(self._settings.concurrency, max(1, len(jobs))))
        try:
            return list(pool.map(work, jobs))
        finally:
            pool.shutdown(cancel_futures=True)


def _structured(options: Sequence[str]) -> dict[str, Any]:
    return {"extra_body": {"structured_outputs": {"choice": list(options)}}}


def _guided(options: Sequence[str]) -> dict[str, Any]:
    return {"extra_body": {"guided_choice": list(options)}}


def _schema(options: Sequence[str]) -> dict[str, Any]:
    answer = {"type": "string", "enum": list(options)}
    schema = {"type": "object", "properties": {"answer": answer}, "required": ["answer"], "additionalProperties": False}
    named = {"name": "choice", "strict": True, "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


FORMS = (_structured, _guided, _schema)
"""Ways to hold a server to given options, in the order tried."""


def _chosen(text: str) -> str:
    """The option a reply holds: the answer of a JSON object, else the text itself."""
    try:
        found = json.loads(text)
    except ValueError:
        return text.strip()
    return str(found["answer"]) if isinstance(found, dict) and "answer" in found else text.strip()
