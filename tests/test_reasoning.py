"""Responses held to their form by a real model, however little it has learnt."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcr2ad.models.base import ModelInfo
from dcr2ad.models.hf import HFModel
from dcr2ad.models.scripted import ScriptedModel
from dcr2ad.parsing import parse_response
from dcr2ad.prompts import build_prompt
from dcr2ad.reasoning import CONCLUSION_TOKENS, REASONING_TOKENS, WHY_TOKENS, write_responses
from dcr2ad.types import Prompt, Trajectory, Unparsed
from tests.tiny import tiny_internvl, tiny_questions


def test_an_untrained_model_still_answers_in_the_form(tmp_path: Path) -> None:
    model = HFModel.open(f"hf:{tiny_internvl(tmp_path / 'm')}")
    questions = tiny_questions(tmp_path, 4)
    prompts = [build_prompt(q).model_copy(update={"opening": "<knowledge>Scratch:"}) for q in questions]
    for q, written in zip(questions, write_responses(model, prompts, [q.options for q in questions]), strict=True):
        read = parse_response(written.text, q.options)
        assert isinstance(read, Trajectory) and read.entry == "Scratch"
        assert written.probabilities is not None and sum(written.probabilities) == pytest.approx(1)
        assert read.answer == max(range(len(q.options)), key=written.probabilities.__getitem__)
        assert written.completion.new_tokens <= WHY_TOKENS + REASONING_TOKENS + CONCLUSION_TOKENS + 1


def test_without_an_opening_the_model_names_the_entry_itself(tmp_path: Path) -> None:
    model = HFModel.open(f"hf:{tiny_internvl(tmp_path / 'm')}")
    question = tiny_questions(tmp_path, 1)[0]
    text = write_responses(model, [build_prompt(question)], [question.options])[0].text
    assert text.startswith("<knowledge>") and text.count("<think>") == text.count("<answer>") == 1


class InProcess(ScriptedModel):
    """A scripted model that passes for one in this process, whose decoding is held to the form."""

    @property
    def info(self) -> ModelInfo:
        """As a scripted model's."""
        return super().info.model_copy(update={"backend": "transformers"})


@pytest.mark.parametrize("thought", ["The mark stands out", "The mark stands out. So the answer is Yes (A)."])
def test_a_reasoning_that_names_no_option_is_led_on_to_one(thought: str, tmp_path: Path) -> None:
    question = tiny_questions(tmp_path, 1)[0]
    asked: list[str] = []

    def respond(prompt: Prompt) -> str:
        asked.append(prompt.opening)
        return {">": thought, "s": " Yes (A)."}.get(prompt.opening[-1], "dark")

    def logprob(prompt: Prompt, option: str) -> float:
        return -0.1 if f"({option.strip()})" in prompt.opening[-20:].replace("</think><answer>", "") else -3.0

    model = InProcess(respond, logprob)
    prompt = build_prompt(question).model_copy(update={"opening": "<knowledge>Scratch:"})
    written = write_responses(model, [prompt], [question.options])[0]
    led = "(A)" not in thought
    assert len(asked) == (3 if led else 2)
    assert written.text.count("So the answer is Yes (A).</think>") == 1 and written.text.count("So the answer") == 1
    read = parse_response(written.text, question.options)
    assert isinstance(read, Trajectory) and read.answer == 0


def test_what_a_server_writes_is_left_as_it_is(tmp_path: Path) -> None:
    question = tiny_questions(tmp_path, 1)[0]
    written = write_responses(ScriptedModel(lambda p: "I cannot tell."), [build_prompt(question)], [question.options])[0]
    assert written.text == "I cannot tell." and written.probabilities is None
    assert isinstance(parse_response(written.text, question.options), Unparsed)
