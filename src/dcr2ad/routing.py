"""Which knowledge applies: rank the base for a photograph (Section 3.3.1, Figure 2c).

Reads a photograph, its reference, a question, a model and a knowledge base; returns ranked entries with probabilities. The
model itself is the router: an entry's probability is that of the model beginning its path with the entry's title, or, behind
an endpoint, of its letter. Knows nothing about answers, training or files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.base import ChatModel, ScoresHeld, letter_choices, softmax
from dcr2ad.prompts import (
    DEFAULT_WORDING,
    Wording,
    answer_prompt,
    build_prompt,
    describe_findings,
    detection_question,
    knowledge_prompt,
    open_prompt,
)
from dcr2ad.rankings import at_temperature
from dcr2ad.types import (
    KindGuess,
    KnowledgeEntry,
    OptionScores,
    Prompt,
    Question,
    RankedEntry,
    RouteMode,
    RoutingNote,
    Sample,
    Subtask,
)

LISTED = 4
"""Entries whose texts are put into the prompt after recall."""
SHORTLIST = 12
"""Candidates of the mode ``listed`` where none are given."""
GROUP = 12
"""Titles an endpoint is asked about at a time when it recalls."""
KINDS_WEIGHT = 2.0
"""Power to which the kinds that the expert tells are multiplied in: the model, which reads them too, trusts them too little."""
KINDS_FLOOR = 0.02
"""Probability of a kind that the expert does not tell, and what is added to that of one it does."""
ABSTAIN_BELOW = 0.02
"""Threshold of a model without a fitted one: some twice chance, of the hundred and more entries that can apply to an object."""
NONE_OF_THESE = "None of these"


class Routing(NamedTuple):
    """What the router found for one photograph."""

    ranking: tuple[RankedEntry, ...]
    """All candidates, most probable first; probabilities sum to one."""
    listed: tuple[str, ...]
    """Keys of the best entries, in the order to list them in a prompt: also where the router abstains, for a list leaves the
    choice to the reader (docs/nano.md)."""
    note: RoutingNote
    """Mode, temperature, threshold, and whether the router abstained."""
    by_place: tuple[float, ...] = ()
    """Mean probability of each place of the list over the orders tried; even when the order does not matter."""
    steady: bool = True
    """Whether every order tried had the same best entry."""


def route(
    model: ChatModel,
    image: str | Path,
    reference: str | Path | Sequence[str | Path] | None,
    question: Question | str,
    knowledge_base: KnowledgeBase,
    *,
    mode: RouteMode = "hybrid",
    candidates: Sequence[str] = (),
    expert: bool = True,
    orders: int = 1,
    listed: int = LISTED,
    whole_base: bool = False,
    wording: Wording = DEFAULT_WORDING,
) -> Routing:
    """Rank knowledge entries for a photograph, with probabilities.

    ``recall`` lists nothing: the model's probability of the title of each entry that can apply to the object
    (`KnowledgeBase.applicable`), on one cached prefix, all titles in one packed row that is a trie of what exists; each token's
    probability is among those with which a title goes on, so that it can name nothing else. ``listed`` puts the texts of the
    candidates into the prompt and reads which one the model picks. ``hybrid`` recalls, then lists the `listed` best in full and
    shares out their probability anew. Lists are ordered by key, so that no rank shows in them, and turned once for each further
    order. The three are not in the paper, which does not say how its 147 entries are offered.

    Probabilities are softmax over length-normalised log-probabilities times the mean length of a title. Where the findings in
    the prompt tell kinds of defect, they are multiplied by those kinds' at the end (`weigh_kinds`); what hybrid lists is not.
    Then they are brought to the temperature fitted for the model and mode, where there is one (`ModelInfo.routing`).

    Args:
        model: in-process, or behind an endpoint; there titles are chosen by letter, in groups for recall.
        image: the photograph.
        reference: photographs of good parts, one, several or none.
        question: what is asked; a record brings the object's name and the expert's findings with it.
        knowledge_base: K.
        mode: see above.
        candidates: keys listed in the mode ``listed``; default those of the object's category and of text search.
        expert: whether the expert's findings are in the prompt, where the question's sample has any.
        orders: orders of a list that are averaged over; with as many as it has entries, each stands in each place once.
        listed: length of hybrid's list.
        whole_base: recall ranks every entry, also such as the object cannot have.
        wording: the fixed texts of the prompts.

    Raises:
        ImageError: an image cannot be used.
        CannotScoreError: the model gives no probabilities.
        UnknownNameError: a candidate that is not in the base.
    """
    asked = _Asked.of(image, reference, question, expert, wording)
    fitted = model.info.routing.get(mode)
    temperature = fitted.temperature if fitted else 1.0
    threshold = fitted.threshold if fitted else ABSTAIN_BELOW
    by_place: tuple[float, ...] = ()
    steady = True
    if mode == "listed":
        entries = [knowledge_base.get(key) for key in candidates] or list(_shortlist(asked.sample, knowledge_base))
        found, by_place, steady = _pick(model, asked, entries, orders)
    else:
        sample = asked.sample
        entries = list(knowledge_base if whole_base else knowledge_base.applicable(sample.object, sample.dataset))
        found = _recall(model, asked, entries)
        best = sorted(found, key=lambda key: (-found[key], key))[:listed]
        if mode == "hybrid" and len(best) > 1:
            picked, by_place, steady = _pick(model, asked, [knowledge_base.get(key) for key in best], orders)
            mass = sum(found[key] for key in best)
            found |= {key: probability * mass for key, probability in picked.items()}
    # Only now: a list of the kinds told makes a small model see a defect in a good part (docs/nano.md).
    weighed = weigh_kinds(found, asked.kinds, knowledge_base)
    ranking = _ranked(knowledge_base, at_temperature(weighed, temperature))
    abstained = ranking[0].probability < threshold
    note = RoutingNote(
        mode=mode,
        temperature=temperature,
        threshold=threshold,
        calibrated=fitted is not None,
        abstained=abstained,
    )
    kept = {"listed": len(ranking), "hybrid": listed, "recall": 1}[mode]
    # In the list that was picked from: hybrid's best by recall all stay, even where a temperature reorders nothing else.
    keys = sorted(weighed, key=lambda key: (-weighed[key], key))[:kept] if mode != "hybrid" else best
    return Routing(ranking, tuple(sorted(keys)), note, by_place, steady)


def route_sample(
    model: ChatModel,
    sample: Sample,
    knowledge_base: KnowledgeBase,
    *,
    mode: RouteMode = "hybrid",
    expert: bool = True,
    shots: int = 1,
    orders: int = 1,
    whole_base: bool = False,
    wording: Wording = DEFAULT_WORDING,
) -> Routing:
    """`route` with the yes/no question, so that all questions about a photograph share one routing."""
    references = sample.references[:shots] if shots > 0 else ()
    question = detection_question(sample.id, sample)
    return route(
        model,
        sample.image,
        references,
        question,
        knowledge_base,
        mode=mode,
        expert=expert,
        orders=orders,
        whole_base=whole_base,
        wording=wording,
    )


def weigh_kinds(found: dict[str, float], kinds: Sequence[KindGuess], knowledge_base: KnowledgeBase) -> dict[str, float]:
    """Probabilities of entries, multiplied by those that the expert gives the kinds of defect (not in the paper).

    A normal state weighs as much as the likeliest kind, so that the kinds decide between defects and not whether there is one.

    Args:
        found: probability of each entry by the model.
        kinds: what the expert's findings tell; nothing changes where they tell none.
        knowledge_base: says which entries are normal states.

    Returns:
        p times (share + `KINDS_FLOOR`) to the power of `KINDS_WEIGHT`, with the sum that `found` had.
    """
    if not kinds:
        return found
    told = {kind.key: kind.probability for kind in kinds}
    likeliest = max(told.values())
    shares = {key: likeliest if knowledge_base.get(key).is_normal else told.get(key, 0.0) for key in found}
    weighed = {key: p * (shares[key] + KINDS_FLOOR) ** KINDS_WEIGHT for key, p in found.items()}
    scale = sum(found.values()) / sum(weighed.values())
    return {key: value * scale for key, value in weighed.items()}


def best_defect(ranking: Sequence[RankedEntry], knowledge_base: KnowledgeBase) -> KnowledgeEntry | None:
    """The most probable entry of a ranking that is no normal state."""
    entries = (knowledge_base.get(ranked.key) for ranked in ranking)
    return next((entry for entry in entries if not entry.is_normal), None)


def search_words(sample: Sample) -> str:
    """What text search is asked for a photograph: its object and the expert's description."""
    return f"{sample.object} {describe_findings(sample.expert) if sample.expert else ''}"


def rank_titles(model: ChatModel, prompt: Prompt, entries: Sequence[KnowledgeEntry]) -> list[RankedEntry]:
    """Rank entries by the model's probability of beginning its path with their title, as `route` does, on one prompt.

    Raises:
        CannotScoreError: the model gives no probabilities.
    """
    return list(_ranked(KnowledgeBase(entries), _title_probabilities(model, [(prompt, entries)])[0]))


class _Asked(NamedTuple):
    """One question about one photograph."""

    sample: Sample
    question: Question | str
    expert: bool
    wording: Wording

    @classmethod
    def of(
        cls,
        image: str | Path,
        reference: str | Path | Sequence[str | Path] | None,
        question: Question | str,
        expert: bool,
        wording: Wording,
    ) -> _Asked:
        several = (reference,) if isinstance(reference, str | Path) else tuple(reference or ())
        known = question.sample if isinstance(question, Question) else None
        sample = known or Sample(id=Path(image).stem, image=str(image), dataset="", object="part", is_anomalous=False)
        sample = sample.model_copy(update={"image": str(image), "references": tuple(str(path) for path in several)})
        if isinstance(question, Question):
            question = question.model_copy(update={"sample": sample})
        return cls(sample, question, expert, wording)

    def prompt(self, entries: Sequence[KnowledgeEntry] = ()) -> Prompt:
        if isinstance(self.question, Question):
            return self._built(self.question, entries)
        shots = len(self.sample.references)
        return open_prompt(self.sample, self.question, entries=entries, expert=self.expert, shots=shots, wording=self.wording)

    @property
    def kinds(self) -> tuple[KindGuess, ...]:
        """Kinds told by the findings that stand in the prompt."""
        return self.sample.expert.kinds if self.expert and self.sample.expert else ()

    def lettered(self, titles: Sequence[str], entries: Sequence[KnowledgeEntry] = ()) -> Prompt:
        """The question which of some titles applies, opened where the letter follows."""
        asked = Question(
            id=self.sample.id,
            sample=self.sample,
            subtask=Subtask.CLASSIFICATION,
            text=f"Which knowledge applies to the inspected {self.sample.object}?",
            options=tuple(titles),
            answer=0,
        )
        return answer_prompt(self._built(asked, entries))

    def _built(self, question: Question, entries: Sequence[KnowledgeEntry]) -> Prompt:
        shots = len(self.sample.references)
        return build_prompt(question, entries=entries, expert=self.expert, shots=shots, wording=self.wording)


def _recall(model: ChatModel, asked: _Asked, entries: Sequence[KnowledgeEntry]) -> dict[str, float]:
    """Probability of each entry without a list.

    An endpoint cannot score titles: it chooses among `GROUP` of them by letter, or none; an entry's odds against none make
    the groups comparable.
    """
    if model.info.backend != "openai":
        return _title_probabilities(model, [(asked.prompt(), entries)])[0]
    count = math.ceil(len(entries) / GROUP)
    groups = [entries[first::count] for first in range(count)]
    prompts = [asked.lettered([*(entry.title for entry in group), NONE_OF_THESE]) for group in groups]
    found = letter_choices(model, prompts, [len(group) + 1 for group in groups])
    odds = {
        entry.key: p / max(probabilities[-1], 1e-9)
        for group, probabilities in zip(groups, found, strict=True)
        for entry, p in zip(group, probabilities, strict=False)
    }
    total = sum(odds.values()) or 1.0
    return {entry.key: odds[entry.key] / total for entry in entries}


def _pick(
    model: ChatModel, asked: _Asked, entries: Sequence[KnowledgeEntry], orders: int
) -> tuple[dict[str, float], tuple[float, ...], bool]:
    """Probability of each of some entries whose texts stand in the prompt, over orders: mean, mean by place, steadiness."""
    listed = sorted(entries, key=lambda entry: entry.key)
    count = min(max(orders, 1), len(listed))
    turns = [[*listed[turn:], *listed[:turn]] for turn in (round(i * len(listed) / count) for i in range(count))]
    if model.info.backend == "openai":
        prompts = [asked.lettered([entry.title for entry in turn], turn) for turn in turns]
        letters = letter_choices(model, prompts, [len(turn) for turn in turns])
        found = [{e.key: p for e, p in zip(turn, ps, strict=True)} for turn, ps in zip(turns, letters, strict=True)]
    else:
        found = _title_probabilities(model, [(asked.prompt(turn), turn) for turn in turns])
    mean = {entry.key: sum(one[entry.key] for one in found) / count for entry in listed}
    places = tuple(sum(one[turn[i].key] for one, turn in zip(found, turns, strict=True)) / count for i in range(len(listed)))
    return mean, places, len({max(one, key=one.__getitem__) for one in found}) == 1


def _title_probabilities(model: ChatModel, asked: Sequence[tuple[Prompt, Sequence[KnowledgeEntry]]]) -> list[dict[str, float]]:
    """For each prompt the probability of each of its entries' titles, from length-normalised log-probabilities.

    Those of a decoder held to the titles; of a model that can only score whole titles, theirs.
    """
    prompts = [knowledge_prompt(prompt) for prompt, _ in asked]
    titles = [[f"{entry.title}:" for entry in entries] for _, entries in asked]
    scores = model.score_held(prompts, titles) if isinstance(model, ScoresHeld) else model.score(prompts, titles)
    return [_normalised(entries, score) for (_, entries), score in zip(asked, scores, strict=True)]


def _normalised(entries: Sequence[KnowledgeEntry], score: OptionScores) -> dict[str, float]:
    """Softmax over length-normalised log-probabilities of titles times their mean length."""
    mean_length = sum(score.tokens) / len(score.tokens)
    logs = [mean_length * total / count for total, count in zip(score.logprobs, score.tokens, strict=True)]
    return dict(zip((entry.key for entry in entries), softmax(logs), strict=True))


def _ranked(knowledge_base: KnowledgeBase, probabilities: dict[str, float]) -> tuple[RankedEntry, ...]:
    ranked = [
        RankedEntry(key=key, title=knowledge_base.get(key).title, probability=p, score=math.log(max(p, 1e-30)))
        for key, p in probabilities.items()
    ]
    return tuple(sorted(ranked, key=lambda entry: (-entry.probability, entry.key)))


def _shortlist(sample: Sample, knowledge_base: KnowledgeBase) -> tuple[KnowledgeEntry, ...]:
    """Candidates where none are given: the object's category, then what the findings' words bring up."""
    alike = (entry for entry, _ in knowledge_base.search(search_words(sample), SHORTLIST))
    applicable = set(knowledge_base.applicable(sample.object, sample.dataset))
    found = [*knowledge_base.category(sample.object, sample.dataset), *(entry for entry in alike if entry in applicable)]
    return tuple(dict.fromkeys(found))[:SHORTLIST] or knowledge_base.entries[:SHORTLIST]
