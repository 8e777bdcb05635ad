"""A teacher behind an OpenAI-compatible server, and `open_teacher` that opens any teacher by name.

Reads questions with their images, findings and entry; returns trajectories a model wrote under a JSON schema (the paper asks
GPT-4o, Section 4.1; the prompts are ours). Answers are cached by the content of what was asked, so that a rerun costs nothing;
requests keep a rate, tokens are counted. Retries are the client's (`dcr2ad.models.endpoint`). Knows nothing about masks: what
it writes is checked by `dcr2ad.verify`, and asked for again with the attempt's number.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dcr2ad.artifacts import KeptRecords, digest_json
from dcr2ad.errors import ModelError, UnknownNameError, UnusableAnswerError
from dcr2ad.images import content_digest
from dcr2ad.knowledge.agnostic import name_object
from dcr2ad.models.endpoint import EndpointModel
from dcr2ad.parsing import LETTERS
from dcr2ad.prompts import build_prompt, describe_findings
from dcr2ad.teacher import BuiltinTeacher, Teacher
from dcr2ad.types import ImagePart, KnowledgeEntry, Part, Prompt, Question, Record, TextPart, Trajectory

_MAX_TOKENS = 400
_FAILED = "the teacher failed"


class Written(BaseModel):
    """What the server must answer with."""

    model_config = ConfigDict(extra="forbid")

    why: str = Field(min_length=3, max_length=300)
    """One sentence: why the knowledge applies."""
    reasoning: str = Field(min_length=20, max_length=1200)
    """Two to four sentences that lead from what is seen to the answer."""


class Usage(Record):
    """What a teacher's work took."""

    requests: int = 0
    """Requests sent."""
    cached: int = 0
    """Answers taken from the cache."""
    prompt_tokens: int = 0
    """Tokens sent, images included, by the server's count."""
    new_tokens: int = 0
    """Tokens written."""

    def cost(self, per_million: tuple[float, float]) -> float:
        """Price of the tokens, in the currency of `per_million`: price of a million sent, and of a million written."""
        return (self.prompt_tokens * per_million[0] + self.new_tokens * per_million[1]) / 1e6


class EndpointTeacher:
    """Writes through a server.

    Args:
        model: the model behind the server.
        cache: folder of answers, one file each, named by what was asked.
        per_minute: requests a minute at most; None is no limit.
        clock: seconds now, and a sleep; for tests.
    """

    def __init__(
        self,
        model: EndpointModel,
        cache: Path,
        *,
        per_minute: float | None = None,
        clock: tuple[Callable[[], float], Callable[[float], None]] = (time.monotonic, time.sleep),
    ) -> None:
        self._model = model
        self._cache = KeptRecords(cache, Written)
        self._gap = 60 / per_minute if per_minute else 0.0
        self._now, self._sleep = clock
        self._next = 0.0
        self.usage = Usage()

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model.info.name

    def write(self, question: Question, entry: KnowledgeEntry | None, *, attempt: int = 0) -> Trajectory | str:
        """The right response; or why there is none, one phrase."""
        return self._ask(entry, question, question.answer, attempt)

    def write_under(self, entry: KnowledgeEntry | None, question: Question, answer: int) -> Trajectory:
        """A response that argues under `entry` to option `answer`.

        Raises:
            UnusableAnswerError: the model refused, or wrote no JSON of the form asked for.
            ModelError: the server gave no answer.
        """
        written = self._ask(entry, question, answer, 0)
        if isinstance(written, str):
            error = ModelError if written.startswith(_FAILED) else UnusableAnswerError
            raise error(f"{self.name}: {written}", "See the server's log, or use another teacher")
        return written

    def _ask(self, entry: KnowledgeEntry | None, question: Question, answer: int, attempt: int) -> Trajectory | str:
        prompt = teacher_prompt(question, entry, answer, attempt)
        key = digest_json([self._model.info.digest, attempt, [_content_of(part) for part in prompt.parts]])
        written = self._cache.get(key)
        if written is not None:
            self.usage = self.usage.model_copy(update={"cached": self.usage.cached + 1})
        else:
            found = self._request(prompt, attempt)
            if isinstance(found, str):
                return found
            written = found
            self._cache.put(key, written)
        return Trajectory(
            entry=entry.title if entry else "",
            why=_line(written.why) if entry else "",
            reasoning=_line(written.reasoning),
            answer=answer,
        )

    def _request(self, prompt: Prompt, attempt: int) -> Written | str:
        wait = self._next - self._now()
        if wait > 0:
            self._sleep(wait)
        self._next = self._now() + self._gap
        done = self._model.write_json(prompt, Written.model_json_schema(), max_tokens=_MAX_TOKENS, seed=attempt)
        used = self.usage
        self.usage = Usage(
            requests=used.requests + 1,
            cached=used.cached,
            prompt_tokens=used.prompt_tokens + done.prompt_tokens,
            new_tokens=used.new_tokens + done.new_tokens,
        )
        if not done.answered:
            return f"the teacher {done.status}: {done.error or done.text[:80]}"
        try:
            return Written.model_validate(json.loads(_object_in(done.text)))
        except (ValueError, ValidationError):
            return "the teacher's answer is " + ("cut off" if done.status == "length" else "not the JSON asked for")


def teacher_prompt(question: Question, entry: KnowledgeEntry | None, answer: int, attempt: int = 0) -> Prompt:
    """What the server is asked: images, findings, the entry, the question, and the answer to lead to."""
    sample = question.sample
    seen = f"\nA visual expert reports: {describe_findings(sample.expert)}" if sample.expert else ""
    knowledge = f"\nKnowledge that applies: {entry.title}: {name_object(entry.text, sample.object)}" if entry else ""
    options = "".join(f"\n{LETTERS[index]}. {option}" for index, option in enumerate(question.options))
    task = (
        f"{seen}{knowledge}\nQuestion: {question.text}{options}\nAnswer: {LETTERS[answer]}."
        "\n\nYou write the worked response of an inspection data set. Lead from what the picture shows, compared with the "
        "normal part, through the knowledge to the answer given; do not say that it was given."
        "\n- `why`: one sentence of at most 14 words: which cue of the knowledge is seen, and where."
        "\n- `reasoning`: two or three sentences, 20 to 60 words in all, that end with the answer's letter."
        "\n- Say only what can be seen. Name places only as one of: top left, top centre, top right, middle left, centre, "
        "middle right, bottom left, bottom centre, bottom right. Every place, size and number is checked against the mask."
        "\n- No markup, no angle brackets. Answer with one JSON object with the keys why and reasoning."
    )
    if attempt:
        task += f"\n- {attempt} earlier response(s) named a place, size or number that the mask denies; look again."
    images = build_prompt(question, expert=False, shots=1).parts
    shown: list[Part] = []
    for part in images[:-1]:
        shown.append(part if isinstance(part, ImagePart) else TextPart(text=part.text.splitlines()[-1]))
    return Prompt(parts=(*shown, TextPart(text=task)))


def open_teacher(spec: str, seed: int = 0, *, cache: Path | None = None, per_minute: float | None = None) -> Teacher:
    """Open a teacher by name.

    Args:
        spec: ``builtin`` or ``openai:MODEL@URL``.
        seed: seed of the built-in teacher's words.
        cache: where answers of an endpoint are kept; None is ``teacher`` in the cache folder of models.
        per_minute: requests a minute at most.

    Raises:
        UnknownNameError: no such teacher.
    """
    if spec == BuiltinTeacher.name:
        return BuiltinTeacher(seed)
    if not spec.startswith("openai:"):
        raise UnknownNameError(f"no teacher {spec!r}", "Use 'builtin', or openai:MODEL@URL")
    if cache is None:
        from dcr2ad.models.nano import cache_folder

        cache = cache_folder() / "teacher"
    return EndpointTeacher(EndpointModel.from_spec(spec), cache, per_minute=per_minute)


def _content_of(part: Part) -> str:
    return content_digest(part.path) if isinstance(part, ImagePart) else part.text


def _object_in(text: str) -> str:
    """The JSON object in an answer that may be fenced."""
    start, end = text.find("{"), text.rfind("}")
    return text[start : end + 1] if 0 <= start < end else text


def _line(text: str) -> str:
    """One line without angle brackets, which are the form's."""
    return " ".join(text.replace("<", " ").replace(">", " ").split())
