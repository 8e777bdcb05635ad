"""A model that says what it is told: for tests of everything around a model, never a proof of anything about models.

Takes a function from prompt to response, and one from prompt and continuation to log-probability. Loads nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dcr2ad.errors import CannotScoreError
from dcr2ad.models.base import ModelInfo
from dcr2ad.types import Completion, OptionScores, Prompt, Sampling


class ScriptedModel:
    """A `ChatModel` made of two functions.

    Args:
        respond: response to a prompt (without its opening).
        logprob: log-probability of a continuation; without it the model cannot score.
    """

    def __init__(
        self, respond: Callable[[Prompt], str], logprob: Callable[[Prompt, str], float] | None = None, *, name: str = "scripted"
    ) -> None:
        self._respond = respond
        self._logprob = logprob
        self._name = name

    @property
    def info(self) -> ModelInfo:
        """What the model is."""
        return ModelInfo(name=self._name, digest=self._name, backend="scripted", can_score=self._logprob is not None)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """The scripted responses."""
        return [[Completion(text=self._respond(prompt))] * sampling.n for prompt in prompts]

    def score(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[OptionScores]:
        """The scripted log-probabilities.

        Raises:
            CannotScoreError: the model was made without any.
        """
        if self._logprob is None:
            raise CannotScoreError(f"model {self._name} gives no probabilities", "Use --answering reason, or another model")
        return [
            OptionScores(logprobs=tuple(self._logprob(prompt, option) for option in listed), tokens=(1,) * len(listed))
            for prompt, listed in zip(prompts, options, strict=True)
        ]
