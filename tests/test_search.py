"""A search over a trie gives the full reading's ranking and probabilities within the bound it states."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.base import Searcher, softmax
from dcr2ad.models.hf import HFModel
from dcr2ad.models.search import HOT, ROOT, Trie, TrieSearch
from dcr2ad.prompts import build_prompt, detection_question, knowledge_prompt
from dcr2ad.routing import LISTED, QUICK, route_sample
from dcr2ad.types import OptionScores, Prompt
from tests.test_routing import sample
from tests.tiny import tiny_internvl, tiny_qwen

BASE = KnowledgeBase.builtin()
VOCABULARY = 6
ENDS = VOCABULARY
"""Token that ends every continuation, as the colon ends a title."""


def next_logprobs(seed: int, sharpness: float, beginning: tuple[int, ...]) -> np.ndarray:
    """A fixed random distribution of the next token, by what came before."""
    values = np.random.default_rng([seed, *beginning]).normal(size=VOCABULARY + 1) * sharpness
    return values - np.logaddexp.reduce(values)


def full_weights(options: list[list[int]], seed: int, sharpness: float, temperature: float) -> np.ndarray:
    """Log-weights by the definition: every continuation read to its end, tokens held to what can stand there."""
    mean = sum(map(len, options)) / len(options)

    def held(beginning: list[int], token: int) -> float:
        values = next_logprobs(seed, sharpness, tuple(beginning))
        going_on = {o[len(beginning)] for o in options if o[: len(beginning)] == beginning and len(o) > len(beginning)}
        return float(values[token] - np.logaddexp.reduce([values[other] for other in going_on]))

    logs = [sum(held(o[:i], t) for i, t in enumerate(o)) for o in options]
    return np.array([mean * log / len(o) / temperature for log, o in zip(logs, options, strict=True)])


def run(search: TrieSearch, seed: int, sharpness: float) -> int:
    """Read what the search asks for; returns how many nodes that were."""
    beginnings: dict[int, tuple[int, ...]] = {ROOT: ()}

    def read(node: int) -> None:
        values = next_logprobs(seed, sharpness, beginnings[node])
        for child in search.trie.children[node]:
            beginnings[child] = (*beginnings[node], search.trie.tokens[child])
        search.learn(node, [float(values[search.trie.tokens[child]]) for child in search.trie.children[node]])

    count = -1
    nodes = [ROOT, *search.first()]
    while nodes:
        assert len(nodes) == len(set(nodes))
        for node in nodes:
            read(node)
        count += len(nodes)
        nodes = search.choose()
    search.trie.remember(search.needed())
    return count


continuations = st.lists(
    st.lists(st.integers(0, VOCABULARY - 1), min_size=0, max_size=5), min_size=1, max_size=60, unique_by=tuple
).map(lambda found: [[*tokens, ENDS] for tokens in found])


@settings(deadline=None, max_examples=150)
@given(
    options=continuations,
    seed=st.integers(0, 1000),
    sharpness=st.sampled_from([0.3, 2.0, 6.0, 40.0]),
    temperature=st.sampled_from([0.4, 1.0, 3.0]),
    tolerance=st.sampled_from([0.0, 1e-4, 0.01, 0.3]),
    sure=st.integers(1, 5),
    before=st.none() | st.integers(0, 3),
)
def test_the_search_lies_within_its_bound(
    options: list[list[int]],
    seed: int,
    sharpness: float,
    temperature: float,
    tolerance: float,
    sure: int,
    before: int | None,
) -> None:
    trie = Trie(options)
    if before is not None:  # what an earlier search had to read is read at once
        run(TrieSearch(trie, temperature=temperature, tolerance=tolerance, sure=sure), before, sharpness)
        assert len(trie.hot) <= HOT
    search = TrieSearch(trie, temperature=temperature, tolerance=tolerance, sure=sure)
    run(search, seed, sharpness)
    logprobs, left = search.result()
    assert 0 <= left <= tolerance + 1e-12
    mean = sum(map(len, options)) / len(options)
    found = np.array(softmax([mean * log / len(o) / temperature for log, o in zip(logprobs, options, strict=True)]))
    weights = full_weights(options, seed, sharpness, temperature)
    true = np.exp(weights - np.logaddexp.reduce(weights))
    assert 0.5 * np.abs(true - found).sum() <= left + 1e-9
    best = np.sort(true)[::-1][:sure]
    assert np.sort(found)[::-1][: len(best)] == pytest.approx(best, abs=left + 1e-9)
    for rank in range(min(sure, len(options)) - 1):  # the order of the likeliest, where they differ at all
        if best[rank] - best[rank + 1] > 1e-12 * best[rank]:
            assert true[np.argsort(-found, kind="stable")[rank]] == pytest.approx(best[rank], rel=1e-9)


def test_a_sure_model_is_read_in_few_places_and_a_flat_one_everywhere() -> None:
    rng = np.random.default_rng(0)
    options = [[*row, ENDS] for row in {tuple(rng.integers(0, VOCABULARY, 4).tolist()) for _ in range(300)}]
    beginnings = Counter(tuple(option[:i]) for option in options for i in range(1, len(option)))
    forking = sum(count > 1 for count in beginnings.values())

    def nodes_read(sharpness: float, tolerance: float) -> int:
        """As `run`, of a model that only believes in what exists."""
        search = TrieSearch(Trie(options), temperature=1.0, tolerance=tolerance)
        draw = np.random.default_rng(3)

        def read(node: int) -> None:
            values = draw.normal(size=len(search.trie.children[node])) * sharpness
            search.learn(node, list(values - np.logaddexp.reduce(values)))

        count, nodes = -1, [ROOT, *search.first()]
        while nodes:
            for node in nodes:
                read(node)
            count += len(nodes)
            nodes = search.choose()
        assert search.result()[1] <= tolerance
        return count

    assert nodes_read(10.0, 0.01) < forking / 4
    assert nodes_read(0.3, 0.0) == forking


def test_what_is_improbable_beyond_counting_is_still_ranked() -> None:
    """Log-probabilities of a thousand nats underflow as probabilities."""
    search = TrieSearch(Trie([[0, 9], [1, 2, 9], [1, 3, 9]]), temperature=1.0, tolerance=0.01)
    search.learn(ROOT, [-1000.0, -1400.0])
    while nodes := search.choose():
        for node in nodes:
            search.learn(node, [-3000.0, -3000.0])
    logprobs, left = search.result()
    assert logprobs[0] == 0.0 and left < 1e-9
    assert max(logprobs[1:]) < -390.0


def held_to(model: HFModel, prompt: Prompt, titles: list[str]) -> OptionScores:
    """By the definition: every beginning of a title scored as a continuation of its own, and set against those beside it."""
    ids = [tuple(model.vlm.response_ids(title)) for title in titles]
    beginnings = sorted({title[:end] for title in ids for end in range(1, len(title) + 1)}, key=len)
    scored = model.runner.continuation_logprobs([[model.vlm.tokenize(prompt)]], [[[list(b) for b in beginnings]]])[0][0]
    joint = dict(zip(beginnings, scored, strict=True))
    held: dict[tuple[int, ...], float] = {(): 0.0}
    for beginning in beginnings:
        beside = [joint[other] for other in beginnings if other[:-1] == beginning[:-1]]
        held[beginning] = held[beginning[:-1]] + joint[beginning] - float(np.logaddexp.reduce(beside))
    return OptionScores(logprobs=tuple(held[title] for title in ids), tokens=tuple(map(len, ids)))


@pytest.mark.parametrize("build", [tiny_qwen, tiny_internvl])
@pytest.mark.parametrize("tolerance", [0.0, 1e-9, 0.05, 0.4])
def test_a_models_search_gives_what_every_beginning_scored_by_itself_gives(build, tolerance: float, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model = HFModel.open(f"hf:{build(tmp_path / 'm')}")
    assert isinstance(model, Searcher)
    asked = knowledge_prompt(build_prompt(detection_question("q", sample(tmp_path))))
    titles = [f"{entry.title}:" for entry in BASE.entries[:40]]
    found = model.search([asked], [titles], temperature=1.0, tolerance=tolerance, sure=LISTED)[0]
    full = held_to(model, asked, titles)
    again = model.search([asked], [titles], temperature=1.0, tolerance=tolerance, sure=LISTED)[0]
    assert again.left <= tolerance and found.tokens == full.tokens and found.left <= tolerance
    mean = sum(full.tokens) / len(full.tokens)
    one, two = (softmax([mean * t / n for t, n in zip(s.logprobs, s.tokens, strict=True)]) for s in (found, full))
    assert 0.5 * sum(abs(a - b) for a, b in zip(one, two, strict=True)) <= found.left + 1e-5
    order = sorted(range(len(titles)), key=lambda i: -two[i])[:LISTED]
    assert sorted(range(len(titles)), key=lambda i: -one[i])[:LISTED] == order
    assert [found.logprobs[i] for i in order] == pytest.approx([full.logprobs[i] for i in order], abs=1e-4)


def test_nano_routes_quickly_as_it_routes_in_full(nano_folder: Path, tmp_path: Path) -> None:
    model = HFModel.open("nano:base")
    shot = sample(tmp_path)
    quick = route_sample(model, shot, BASE, mode="recall", tolerance=QUICK)
    full = route_sample(model, shot, BASE, mode="recall")
    assert quick.note.left <= QUICK and full.note.left == 0.0
    truth = {r.key: r.probability for r in full.ranking}
    assert 0.5 * sum(abs(r.probability - truth[r.key]) for r in quick.ranking) <= quick.note.left + 1e-4
    assert [r.key for r in quick.ranking[:LISTED]] == [r.key for r in full.ranking[:LISTED]]
    assert math.isclose(sum(r.probability for r in quick.ranking), 1.0, abs_tol=1e-6)
