"""Ranking the base, and choosing the entry that deceives."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcr2ad.errors import UnknownNameError
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.hf import HFModel
from dcr2ad.models.scripted import ScriptedModel
from dcr2ad.prompts import build_prompt, detection_question
from dcr2ad.routing import LISTED, candidates_for, choose_wrong_key, rank_titles, route
from dcr2ad.types import Prompt, Sample
from tests.tiny import tiny_internvl, tiny_photograph

BASE = KnowledgeBase.builtin()


def sample(folder: Path, number: int = 1, name: str = "magnetic tile") -> Sample:
    return Sample(
        id=f"s{number}",
        image=tiny_photograph(folder, number),
        references=(tiny_photograph(folder, 0),),
        dataset="mtd",
        object=name,
        is_anomalous=True,
        defect="crack",
    )


def _prefers(*titles: str) -> ScriptedModel:
    """A model that believes the titles, the first most."""

    def logprob(prompt: Prompt, option: str) -> float:
        title = option.removesuffix(":")
        return -float(titles.index(title)) if title in titles else -20.0

    return ScriptedModel(lambda prompt: "", logprob)


def test_the_ranking_is_the_models_own(tmp_path: Path) -> None:
    entries = BASE.entries
    routing = route(_prefers(entries[7].title, entries[3].title), sample(tmp_path), BASE)
    assert [r.key for r in routing.ranking[:2]] == [entries[7].key, entries[3].key]
    assert len(routing.ranking) == len(BASE)
    assert sum(r.probability for r in routing.ranking) == pytest.approx(1.0)
    assert len(routing.listed) == LISTED and {entries[7].key, entries[3].key} <= set(routing.listed)
    # Rank must not show in the order of the list.
    assert list(routing.listed) == sorted(routing.listed)


def test_titles_are_ranked_by_whole_title_probability(tmp_path: Path) -> None:
    model = HFModel.open(f"hf:{tiny_internvl(tmp_path / 'm')}")
    prompt = build_prompt(detection_question("q", sample(tmp_path)))
    ranked = rank_titles(model, prompt, BASE.entries[:12])
    assert len(ranked) == 12 and sum(r.probability for r in ranked) == pytest.approx(1.0)
    assert [r.probability for r in ranked] == sorted((r.probability for r in ranked), reverse=True)


@pytest.mark.parametrize("entry", BASE.entries, ids=lambda e: e.key)
def test_a_deceptive_entry_is_another_one_that_does_not_hold(entry: object, tmp_path: Path) -> None:
    right = BASE.get(entry.key)  # type: ignore[attr-defined]
    for seed in range(3):
        key, why = choose_wrong_key(sample(tmp_path), right.key, BASE, seed=seed)
        wrong = BASE.get(key)
        assert key != right.key and why
        assert not (wrong.is_normal and right.is_normal)
        assert not set(wrong.aliases) & set(right.aliases)
        assert (key, why) == choose_wrong_key(sample(tmp_path), right.key, BASE, seed=seed)


def test_every_kind_of_deception_occurs(tmp_path: Path) -> None:
    right = BASE.resolve_label("mtd", "magnetic tile", "crack", True)
    assert right is not None
    ranking = route(_prefers(right.title, BASE.entries[0].title), sample(tmp_path), BASE).ranking
    reasons = {choose_wrong_key(sample(tmp_path), right.key, BASE, ranking=ranking, seed=s)[1] for s in range(60)}
    assert {"the model finds it plausible", "declared look-alike", "similar text", "sibling of the category"} <= reasons
    with pytest.raises(UnknownNameError):
        choose_wrong_key(sample(tmp_path), "General.none.none", BASE)


def test_candidates_hold_both_in_random_order(tmp_path: Path) -> None:
    right, wrong = BASE.entries[0].key, BASE.entries[1].key
    places = []
    for number in range(60):
        listed = candidates_for(right, wrong, sample(tmp_path, number), BASE, count=4, seed=1)
        assert len(set(listed)) == 4 and {right, wrong} <= set(listed)
        places.append(listed.index(right))
    assert all(places.count(place) >= 6 for place in range(4))
