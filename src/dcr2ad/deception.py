"""The entry that deceives: k_l for KR-RTS, and the entries listed beside it (Section 3.3).

Reads a sample, its right entry, a knowledge base and, where given, a model whose own mistakes are the best deceptions; returns
keys with the kind of deception and the reason in words. Knows nothing about questions, answers or files.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.knowledge.objects import foreign_materials, normalise
from dcr2ad.models.base import ChatModel
from dcr2ad.routing import route_sample
from dcr2ad.types import KnowledgeEntry, RankedEntry, Sample

PLAUSIBLE = 3
"""Head of the model's ranking from which its mistakes are taken."""
NEAREST = 4
"""Entries of like text looked for, the right one among them."""
MODEL = "the model finds it plausible"
LOOK_ALIKE = "declared look-alike"
VERDICT = "other verdict in the same domain"
SIBLING = "sibling of the category"
SIMILAR = "similar text"
OPTION = "wrong option of the question"
OTHER = "any other entry"
_SEVERAL = frozenset({"combined", "combination", "mixed", "multiple", "multiple_defects"})
_VAGUE = "general"
"""Category of the entries that name no kind of defect, and so hold for any."""


class Deception(NamedTuple):
    """An entry that deceives."""

    key: str
    """k_l."""
    kind: str
    """What makes it deceive, for counting: `MODEL`, `LOOK_ALIKE`, `VERDICT`, `SIBLING`, `SIMILAR`, `OPTION` or `OTHER`."""
    reason: str
    """The same with its specifics, for a reader: the statement that sets look-alikes apart, the model's probability, …"""
    strength: float | None = None
    """`MODEL`: the model's probability of the entry; `SIMILAR`: its similarity, from 0 to 1; else None."""


def choose_wrong_key(
    sample: Sample,
    right_key: str,
    knowledge_base: KnowledgeBase,
    model: ChatModel | None = None,
    seed: int = 0,
    *,
    ranking: Sequence[RankedEntry] = (),
) -> Deception:
    """Choose k_l: an entry that deceives and does not hold for the image (Section 3.3).

    Candidates come from the model's own ranking, the right entry's declared look-alikes, the normal state (for a defect) or
    likely defects (for a good part) of the same domain, siblings of its category, and text similarity; one kind is drawn at
    random, then one entry. Never chosen is what also holds for the image: see `holds_too`.

    Args:
        sample: the photograph.
        right_key: k_w.
        knowledge_base: the base K.
        model: the SFT model; its recall ranking gives the mistakes it is prone to. Costs one routing a call.
        seed: decides the draw together with the sample's id.
        ranking: the model's ranking for this photograph, where it is known already; then `model` is not asked.

    Returns:
        k_l, and why it deceives.

    Raises:
        UnknownNameError: `right_key` is not in the base.
    """
    right = knowledge_base.get(right_key)
    if model is not None and not ranking:
        ranking = route_sample(model, sample, knowledge_base, mode="recall").ranking
    rng = random.Random(f"{seed}:{sample.id}:{right_key}")
    candidates = _candidates(sample, right, knowledge_base, ranking)
    usable = [
        [one for one in found if not holds_too(knowledge_base.get(one.key), right, sample.defect)] for found in candidates
    ]
    usable = [found for found in usable if found]
    if not usable:
        left = [entry.key for entry in knowledge_base if not holds_too(entry, right, sample.defect)]
        usable = [[Deception(key, OTHER, f"{OTHER}: nothing in the base is closer to {right.title}") for key in left]]
    return rng.choice(rng.choice(usable))


def _candidates(
    sample: Sample, right: KnowledgeEntry, base: KnowledgeBase, ranking: Sequence[RankedEntry]
) -> list[list[Deception]]:
    """Entries that may deceive, a list a kind; those that hold for the image as well are among them."""
    domain = [entry for entry in base.category(sample.object, sample.dataset) if entry.key != right.key]
    state = "defect of" if right.is_normal else "normal state of"
    return [
        _mistakes(right, base, ranking),
        [
            Deception(e.key, LOOK_ALIKE, f"{LOOK_ALIKE}: {like.difference.rstrip('.')}")
            for e, like in base.look_alikes(right.key)
        ],
        [
            Deception(e.key, VERDICT, f"{VERDICT}: {e.title} is a {state} {e.category}")
            for e in domain
            if e.is_normal != right.is_normal
        ],
        [
            Deception(e.key, SIBLING, f"{SIBLING}: another defect of {sample.object}, in {e.category}")
            for e in domain
            if not e.is_normal
        ],
        _similar(right, base),
    ]


def _mistakes(right: KnowledgeEntry, base: KnowledgeBase, ranking: Sequence[RankedEntry]) -> list[Deception]:
    """The head of the model's own ranking."""
    own = next((f", {right.title} {r.probability:.2g}" for r in ranking if r.key == right.key), "")
    return [
        Deception(r.key, MODEL, f"{MODEL}: probability {r.probability:.2g} at rank {rank}{own}", r.probability)
        for rank, r in enumerate(ranking[:PLAUSIBLE], 1)
        if r.key in base
    ]


def _similar(right: KnowledgeEntry, base: KnowledgeBase) -> list[Deception]:
    """Entries whose words answer the right entry's text best; similarity is the score as a share of the text's own."""
    found = base.search(f"{right.title} {right.text}", NEAREST)
    own = next((score for entry, score in found if entry.key == right.key), found[0][1] if found else 1.0)
    return [
        Deception(entry.key, SIMILAR, f"{SIMILAR}: similarity {score / own:.2f} to {right.title}", min(1.0, score / own))
        for entry, score in found
    ]


def holds_too(entry: KnowledgeEntry, right: KnowledgeEntry, label: str | None = None, *, object_name: str = "") -> bool:
    """Whether an entry may hold for an image that the right entry holds for: then it cannot be k_l.

    Holds: the right entry itself; a second normal state for a good part, but not that of a material which the object is known
    not to be made of; an entry of several defects at once or of no particular kind for any defective part, and every defect for
    a part that has several at once or one of no particular kind; an entry that shares an alias with the right one, or goes by
    the image's own label; the same kind in another material or more narrowly ("crack" in ceramic, "hairline_crack"), which the
    last part of the keys tells.

    Args:
        entry: the entry in question.
        right: k_w.
        label: the data set's label of the defect, if any.
        object_name: the object; without one, and for one that the table of objects does not hold, any normal state may hold.
    """
    if entry.key == right.key:
        return True
    if entry.is_normal and right.is_normal:
        return entry.category not in foreign_materials(object_name)
    if entry.is_normal != right.is_normal:
        return False
    if _names_no_kind(entry) or _names_no_kind(right) or (label is not None and normalise(label) in _SEVERAL):
        return True
    if _same_kind(entry, right):
        return True
    own = {normalise(label)} if label else set()
    return bool(set(entry.aliases) & set(right.aliases) or own & _labels(entry) or _labels(right) & _plain_labels(entry))


def candidates_for(
    right_key: str, wrong_key: str, sample: Sample, knowledge_base: KnowledgeBase, *, count: int, seed: int
) -> tuple[str, ...]:
    """Keys listed in a prompt: the right one, the wrong one and fillers, in seeded random order.

    Fillers are of the object's domains; every second one is of the wrong entry's where that is of another material, so that the
    list does not tell which of the two is alone.
    """
    rng = random.Random(f"{seed}:{sample.id}:{wrong_key}:listed")
    domain = [e.key for e in knowledge_base.category(sample.object, sample.dataset)]
    fillers = [key for key in dict.fromkeys(domain) if key not in {right_key, wrong_key}]
    rng.shuffle(fillers)
    wrong = knowledge_base.get(wrong_key)
    if wrong.category in foreign_materials(sample.object):
        others = [e.key for e in knowledge_base if e.category == wrong.category and e.key != wrong_key]
        rng.shuffle(others)
        fillers = [key for both in zip(fillers, others, strict=False) for key in both]
    if len(fillers) < count - 2:
        others = [e.key for e in knowledge_base if e.key not in {right_key, wrong_key, *fillers}]
        fillers += rng.sample(others, min(len(others), count - 2 - len(fillers)))
    keys = [right_key, wrong_key, *fillers[: max(0, count - 2)]]
    rng.shuffle(keys)
    return tuple(keys)


def _names_no_kind(entry: KnowledgeEntry) -> bool:
    """Whether a defect entry stands for several kinds at once, or for none in particular."""
    return not entry.is_normal and (
        entry.category == _VAGUE or bool(_SEVERAL & {normalise(entry.key.split(".")[-1]), *_plain_labels(entry)})
    )


def _same_kind(one: KnowledgeEntry, other: KnowledgeEntry) -> bool:
    """Whether the last part of one key is that of the other, or all of its words are among the other's."""
    a, b = (set(normalise(entry.key.split(".")[-1]).split("_")) for entry in (one, other))
    return a <= b or b <= a


def _labels(entry: KnowledgeEntry) -> set[str]:
    """Labels an entry goes by, whatever data set or object they are said of; an imported entry's key ends in its label."""
    return {normalise(alias.split("/")[-1]) for alias in entry.aliases} | {normalise(entry.key.split(".")[-1])}


def _plain_labels(entry: KnowledgeEntry) -> set[str]:
    """Labels that mean the entry on any object."""
    return {normalise(alias) for alias in entry.aliases if "/" not in alias}
