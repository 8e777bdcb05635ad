"""Records between stages and models: prompts, completions, scores, rankings of knowledge."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dcr2ad.types.base import Probability, Record


class TextPart(Record):
    """A stretch of text in a prompt."""

    kind: Literal["text"] = "text"
    text: str
    """The text."""


class ImagePart(Record):
    """An image in a prompt, by path; the backend opens it."""

    kind: Literal["image"] = "image"
    path: str
    """Path of the image file."""


Part = Annotated[TextPart | ImagePart, Field(discriminator="kind")]


class Prompt(Record):
    """What a model is asked: one user turn, and the text its response is made to begin with."""

    parts: tuple[Part, ...]
    """Text and images in order."""
    opening: str = ""
    """The response begins with this text; what the model adds follows it."""


class Sampling(Record):
    """How to decode."""

    max_new_tokens: int = 192
    """Limit on new tokens."""
    temperature: float = 0.0
    """0 is greedy."""
    n: int = 1
    """Completions a prompt."""
    stop: str = ""
    """Text that ends a response and is no part of it; empty for none."""
    seed: int = 0
    """Seed for temperature > 0."""


class Completion(Record):
    """What a model wrote."""

    text: str
    """The response without its opening."""
    status: Literal["stop", "length", "refused", "failed"] = "stop"
    """How it ended."""
    error: str = ""
    """One line, for ``failed``."""
    prompt_tokens: int = 0
    """Tokens of the prompt, images included."""
    new_tokens: int = 0
    """Tokens generated."""

    @property
    def answered(self) -> bool:
        """Whether the model wrote something to read, whole or cut at its limit."""
        return self.status in {"stop", "length"}


class OptionScores(Record):
    """Log-probabilities of given continuations of a prompt."""

    logprobs: tuple[float, ...]
    """Natural log-probability of each whole continuation."""
    tokens: tuple[int, ...]
    """Number of tokens of each continuation."""


class RankedEntry(Record):
    """A knowledge entry with the probability the router gives it."""

    key: str
    """Key of the entry."""
    title: str
    """Title of the entry."""
    probability: Probability
    """Probability over the candidates; sums to one over a whole ranking."""
    score: float = 0.0
    """Natural logarithm of the probability."""


RouteMode = Literal["listed", "recall", "hybrid"]
"""How entries are ranked: candidates listed in the prompt; no list, all that can apply; the same, then its best listed."""


class RoutingCalibration(Record):
    """Temperature and threshold of one route mode, fitted on a dev set and stored with the model; not in the paper."""

    temperature: float = Field(gt=0.0)
    """Probabilities are taken to the power 1/temperature and renormalised."""
    threshold: Probability
    """The router abstains where its best entry is less probable."""
    photographs: int
    """Photographs it was fitted on whose right entry is known."""
    ranked: int
    """Those among them whose right entry was in the ranking: the temperature rests on these."""
    nll: tuple[float, float]
    """Mean negative log-likelihood of the right entry before and after, nats."""
    questions: str
    """Digest of the questions it was fitted on."""
    knowledge: str
    """Digest of the knowledge base it was fitted on."""


class RoutingNote(Record):
    """How a diagnosis was routed."""

    mode: RouteMode
    """Route mode."""
    temperature: float
    """Temperature of the probabilities shown; 1 where none was fitted."""
    threshold: Probability
    """Probability below which the router abstains."""
    calibrated: bool
    """Whether both were fitted for this model, or are the defaults."""
    abstained: bool
    """Whether no entry was probable enough: then the model answered without knowledge."""
