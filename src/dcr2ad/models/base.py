"""The seam to models: `generate` and `score`, and `open_model` that opens any of them by name.

A backend is stateless, takes batches, and returns one result a prompt in the order asked. One that cannot score says so; it
never makes a value up. Reads prompts; returns completions and log-probabilities. Knows nothing about questions or stages.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from pydantic import Field

from dcr2ad.errors import CannotScoreError, UnknownNameError
from dcr2ad.models.shipped import is_nano
from dcr2ad.parsing import LETTERS
from dcr2ad.types import Completion, OptionScores, Precision, Prompt, Record, RouteMode, RoutingCalibration, Sampling

if TYPE_CHECKING:
    from dcr2ad.models.hf import HFModel


class ModelInfo(Record):
    """What a model is, for manifests and reports."""

    name: str
    """The name it was opened by."""
    digest: str
    """Digest of its weights, or what the endpoint says of itself."""
    backend: str
    """``transformers``, ``openai`` or ``scripted``."""
    can_score: bool
    """Whether `score` gives log-probabilities."""
    routing: dict[RouteMode, RoutingCalibration] = Field(default_factory=dict)
    """Fitted temperature and threshold of each route mode, as stored with the model."""
    pixels: str = ""
    """How large images reach the model; empty where it is not known."""
    trained_on: tuple[str, ...] = ()
    """Objects it records as trained on, as ``dataset/object``; only data sets where it records no objects."""


class ChatModel(Protocol):
    """A vision-language model that answers prompts."""

    @property
    def info(self) -> ModelInfo:
        """What the model is."""
        ...

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """`sampling.n` completions a prompt. A failing prompt is a ``failed`` completion, not an exception."""
        ...

    def score(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[OptionScores]:
        """Log-probability of each of a prompt's continuations.

        Args:
            prompts: N prompts.
            options: N lists of continuations; each begins where the prompt's opening ends.

        Raises:
            CannotScoreError: the backend gives no probabilities.
        """
        ...


@runtime_checkable
class Chooser(Protocol):
    """A model that can be held to given answers, where it gives no probabilities of them."""

    def choose(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[int]:
        """For N prompts the index of the option that is written when nothing else may be."""
        ...


@runtime_checkable
class ScoresHeld(Protocol):
    """A model that can say which of some continuations it would write, were nothing else allowed."""

    def score_held(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[OptionScores]:
        """As `ChatModel.score`, each token's log-probability among those with which some of the continuations go on.

        Args:
            prompts: N prompts.
            options: N lists of continuations.
        """
        ...


@runtime_checkable
class Forgets(Protocol):
    """A model that keeps something of the images it was shown, and can let it go."""

    def forget(self, images: Collection[str]) -> None:
        """Free what is kept of images, given by path, that will hardly be shown again; shown again, they are read anew."""
        ...


def letter_choices(model: ChatModel, prompts: Sequence[Prompt], counts: Sequence[int]) -> list[tuple[float, ...]]:
    """`letter_probabilities`, or, of a model that gives none, 1 for the letter it writes when held to the letters.

    Raises:
        CannotScoreError: it gives no probabilities and cannot be held to given answers.
        ModelError: its server cannot be reached, or keeps to no form of answer.
    """
    try:
        return letter_probabilities(model, prompts, counts)
    except CannotScoreError:
        if not isinstance(model, Chooser):
            raise
        chosen = model.choose(prompts, [LETTERS[:count] for count in counts])
        return [tuple(float(i == index) for i in range(count)) for index, count in zip(chosen, counts, strict=True)]


def letter_probabilities(model: ChatModel, prompts: Sequence[Prompt], counts: Sequence[int]) -> list[tuple[float, ...]]:
    """Probability of each option's letter, both spellings of a letter ("B", " B") summed.

    Args:
        model: a model that can score.
        prompts: N prompts whose openings end where the letter follows (`dcr2ad.prompts.answer_prompt`).
        counts: N numbers of options.

    Returns:
        N tuples that each sum to one.

    Raises:
        CannotScoreError: the backend gives no probabilities.
    """
    spelled = [[variant for letter in LETTERS[:count] for variant in (letter, f" {letter}")] for count in counts]
    found = []
    for count, scores in zip(counts, model.score(prompts, spelled), strict=True):
        sums = [_logsumexp(scores.logprobs[2 * i : 2 * i + 2]) for i in range(count)]
        found.append(softmax(sums))
    return found


def softmax(values: Sequence[float], temperature: float = 1.0) -> tuple[float, ...]:
    """Probabilities proportional to exp(value / temperature)."""
    top = max(values)
    weights = [math.exp((value - top) / temperature) for value in values]
    total = sum(weights)
    return tuple(weight / total for weight in weights)


def open_model(spec: str, *, precision: Precision | Literal["auto"] = "fp32") -> ChatModel:
    """Open a model by name.

    Args:
        spec: ``nano`` (the embedded model with the adapter that ships), ``nano:real``, ``nano:drawn`` or ``nano:base``
            (`dcr2ad.models.shipped`), the folder a training stage wrote, ``hf:PATH`` (a
            transformers folder), or ``openai:MODEL@URL``.
        precision: on a CPU, ``fp32`` computes in float32, as every published figure does that says nothing else; ``bf16`` in
            bfloat16, several times slower on a CPU without units for it; ``auto`` in bfloat16 where it has them, else in
            float32 on weights kept in bfloat16 (`dcr2ad.models.compact`). On a GPU it is bfloat16 in each case.

    Raises:
        UnknownNameError: the name is none of these.
        ModelError: it cannot be built, loaded or reached.
    """
    if spec.startswith("openai:"):
        from dcr2ad.models.endpoint import EndpointModel

        return EndpointModel.from_spec(spec)
    if is_nano(spec) or spec.startswith("hf:") or Path(spec).is_dir():
        return _in_process().open(spec, precision=precision)
    raise UnknownNameError(f"no model named {spec!r}", "Use nano, hf:PATH, openai:MODEL@URL or the folder of a trained model")


@cache
def _in_process() -> type[HFModel]:
    """The class of models that run here, imported without the garbage collector.

    transformers makes hundreds of thousands of objects, and they stay: the collector would go through them again and again, a
    sixth of the time of the import, and once more in every full collection after it. So it waits, and leaves them alone after.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        from dcr2ad.models.hf import HFModel
    finally:
        if collecting:
            gc.freeze()
            gc.enable()
    return HFModel


def _logsumexp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values)) if top > -math.inf else top
