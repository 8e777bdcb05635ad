"""The entry that deceives: k_l for KR-RTS, and the entries listed beside it (Section 3.3).

Reads a sample, its right entry, a knowledge base and, where given, a model whose own mistakes are the best deceptions; returns
keys with the reason. Knows nothing about questions, answers or files.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.knowledge.objects import normalise
from dcr2ad.models.base import ChatModel
from dcr2ad.routing import route_sample
from dcr2ad.types import KnowledgeEntry, RankedEntry, Sample

PLAUSIBLE = 3
"""Head of the model's ranking from which its mistakes are taken."""
_SEVERAL = frozenset({"combined", "combination", "mixed", "multiple", "multiple_defects"})
_VAGUE = "general"
"""Category of the entries that name no kind of defect, and so hold for any."""


def choose_wrong_key(
    sample: Sample,
    right_key: str,
    knowledge_base: KnowledgeBase,
    model: ChatModel | None = None,
    seed: int = 0,
    *,
    ranking: Sequence[RankedEntry] = (),
) -> tuple[str, str]:
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
        key of k_l, and why it deceives.

    Raises:
        UnknownNameError: `right_key` is not in the base.
    """
    right = knowledge_base.get(right_key)
    if model is not None and not ranking:
        ranking = route_sample(model, sample, knowledge_base, mode="recall").ranking
    rng = random.Random(f"{seed}:{sample.id}:{right_key}")
    domain = [entry for entry in knowledge_base.category(sample.object, sample.dataset) if entry.key != right_key]
    mistakes = [knowledge_base.get(r.key) for r in ranking[:PLAUSIBLE] if r.key in knowledge_base]
    similar = [entry for entry, _ in knowledge_base.search(f"{right.title} {right.text}", 4)]
    kinds: list[tuple[str, list[KnowledgeEntry]]] = [
        ("the model finds it plausible", mistakes),
        ("declared look-alike", [entry for entry, _ in knowledge_base.look_alikes(right_key)]),
        ("other verdict in the same domain", [entry for entry in domain if entry.is_normal != right.is_normal]),
        ("sibling of the category", [entry for entry in domain if not entry.is_normal]),
        ("similar text", similar),
    ]
    usable = [(why, [e for e in found if not holds_too(e, right, sample.defect)]) for why, found in kinds]
    usable = [(why, found) for why, found in usable if found]
    if not usable:
        usable = [("any other entry", [e for e in knowledge_base if not holds_too(e, right, sample.defect)])]
    why, found = rng.choice(usable)
    return rng.choice(found).key, why


def holds_too(entry: KnowledgeEntry, right: KnowledgeEntry, label: str | None = None) -> bool:
    """Whether an entry may hold for an image that the right entry holds for: then it cannot be k_l.

    Holds: the right entry itself; a second normal state for a good part; an entry of several defects at once or of no
    particular kind for any defective part, and every defect for a part that has several at once or one of no particular kind;
    an entry that shares an alias with the right one, or goes by the image's own label; the same kind in another material or
    more narrowly ("crack" in ceramic, "hairline_crack"), which the last part of the keys tells.

    Args:
        entry: the entry in question.
        right: k_w.
        label: the data set's label of the defect, if any.
    """
    if entry.key == right.key or (entry.is_normal and right.is_normal):
        return True
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
