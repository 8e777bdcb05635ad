"""Ranking the base, and choosing the entry that deceives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from dcr2ad.deception import LOOK_ALIKE, MODEL, SIBLING, SIMILAR, candidates_for, choose_wrong_key, holds_too
from dcr2ad.errors import CannotScoreError, UnknownNameError
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.base import ModelInfo
from dcr2ad.models.hf import HFModel
from dcr2ad.models.scripted import ScriptedModel
from dcr2ad.prompts import build_prompt, detection_question, knowledge_prompt
from dcr2ad.routing import LISTED, rank_titles, route, route_sample, weigh_kinds
from dcr2ad.types import ExpertFindings, KindGuess, OptionScores, Prompt, RouteMode, Sample
from tests.tiny import tiny_internvl, tiny_photograph

BASE = KnowledgeBase.builtin()
TILE = BASE.applicable("magnetic tile", "mtd")


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
    entries = TILE
    routing = route_sample(_prefers(entries[7].title, entries[3].title), sample(tmp_path), BASE)
    assert [r.key for r in routing.ranking[:2]] == [entries[7].key, entries[3].key]
    assert {r.key for r in routing.ranking} == {entry.key for entry in TILE}
    assert sum(r.probability for r in routing.ranking) == pytest.approx(1.0)
    assert len(routing.listed) == LISTED and {entries[7].key, entries[3].key} <= set(routing.listed)
    # Rank must not show in the order of the list.
    assert list(routing.listed) == sorted(routing.listed)


def test_kinds_that_the_expert_tells_are_multiplied_in(tmp_path: Path) -> None:
    normal, crack, fray, blowhole = (BASE.get(f"General.ceramic.{name}") for name in ("normal", "crack", "fray", "blowhole"))
    found = {normal.key: 0.4, crack.key: 0.3, fray.key: 0.2, blowhole.key: 0.1}
    kinds = tuple(KindGuess(key=e.key, title=e.title, probability=p) for e, p in ((fray, 0.8), (crack, 0.2)))
    weighed = weigh_kinds(found, kinds, BASE)
    by_hand = {normal.key: 0.4 * 0.82**2, crack.key: 0.3 * 0.22**2, fray.key: 0.2 * 0.82**2, blowhole.key: 0.1 * 0.02**2}
    assert weighed == pytest.approx({key: value / sum(by_hand.values()) for key, value in by_hand.items()})
    assert weigh_kinds(found, (), BASE) == found
    # the order of the normal state and the likeliest kind is the model's own
    assert weighed[normal.key] / weighed[fray.key] == pytest.approx(2.0)
    told = ExpertFindings(
        score=9, raw=1, threshold=3, cell=0, cells=(0.0,) * 9, extent=0.1, elongation=2, tone="darker", kinds=kinds
    )
    seen = sample(tmp_path).model_copy(update={"expert": told})
    model = _prefers(crack.title, fray.title)
    for mode in ("recall", "hybrid", "listed"):
        assert route_sample(model, seen, BASE, mode=mode).ranking[0].key == fray.key, mode
        assert route_sample(model, seen, BASE, mode=mode, expert=False).ranking[0].key == crack.key, mode
    unsure = _prefers(crack.title, normal.title)  # names no frays: they are not listed, whatever the expert tells
    assert fray.key not in route_sample(unsure, seen, BASE).listed


def test_what_the_object_cannot_have_is_ranked_only_where_asked_for(tmp_path: Path) -> None:
    foreign = BASE.get("General.textile.slub")
    model = _prefers(foreign.title, TILE[0].title)
    assert route_sample(model, sample(tmp_path), BASE, mode="recall").ranking[0].key == TILE[0].key
    whole = route_sample(model, sample(tmp_path), BASE, mode="recall", whole_base=True).ranking
    assert whole[0].key == foreign.key and len(whole) == len(BASE)
    unknown = route_sample(model, sample(tmp_path, name="widget"), BASE, mode="recall").ranking
    assert [r.key for r in unknown] == [r.key for r in whole]


def test_titles_are_ranked_by_their_mean_log_probability_a_token(tmp_path: Path) -> None:
    model = HFModel.open(f"hf:{tiny_internvl(tmp_path / 'm')}")
    prompt = build_prompt(detection_question("q", sample(tmp_path)))
    ranked = rank_titles(model, prompt, BASE.entries[:12])
    asked = ([knowledge_prompt(prompt)], [[f"{entry.title}:" for entry in BASE.entries[:12]]])
    scores = model.score_held(*asked)[0]
    mean = {e.key: total / n for e, total, n in zip(BASE.entries, scores.logprobs, scores.tokens, strict=False)}
    assert [r.key for r in ranked] == sorted(mean, key=lambda key: -mean[key])
    assert len(ranked) == 12 and sum(r.probability for r in ranked) == pytest.approx(1.0)
    assert [r.probability for r in ranked] == sorted((r.probability for r in ranked), reverse=True)


@pytest.mark.parametrize("entry", BASE.entries, ids=lambda e: e.key)
def test_a_deceptive_entry_is_another_one_that_does_not_hold(entry: object, tmp_path: Path) -> None:
    right = BASE.get(entry.key)  # type: ignore[attr-defined]
    for seed in range(3):
        found = choose_wrong_key(sample(tmp_path), right.key, BASE, seed=seed)
        wrong = BASE.get(found.key)
        assert wrong.key != right.key and found.reason.startswith(f"{found.kind}: ")
        assert not (wrong.is_normal and right.is_normal)
        assert not set(wrong.aliases) & set(right.aliases)
        assert found == choose_wrong_key(sample(tmp_path), right.key, BASE, seed=seed)


def test_every_kind_of_deception_occurs(tmp_path: Path) -> None:
    right = BASE.resolve_label("mtd", "magnetic tile", "crack", True)
    assert right is not None
    model = _prefers(right.title, TILE[9].title)
    found = {one.kind: one for one in (choose_wrong_key(sample(tmp_path), right.key, BASE, model, s) for s in range(80))}
    assert {MODEL, LOOK_ALIKE, SIMILAR, SIBLING} <= set(found)
    # The reason holds its specifics: what sets look-alikes apart, the model's probabilities, how similar the texts are.
    differences = {entry.key: like.difference.rstrip(".") for entry, like in BASE.look_alikes(right.key)}
    assert found[LOOK_ALIKE].reason == f"{LOOK_ALIKE}: {differences[found[LOOK_ALIKE].key]}"
    plausible = found[MODEL]
    ranking = route_sample(model, sample(tmp_path), BASE, mode="recall").ranking
    assert plausible.strength == next(r.probability for r in ranking if r.key == plausible.key)
    assert f"probability {plausible.strength:.2g}" in plausible.reason and right.title in plausible.reason
    strength = found[SIMILAR].strength
    assert strength is not None and 0 < strength < 1 and f"{strength:.2f}" in found[SIMILAR].reason
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


def test_a_list_does_not_tell_which_of_two_materials_is_alone(tmp_path: Path) -> None:
    right, wrong = "General.ceramic.normal", "General.food.normal"
    for number in range(20):
        listed = candidates_for(right, wrong, sample(tmp_path, number), BASE, count=4, seed=1)
        of_food = [BASE.get(key).category for key in listed].count("food")
        assert len(set(listed)) == 4 and {right, wrong} <= set(listed) and of_food == 2


def test_another_normal_state_deceives_where_it_is_of_a_foreign_material() -> None:
    tile, metal, surface = (BASE.get(f"General.{domain}.normal") for domain in ("ceramic", "metal", "surface"))
    assert holds_too(metal, tile) and holds_too(metal, tile, object_name="an object of nobody's table")
    assert not holds_too(metal, tile, object_name="magnetic tile")
    assert holds_too(surface, tile, object_name="magnetic tile"), "a surface is no material"
    assert holds_too(tile, tile, object_name="magnetic tile")
    assert holds_too(metal, BASE.get("General.contact.normal"), object_name="usb"), "a plug is of both"


def test_what_also_holds_never_deceives() -> None:
    several, crack = BASE.get("General.general.several_defects"), BASE.get("General.structural.crack")
    normal, scratch = BASE.get("General.general.normal"), BASE.get("General.surface.scratch")
    assert holds_too(several, crack) and holds_too(crack, several)
    assert holds_too(scratch, crack, "combined")
    assert not holds_too(normal, several) and not holds_too(scratch, crack, "crack")
    assert holds_too(BASE.get("General.ceramic.crack"), crack) and holds_too(crack, BASE.get("General.ceramic.crack"))
    imported = crack.model_copy(update={"key": "MVTec.tile.crack", "source": "mmad", "aliases": ("mvtec/tile/crack",)})
    assert holds_too(crack, imported)


def test_a_part_with_several_defects_is_deceived_by_the_normal_state_alone(tmp_path: Path) -> None:
    for seed in range(20):
        found = choose_wrong_key(sample(tmp_path), "General.general.several_defects", BASE, seed=seed)
        assert BASE.get(found.key).is_normal


def test_the_modes_differ_in_what_the_model_is_shown(tmp_path: Path) -> None:
    seen: list[str] = []

    def logprob(prompt: Prompt, option: str) -> float:
        seen.append("".join(part.text for part in prompt.parts if part.kind == "text"))
        return -1.0 if option == f"{TILE[5].title}:" else -9.0

    shot = sample(tmp_path)
    question = detection_question("q", shot)
    shown: dict[RouteMode, int] = {}
    for mode in ("recall", "listed", "hybrid"):
        seen.clear()
        routing = route(ScriptedModel(lambda p: "", logprob), shot.image, shot.references, question, BASE, mode=mode)
        shown[mode] = sum("Knowledge:" in text for text in seen)
        assert routing.note.mode == mode and sum(r.probability for r in routing.ranking) == pytest.approx(1.0)
        if mode != "listed":
            assert routing.ranking[0].key == TILE[5].key and len(routing.ranking) == len(TILE)
    assert shown["recall"] == 0 and shown["hybrid"] == LISTED and shown["listed"] > LISTED


def test_averaging_over_orders_takes_the_place_out_of_the_choice(tmp_path: Path) -> None:
    keys = [BASE.entries[i].key for i in (3, 20, 40, 60)]

    def first_place(prompt: Prompt, option: str) -> float:
        text = prompt.parts[-1].text  # type: ignore[union-attr]
        return 0.0 if f"Knowledge:\n- {option.rstrip(':')} shows:" in text else -2.0

    def asked(orders: int):  # type: ignore[no-untyped-def]
        shot = sample(tmp_path)
        model = ScriptedModel(lambda p: "", first_place)
        return route(model, shot.image, None, "Is it whole?", BASE, mode="listed", candidates=keys, orders=orders)

    once, averaged = asked(1), asked(4)
    assert once.ranking[0].probability > 0.6 and once.ranking[0].key == min(keys)
    assert [r.probability for r in averaged.ranking] == pytest.approx([0.25] * 4)
    assert averaged.by_place[0] > 0.6 and not averaged.steady


def test_a_fitted_temperature_and_threshold_are_used(tmp_path: Path) -> None:
    from dcr2ad.types import RoutingCalibration

    fitted = RoutingCalibration(
        temperature=5.0, threshold=0.9, photographs=9, ranked=9, nll=(2.0, 1.0), questions="q", knowledge="k"
    )
    model = _prefers(TILE[7].title)
    plain = route_sample(model, sample(tmp_path), BASE, mode="recall")
    info = model.info.model_copy(update={"routing": {"recall": fitted}})
    type(model).info, kept = property(lambda self: info), type(model).info  # type: ignore[misc,method-assign]
    try:
        flat = route_sample(model, sample(tmp_path), BASE, mode="recall")
    finally:
        type(model).info = kept  # type: ignore[method-assign]
    assert plain.note.calibrated is False and plain.ranking[0].probability > 0.99
    assert flat.note.abstained and flat.listed and flat.ranking[0].probability < 0.9
    assert flat.ranking[0].key == plain.ranking[0].key


class _Endpoint(ScriptedModel):
    """A model that can only be asked for letters, as behind an endpoint."""

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(name="m", digest="m", backend="openai", can_score=True)


@pytest.mark.parametrize("mode", ["recall", "hybrid", "listed"])
def test_an_endpoint_ranks_by_letters_over_all_that_can_apply(tmp_path: Path, mode: RouteMode) -> None:
    wanted = BASE.resolve_label("mtd", "magnetic tile", "crack", True)
    assert wanted is not None
    asked: list[str] = []

    def logprob(prompt: Prompt, option: str) -> float:
        assert len(option.strip()) == 1
        text = "".join(part.text for part in prompt.parts if part.kind == "text")
        asked.append(text)
        named = f"\n{option.strip()}. {wanted.title} ({option.strip()})" in text
        none = f"\n{option.strip()}. None of these" in text
        return 0.0 if named else -1.0 if none else -9.0

    routing = route_sample(_Endpoint(lambda p: "", logprob), sample(tmp_path), BASE, mode=mode)
    assert routing.ranking[0].key == wanted.key and routing.ranking[0].probability > 0.9
    assert sum(r.probability for r in routing.ranking) == pytest.approx(1.0)
    if mode != "listed":
        assert {r.key for r in routing.ranking} == {entry.key for entry in TILE}
        assert all(any(f". {entry.title} (" in text for text in set(asked)) for entry in TILE)


class _Held(_Endpoint):
    """A server without log-probabilities, held to letters: it writes that of the title it prefers, else the last."""

    def __init__(self, title: str) -> None:
        super().__init__(lambda prompt: "", lambda prompt, option: 0.0)
        self._title = title

    def score(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[OptionScores]:
        raise CannotScoreError("no log-probabilities", "")

    def choose(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[int]:
        found = []
        for prompt, letters in zip(prompts, options, strict=True):
            text = "".join(part.text for part in prompt.parts if part.kind == "text")
            found.append(
                next(
                    (i for i, letter in enumerate(letters) if f"\n{letter}. {self._title} ({letter})" in text), len(letters) - 1
                )
            )
        return found


@pytest.mark.parametrize("mode", ["listed", "recall", "hybrid"])
def test_a_server_without_probabilities_is_held_to_the_candidates(tmp_path: Path, mode: RouteMode) -> None:
    entry = BASE.entries[3]
    shot = sample(tmp_path)
    routing = route(
        _Held(entry.title),
        shot.image,
        shot.references,
        detection_question("q", shot),
        BASE,
        mode=mode,
        candidates=[e.key for e in BASE.entries[:6]],
    )
    assert routing.ranking[0].key == entry.key
    assert routing.ranking[0].probability > 0.9
