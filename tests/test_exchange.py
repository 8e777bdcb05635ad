"""Lists that tell exchanged causes and effects: the answer is what is listed, and no pair is made of it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcr2ad.artifacts import read_records
from dcr2ad.config import InstructSettings, MineSettings
from dcr2ad.datasets.drawn import write_drawn
from dcr2ad.exchange import exchange_facts
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.scripted import ScriptedModel
from dcr2ad.prompts import build_prompt
from dcr2ad.stages.instruct import build_instructions
from dcr2ad.stages.mine import mine_boundary
from dcr2ad.statements import capital, statement
from dcr2ad.types import Prompt, Question, Sample, Subtask

BASE = KnowledgeBase.builtin()
KEYS = ("General.surface.scratch", "General.surface.dent", "General.structural.crack", "General.contamination.dirt")


def _question(asks: str = "effect", right: int = 2) -> Question:
    sample = Sample(id="s", image="s.png", dataset="d", object="casting", is_anomalous=True, right_key=KEYS[right])
    return Question(
        id="s#analysis",
        sample=sample,
        subtask=Subtask.ANALYSIS,
        text="What follows?",
        options=tuple(statement(BASE.get(key), asks, "casting") for key in KEYS),
        answer=right,
        provenance={"asks": asks, "keys": " ".join(KEYS)},
    )


def _text(prompt: Prompt) -> str:
    return "".join(part.text for part in prompt.parts if part.kind == "text")


@given(st.integers(0, 10**6), st.sampled_from(["cause", "effect"]), st.integers(0, 3))
def test_the_right_option_is_what_the_right_entry_is_listed_with(seed: int, asks: str, right: int) -> None:
    before = _question(asks, right)
    made = exchange_facts(before, random.Random(seed))
    assert made is not None and made.answer != before.answer and made.options == before.options
    listed = {entry.key: entry for entry in BASE.listed(made)}
    assert set(listed) == set(KEYS) and all(getattr(listed[key], asks) != getattr(BASE.get(key), asks) for key in KEYS)
    assert {key: entry.text for key, entry in listed.items()} == {key: BASE.get(key).text for key in KEYS}
    for option, key in zip(made.options, made.provenance["keys"].split(), strict=True):
        assert option == statement(listed[key], asks, "casting")
    assert made.provenance["keys"].split()[made.answer] == before.sample.right_key
    verb = "leads to" if asks == "effect" else "comes from"
    asked = _text(build_prompt(made, entries=BASE.listed(made)))
    assert f"{BASE.get(KEYS[right]).title} {verb}: {made.options[made.answer]}." in asked


@pytest.mark.parametrize(
    "change", [{"asks": "cues"}, {"keys": " ".join(KEYS[:3])}, {"keys": " ".join(KEYS[1:] + KEYS[1:2])}, {"keys": ""}]
)
def test_only_causes_and_effects_of_entries_are_exchanged(change: dict[str, str]) -> None:
    question = _question()
    assert exchange_facts(question.model_copy(update={"provenance": question.provenance | change}), random.Random(0)) is None


def test_a_question_may_exchange_only_what_it_lists() -> None:
    with pytest.raises(ValueError, match="exchanged holds other keys"):
        Question.model_validate(_question().model_dump() | {"candidates": KEYS, "exchanged": KEYS[:3]})


def test_instruct_exchanges_a_share_of_the_lists_and_mining_leaves_it_out(tmp_path: Path) -> None:
    write_drawn(tmp_path / "drawn", 4, seed=1, size=64)
    settings = InstructSettings(listed_share=1.0, exchanged_share=0.5, direct_share=0.0, expert=False, split="")
    build_instructions(tmp_path / "drawn", tmp_path / "data", BASE, settings, seed=0)
    questions = list(read_records(tmp_path / "data" / "questions.jsonl", Question))
    asking = [q for q in questions if q.provenance.get("asks") in {"cause", "effect"} and q.sample.is_anomalous]
    exchanged = [q for q in questions if q.exchanged]
    assert 0.25 < len(exchanged) / len(asking) < 0.75
    for question in exchanged:
        told = next(entry for entry in BASE.listed(question) if entry.key == question.sample.right_key)
        right = statement(told, question.provenance["asks"], question.sample.object)
        assert question.options[question.answer] == capital(right) and question.response is not None
        assert question.response.entry == told.title and question.response.answer == question.answer
    undecided = ScriptedModel(lambda _: "", lambda _prompt, _option: 0.0)
    made = mine_boundary(undecided, questions, BASE, MineSettings(), tmp_path / "mine")
    assert made["exchanged"] == len(exchanged) and made["questions"] == len(questions) - len(exchanged)
