"""Responses written in their form: a model fills path, reasoning and answer, and can leave none of them open.

Reads prompts and a model; returns whole responses with the probabilities of the options. Decoding is held to the form of
`dcr2ad.parsing`, as routing is held to titles that exist: each part ends at its closing tag, or at its limit at the last whole
clause, and the reasoning ends by naming its option. A model behind an endpoint writes freely instead, since a server may not
continue an opened response. Knows nothing about questions, knowledge or files. Not in the paper.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from dcr2ad.models.base import ChatModel, letter_probabilities
from dcr2ad.parsing import (
    ANSWER_CLOSING,
    ANSWER_OPENING,
    KNOWLEDGE_CLOSING,
    KNOWLEDGE_OPENING,
    LETTERS,
    parse_response,
    write_response,
)
from dcr2ad.prompts import answer_prompt
from dcr2ad.types import Completion, Prompt, Sampling, Unparsed

WHY_TOKENS = 32
"""Limit of the sentence on why the entry applies; worked responses have 14 words at most."""
REASONING_TOKENS = 96
"""Limit of the reasoning; worked responses have 45 words at most."""
CONCLUSION_TOKENS = 24
"""Limit of the sentence that names the option, where the reasoning ended without."""
_CONCLUSION = " So the answer is"
_NAMES_LETTER = re.compile(r"\([A-Z]\)\W*$")
TEMPERATURE = 0.7
"""Of sampled responses."""
FREE_TOKENS = 192
"""Limit of a response written freely."""


class Written(NamedTuple):
    """One response."""

    text: str
    """The whole response, its opening included."""
    completion: Completion
    """How it ended; ``length`` when a part was cut at its limit."""
    probabilities: tuple[float, ...] | None
    """Probability of each option at the answer's place; None where the backend cannot score or the response is unreadable."""


def write_responses(model: ChatModel, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[Written]:
    """Have a model answer prompts with path, reasoning and answer.

    Args:
        model: the model.
        prompts: prompts whose openings are empty, or hold the opened path with its title.
        options: for each its option texts.

    Raises:
        ImageError: an image cannot be used (in-process models).
    """
    return [listed[0] for listed in _write(model, prompts, options, 1, 0.0, 0)]


def sample_responses(
    model: ChatModel,
    prompts: Sequence[Prompt],
    options: Sequence[Sequence[str]],
    k: int,
    *,
    temperature: float = TEMPERATURE,
    seed: int = 0,
) -> list[list[Written]]:
    """As `write_responses`, k sampled responses a prompt: what ``reason@k`` takes the mean over.

    In process a response depends on seed and prompt alone, not on what is asked beside it.
    """
    return _write(model, prompts, options, k, temperature, seed)


def mean_probabilities(found: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    """Mean probability of each option over several responses, of which there is one at least."""
    return tuple(sum(column) / len(found) for column in zip(*found, strict=True))


def _write(
    model: ChatModel, prompts: Sequence[Prompt], options: Sequence[Sequence[str]], k: int, temperature: float, seed: int
) -> list[list[Written]]:
    if model.info.backend != "transformers":
        return _free(model, prompts, options, Sampling(max_new_tokens=FREE_TOKENS, n=k, temperature=temperature, seed=seed))
    many = [prompt for prompt in prompts for _ in range(k)]
    listed = [texts for texts in options for _ in range(k)]
    written = _held_to_form(model, many, listed, Sampling(temperature=temperature, seed=seed))
    return [written[start : start + k] for start in range(0, len(written), k)]


def _held_to_form(
    model: ChatModel, prompts: Sequence[Prompt], options: Sequence[Sequence[str]], sampling: Sampling
) -> list[Written]:
    opened = [_opened(prompt, prompt.opening or KNOWLEDGE_OPENING) for prompt in prompts]
    why, one = _part(model, opened, KNOWLEDGE_CLOSING, sampling.model_copy(update={"max_new_tokens": WHY_TOKENS}))
    opened = [_opened(p, f"{p.opening}{text}{KNOWLEDGE_CLOSING}<think>") for p, text in zip(opened, why, strict=True)]
    thought, two = _part(model, opened, "</think>", sampling.model_copy(update={"max_new_tokens": REASONING_TOKENS}))
    thought, more = _concluded(model, opened, thought, sampling)
    opened = [_opened(p, f"{p.opening}{text}</think>{ANSWER_OPENING}") for p, text in zip(opened, thought, strict=True)]
    found = letter_probabilities(model, opened, [len(listed) for listed in options])
    written = []
    for prompt, probabilities, first, second, extra in zip(opened, found, one, two, more, strict=True):
        letter = LETTERS[max(range(len(probabilities)), key=probabilities.__getitem__)]
        cut = "length" in (first.status, second.status)
        completion = second.model_copy(
            update={"status": "length" if cut else "stop", "new_tokens": first.new_tokens + second.new_tokens + extra + 1}
        )
        written.append(Written(f"{prompt.opening}{letter}{ANSWER_CLOSING}", completion, probabilities))
    return written


def _concluded(
    model: ChatModel, opened: Sequence[Prompt], thought: list[str], sampling: Sampling
) -> tuple[list[str], list[int]]:
    """The reasonings, one that ends without an option's letter led on to it, as worked responses end; and the tokens it took.

    Left as it is, a small model's letter would be no better than a guess.
    """
    texts, tokens = list(thought), [0] * len(thought)
    led = [number for number, text in enumerate(thought) if not _NAMES_LETTER.search(text)]
    if led:
        prompts = [_opened(opened[number], f"{opened[number].opening}{thought[number]}{_CONCLUSION}") for number in led]
        endings, ended = _part(model, prompts, "</think>", sampling.model_copy(update={"max_new_tokens": CONCLUSION_TOKENS}))
        for number, ending, completion in zip(led, endings, ended, strict=True):
            texts[number] += f"{_CONCLUSION}{ending}"
            tokens[number] = completion.new_tokens
    return texts, tokens


def _part(model: ChatModel, prompts: Sequence[Prompt], closing: str, sampling: Sampling) -> tuple[list[str], list[Completion]]:
    """Text of each up to its closing tag; what is cut at the limit ends at its last whole clause."""
    texts, completions = [], []
    for found in model.generate(prompts, sampling.model_copy(update={"stop": closing})):
        ended = found[0].status != "length"
        text = found[0].text.split("<")[0].rstrip()
        texts.append(text if ended else _whole_clause(text))
        completions.append(found[0].model_copy(update={"status": "stop" if ended else "length"}))
    return texts, completions


def _whole_clause(text: str) -> str:
    ends = [text.rfind(mark) for mark in (". ", ", ", "; ")]
    return text[: max(ends)] if max(ends) > len(text) // 3 else text


def _opened(prompt: Prompt, opening: str) -> Prompt:
    return prompt.model_copy(update={"opening": opening})


def _free(
    model: ChatModel, prompts: Sequence[Prompt], options: Sequence[Sequence[str]], sampling: Sampling
) -> list[list[Written]]:
    return [
        [_read_free(model, prompt, listed, completion) for completion in completions]
        for prompt, listed, completions in zip(prompts, options, model.generate(prompts, sampling), strict=True)
    ]


def _read_free(model: ChatModel, prompt: Prompt, options: Sequence[str], completion: Completion) -> Written:
    text = prompt.opening + completion.text
    read = parse_response(text, options)
    probabilities = None
    if model.info.can_score and completion.answered and not isinstance(read, Unparsed):
        bare = prompt.model_copy(update={"opening": ""})
        probabilities = letter_probabilities(model, [answer_prompt(bare, write_response(read))], [len(options)])[0]
    return Written(text, completion, probabilities)
