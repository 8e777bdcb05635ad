"""Guessed tokens change how fast a response is written, and nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcr2ad.models.drafting import AHEAD, KEPT, SIZES, Drafts, Lookup
from dcr2ad.models.hf import HFModel
from dcr2ad.models.prefix import PrefixRunner
from dcr2ad.types import Sampling
from tests.test_models import prompt
from tests.tiny import tiny_internvl, tiny_qwen

tokens = st.lists(st.integers(0, 3), max_size=40)


@given(tokens, tokens)
def test_a_guess_is_what_followed_the_last_tokens_where_they_stood_last(first: list[int], more: list[int]) -> None:
    lookup = Lookup(first)
    lookup.extend(more)
    text = [*first, *more]
    expected: list[int] = []
    for size in SIZES:
        ends = [i for i in range(size, len(text)) if text[i - size : i] == text[len(text) - size :]]
        if ends:
            expected = text[ends[-1] : ends[-1] + AHEAD]
            break
    assert lookup.guess() == expected


def test_only_the_latest_responses_are_kept() -> None:
    drafts = Drafts()
    for start in range(0, 3 * KEPT, 100):
        drafts.remember(range(start, start + 100))
    assert drafts.behind([3 * KEPT - 3, 3 * KEPT - 2]).guess()[:1] == [3 * KEPT - 1]
    assert drafts.behind([0, 1]).guess() == []


@pytest.mark.parametrize("build", [tiny_qwen, tiny_internvl])
def test_a_response_alone_is_the_one_written_in_company(build, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """In company nothing is guessed; alone, the same words are written again and again, so nearly all is."""
    spec = f"hf:{build(tmp_path / 'm')}"
    asked = [prompt(tmp_path, 0, n, f"What defect is number {n}?", "") for n in range(1, 5)]
    sampling = Sampling(max_new_tokens=24)
    plain = [found[0] for found in HFModel.open(spec).generate(asked, sampling)]
    model = HFModel.open(spec)
    runner = model.runner
    steps: list[int] = []
    inner = runner._step

    def counted(ids: list[int], *rest: object) -> object:
        steps.append(len(ids))
        return inner(ids, *rest)  # type: ignore[arg-type]

    runner._step = counted  # type: ignore[method-assign,assignment]
    for turn in range(2):
        steps.clear()
        for one, expected in zip(asked, plain, strict=True):
            found = model.generate([one], sampling)[0][0]
            assert (found.text, found.status, found.new_tokens) == (expected.text, expected.status, expected.new_tokens)
        if turn:
            assert len(steps) < 0.5 * sum(done.new_tokens for done in plain)
    # What was written stands in the cache: going on from it reads nothing anew.
    start = model.vlm.tokenize(asked[0])
    ((written, _),) = runner.generate([[start]], max_new_tokens=24, ends=lambda tokens: tokens[-1] in model.vlm.end_ids)[0]
    longer = dataclasses.replace(start, ids=(*start.ids, *written))
    before = runner.processed_tokens
    ((found,),) = runner.logprobs_by_token([[longer]], [[[[5], [6]]]])
    assert runner.processed_tokens - before <= 3
    ((anew,),) = PrefixRunner(model.vlm).logprobs_by_token([[longer]], [[[[5], [6]]]])
    assert [value for (value,) in found] == pytest.approx([value for (value,) in anew], abs=1e-4)

    short = model.generate(asked[:1], Sampling(max_new_tokens=5))[0][0]
    assert short.new_tokens == min(5, plain[0].new_tokens) and plain[0].text.startswith(short.text)
    one, two = (model.generate(asked[:1], Sampling(max_new_tokens=8, temperature=1.0, seed=s))[0][0].text for s in (1, 1))
    assert one == two
