"""Which knowledge applies: rank the base for a photograph, and choose the entry that deceives.

Reads a question with its sample, a model and a knowledge base; returns ranked entries. The model itself is the router
(Section 3.3.1: selection is part of generation, not a classifier beside it): an entry's probability is that of the model
beginning its path with the entry's title. Knows nothing about answers, training or files.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.base import ChatModel, letter_probabilities, softmax
from dcr2ad.parsing import LETTERS
from dcr2ad.prompts import answer_prompt, build_prompt, describe_findings, detection_question, knowledge_prompt
from dcr2ad.types import KnowledgeEntry, Prompt, Question, RankedEntry, Sample, Subtask

LISTED = 4
"""Entries whose texts are put into the prompt after recall."""
SHORTLIST = 12
"""Entries a model that cannot score titles is asked to choose from, found by text search."""


class Routing(NamedTuple):
    """What the router found for one photograph."""

    ranking: tuple[RankedEntry, ...]
    """All candidates, most probable first; probabilities sum to one."""
    listed: tuple[str, ...]
    """Keys of the entries to list in the prompt, in the order listed."""


def route(
    model: ChatModel,
    sample: Sample,
    knowledge_base: KnowledgeBase,
    *,
    expert: bool = True,
    shots: int = 1,
    listed: int = LISTED,
) -> Routing:
    """Route one photograph: recall over the whole base, then a choice among the best, their texts in the prompt.

    Every entry is asked about with the yes/no question, so that all questions about the photograph share one routing. The
    first pass lists nothing: each title's probability is read on one cached prompt, all titles in one packed row. In the
    second pass the `listed` best stand in the prompt in full (ordered by key, so that their rank says nothing), and their
    probabilities are shared out anew within what recall gave them together. Not in the paper, which does not say how its
    147 entries are offered.

    Raises:
        ImageError: an image cannot be used.
    """
    question = detection_question(sample.id, sample)
    entries = knowledge_base.entries
    bare = build_prompt(question, expert=expert, shots=shots)
    if model.info.backend == "openai":
        entries = _shortlist(sample, knowledge_base)
        recalled = _choose_by_letter(model, question, entries, expert, shots)
    else:
        recalled = rank_titles(model, bare, entries)
    head = sorted(recalled[:listed], key=lambda entry: entry.key)
    keys = tuple(entry.key for entry in head)
    if model.info.backend == "openai" or len(head) < 2:
        return Routing(tuple(recalled), keys)
    texts = [knowledge_base.get(key) for key in keys]
    chosen = rank_titles(model, build_prompt(question, entries=texts, expert=expert, shots=shots), texts)
    mass = sum(entry.probability for entry in recalled[:listed])
    best = [entry.model_copy(update={"probability": entry.probability * mass}) for entry in chosen]
    return Routing((*best, *recalled[listed:]), keys)


def rank_titles(model: ChatModel, prompt: Prompt, entries: Sequence[KnowledgeEntry]) -> list[RankedEntry]:
    """Rank entries by the model's probability of beginning its path with their title.

    Probabilities are those of whole titles (sums over tokens) renormalised over the entries: what decoding restricted to the
    existing titles would give. `RankedEntry.score` is the length-normalised log-probability.

    Raises:
        CannotScoreError: the model gives no probabilities.
    """
    scores = model.score([knowledge_prompt(prompt)], [[f"{entry.title}:" for entry in entries]])[0]
    probabilities = softmax(scores.logprobs)
    ranked = [
        RankedEntry(key=entry.key, title=entry.title, probability=p, score=total / count)
        for entry, p, total, count in zip(entries, probabilities, scores.logprobs, scores.tokens, strict=True)
    ]
    return sorted(ranked, key=lambda entry: (-entry.probability, entry.key))


def choose_wrong_key(
    sample: Sample, right_key: str, knowledge_base: KnowledgeBase, *, ranking: Sequence[RankedEntry] = (), seed: int = 0
) -> tuple[str, str]:
    """Choose k_l: an entry that deceives and does not hold for the image (Section 3.3).

    Candidates come from the model's own ranking, the right entry's declared look-alikes, the normal state (for a defect) or
    likely defects (for a good part) of the same domain, siblings of its category, and text similarity; one kind is drawn at
    random, then one entry. An entry that the label resolves to as well is never chosen.

    Args:
        sample: the photograph.
        right_key: k_w.
        knowledge_base: the base K.
        ranking: the model's ranking for this photograph, where there is one.
        seed: decides the draw together with the sample's id.

    Returns:
        key of k_l, and why it deceives.

    Raises:
        UnknownNameError: `right_key` is not in the base.
    """
    right = knowledge_base.get(right_key)
    rng = random.Random(f"{seed}:{sample.id}:{right_key}")
    domain = [entry for entry in knowledge_base.category(sample.object, sample.dataset) if entry.key != right_key]
    mistakes = [knowledge_base.get(r.key) for r in ranking[:3] if r.key in knowledge_base]
    similar = [entry for entry, _ in knowledge_base.search(f"{right.title} {right.text}", 4)]
    kinds: list[tuple[str, list[KnowledgeEntry]]] = [
        ("the model finds it plausible", mistakes),
        ("declared look-alike", [entry for entry, _ in knowledge_base.look_alikes(right_key)]),
        ("other verdict in the same domain", [entry for entry in domain if entry.is_normal != right.is_normal]),
        ("sibling of the category", [entry for entry in domain if not entry.is_normal]),
        ("similar text", similar),
    ]
    usable = [(why, [e for e in found if _deceives(e, right)]) for why, found in kinds]
    usable = [(why, found) for why, found in usable if found]
    if not usable:
        usable = [("any other entry", [entry for entry in knowledge_base if _deceives(entry, right)])]
    why, found = rng.choice(usable)
    return rng.choice(found).key, why


def candidates_for(
    right_key: str, wrong_key: str, sample: Sample, knowledge_base: KnowledgeBase, *, count: int, seed: int
) -> tuple[str, ...]:
    """Keys listed in a prompt: the right one, the wrong one and fillers of the same domain, in seeded random order."""
    rng = random.Random(f"{seed}:{sample.id}:{wrong_key}:listed")
    domain = [e.key for e in knowledge_base.category(sample.object, sample.dataset)]
    fillers = [key for key in dict.fromkeys(domain) if key not in {right_key, wrong_key}]
    rng.shuffle(fillers)
    if len(fillers) < count - 2:
        others = [e.key for e in knowledge_base if e.key not in {right_key, wrong_key, *fillers}]
        fillers += rng.sample(others, min(len(others), count - 2 - len(fillers)))
    keys = [right_key, wrong_key, *fillers[: max(0, count - 2)]]
    rng.shuffle(keys)
    return tuple(keys)


def _deceives(entry: KnowledgeEntry, right: KnowledgeEntry) -> bool:
    """Whether an entry can be k_l: another one that does not claim to hold whenever the right one does.

    Entries of several defects at once ("combined") hold for each of them, and two normal entries for every good part.
    """
    if entry.key == right.key or (entry.is_normal and right.is_normal):
        return False
    combined = any(name.split("/")[-1] in {"combined", "combination"} for name in (*entry.aliases, entry.key.split(".")[-1]))
    return not combined and not set(entry.aliases) & set(right.aliases)


def _shortlist(sample: Sample, knowledge_base: KnowledgeBase) -> tuple[KnowledgeEntry, ...]:
    """Entries an endpoint is asked to choose from: the object's category, then what the findings' words bring up."""
    words = f"{sample.object} {describe_findings(sample.expert) if sample.expert else ''}"
    found = [*knowledge_base.category(sample.object, sample.dataset), *(e for e, _ in knowledge_base.search(words, SHORTLIST))]
    return tuple(dict.fromkeys(found))[:SHORTLIST] or knowledge_base.entries[:SHORTLIST]


def _choose_by_letter(
    model: ChatModel, question: Question, entries: Sequence[KnowledgeEntry], expert: bool, shots: int
) -> list[RankedEntry]:
    """Rank a shortlist through a server: titles as lettered options, one token with log-probabilities."""
    asked = Question(
        id=question.id,
        sample=question.sample,
        subtask=Subtask.CLASSIFICATION,
        text=f"Which knowledge applies to the inspected {question.sample.object}?",
        options=tuple(entry.title for entry in entries),
        answer=0,
    )
    assert len(entries) <= len(LETTERS)
    prompt = answer_prompt(build_prompt(asked, entries=entries, expert=expert, shots=shots))
    probabilities = letter_probabilities(model, [prompt], [len(entries)])[0]
    ranked = [RankedEntry(key=e.key, title=e.title, probability=p) for e, p in zip(entries, probabilities, strict=True)]
    return sorted(ranked, key=lambda entry: (-entry.probability, entry.key))
