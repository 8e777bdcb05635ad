"""A decoder held to given continuations: against its definition, on drawn distributions and on models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.base import ScoresHeld
from dcr2ad.models.held import held_logprobs, open_parts
from dcr2ad.models.hf import HFModel
from dcr2ad.models.tree import UNSHARED, chunks
from dcr2ad.prompts import build_prompt, detection_question, knowledge_prompt
from dcr2ad.types import Prompt
from tests.test_routing import sample
from tests.tiny import tiny_internvl, tiny_qwen

BASE = KnowledgeBase.builtin()
VOCABULARY = 6
END = VOCABULARY
"""Token that ends every continuation, as the colon ends a title."""

continuations = st.lists(
    st.lists(st.integers(0, VOCABULARY - 1), min_size=0, max_size=5), min_size=1, max_size=60, unique_by=tuple
).map(lambda found: [[*tokens, END] for tokens in found])


def next_logprobs(seed: int, beginning: tuple[int, ...]) -> np.ndarray:
    """A fixed random distribution of the next token, by what came before."""
    values = np.random.default_rng([seed, *beginning]).normal(size=VOCABULARY + 1) * 4
    return values - np.logaddexp.reduce(values)


@settings(deadline=None, max_examples=100)
@given(options=continuations, seed=st.integers(0, 1000))
def test_a_held_decoder_by_its_definition(options: list[list[int]], seed: int) -> None:
    parts = open_parts(options)
    read = [[float(next_logprobs(seed, tuple(part[:i]))[token]) for i, token in enumerate(part)] for part in parts]
    found = held_logprobs(parts, read)

    def held(beginning: list[int], token: int) -> float:
        values = next_logprobs(seed, tuple(beginning))
        allowed = {o[len(beginning)] for o in options if o[: len(beginning)] == beginning and len(o) > len(beginning)}
        return float(values[token] - np.logaddexp.reduce([values[other] for other in allowed]))

    assert found == pytest.approx([sum(held(o[:i], t) for i, t in enumerate(o)) for o in options], abs=1e-9)
    assert float(np.exp(found).sum()) == pytest.approx(1.0)


@given(options=continuations)
def test_only_what_another_continuation_shares_is_read(options: list[list[int]]) -> None:
    for whole, part in zip(options, open_parts(options), strict=True):
        assert part and whole[: len(part)] == part
        others = [other for other in options if other != whole]
        assert all(other[: len(part)] != part for other in others)
        assert len(part) == 1 or any(other[: len(part) - 1] == part[:-1] for other in others)


def test_by_hand() -> None:
    """Of two titles that begin alike and one that does not, the model's own 0.1, 0.3 and, behind the first, 0.02 and 0.06."""
    options = [[1, 2, 9], [1, 3, 4, 9], [5, 6, 7, 8, 9]]
    parts = open_parts(options)
    assert parts == [[1, 2], [1, 3], [5]]
    found = held_logprobs(parts, [list(np.log([0.1, 0.02])), list(np.log([0.1, 0.06])), [float(np.log(0.3))]])
    assert np.exp(found) == pytest.approx([0.25 * 0.25, 0.25 * 0.75, 0.75])


def defined(model: HFModel, prompt: Prompt, titles: list[str]) -> list[float]:
    """Every beginning of a title scored as a continuation of its own, and set against those beside it."""
    ids = [tuple(model.vlm.response_ids(title)) for title in titles]
    beginnings = sorted({title[:end] for title in ids for end in range(1, len(title) + 1)}, key=len)
    scored = model.runner.logprobs_by_token([[model.vlm.tokenize(prompt)]], [[[list(b) for b in beginnings]]])[0][0]
    joint = dict(zip(beginnings, map(sum, scored), strict=True))
    held: dict[tuple[int, ...], float] = {(): 0.0}
    for beginning in beginnings:
        beside = [joint[other] for other in beginnings if other[:-1] == beginning[:-1]]
        held[beginning] = held[beginning[:-1]] + joint[beginning] - float(np.logaddexp.reduce(beside))
    return [held[title] for title in ids]


@pytest.mark.parametrize("build", [tiny_qwen, tiny_internvl])
def test_a_models_titles_are_read_as_defined(build, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model = HFModel.open(f"hf:{build(tmp_path / 'm')}")
    assert isinstance(model, ScoresHeld)
    shot = sample(tmp_path)
    asked = [knowledge_prompt(build_prompt(detection_question("q", shot), entries=BASE.entries[:n])) for n in (0, 3)]
    titles = [[f"{entry.title}:" for entry in BASE.entries[:count]] for count in (40, 3)]
    found = model.score_held(asked, titles)
    for prompt, listed, scores in zip(asked, titles, found, strict=True):
        assert scores.logprobs == pytest.approx(defined(model, prompt, listed), abs=1e-4)
        assert scores.tokens == model.score([prompt], [listed])[0].tokens
        assert float(np.exp(scores.logprobs).sum()) == pytest.approx(1.0, abs=1e-5)


def test_rows_are_cut_by_what_they_add() -> None:
    work = [*((0, option) for option in range(10)), *((1, option) for option in range(2))]
    sizes = [(50, 2)] * 12  # a tail of 50 and 10 options of 2: 70; and 54
    assert chunks(work, sizes, 124) == [work]
    assert chunks(work, sizes, 121) == [work[:10], work[10:]]
    assert chunks(work[:3], [(50, 40)] * 3, 50 + 40 + UNSHARED) == [work[:2], work[2:3]]
    assert len(chunks(work[:3], [(500, 4)] * 3, 100)) == 3, "what is too long for any row stands alone"
