"""Wrong options: which entries can stand beside the right one without being right as well.

Reads the knowledge base and a data set's `Sample`s; returns entries in tiers, the best first. Knows nothing about texts, order
or balance. Not in the paper, but for what follows under a wrong entry (Section 3.3).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.knowledge.objects import DOMAINS, GENERAL_DOMAINS, domains
from dcr2ad.knowledge.search import tokens
from dcr2ad.statements import kind_words
from dcr2ad.types import KnowledgeEntry, Question, Sample, Subtask

VAGUE_DOMAIN = "general"
"""Entries of this domain name no kind of defect ("defect of unknown kind") and are neither asked for nor offered."""

WRONG_OPTIONS = 3
"""Wrong options of a question about kinds; with fewer kinds of its own an object cannot fill them."""

COMMON_OBJECTS = ("gear wheel", "zipper", "glass bottle", "electric cable", "leather sheet", "toothbrush", "carpet")
"""Names offered besides the data's own objects."""


class Rivals:
    """Wrong entries for the right ones of one data set.

    Args:
        knowledge_base: all entries.
        samples: all samples of the data set with their `right_key`.
        measuring: only defects that the object can have, and none that the right entry names as its cause or effect.
    """

    def __init__(self, knowledge_base: KnowledgeBase, samples: Iterable[Sample], *, measuring: bool) -> None:
        self._base = knowledge_base
        self._measuring = measuring
        self.of_object: dict[str, set[str]] = {}
        """Right keys of each object of the data; objects without any too."""
        for sample in samples:
            self.of_object.setdefault(sample.object, set()).update([sample.right_key] if sample.right_key else [])
        self._of_data = set().union(*self.of_object.values())
        self.kinds = {key for key in self._of_data if not knowledge_base.get(key).is_normal}
        """Right keys of the data's defects."""
        self._words = {entry.key: kind_words(entry) for entry in knowledge_base}

    @property
    def known(self) -> Collection[str]:
        """Keys of all entries."""
        return self._words.keys()

    def tiers(
        self, entry: KnowledgeEntry, sample: Sample, *, of_object: bool = False
    ) -> tuple[set[str], Iterator[list[KnowledgeEntry]]]:
        """Keys of what is most alike, look-alikes and the object's own; and rivals of `entry`, tier by tier.

        `of_object`: the first tiers hold what this object can have, as they always do in measuring; else only of an object with
        kinds enough in the data, since a kind that is never right elsewhere tells a reader of the texts that it is wrong.
        """
        own = self.of_object.get(sample.object, set())
        near = {other.key for other, _ in self._base.look_alikes(entry.key)} | own
        keyed: tuple[Collection[str], ...] = (self._of_data, near, self.known)
        if self._measuring:
            keyed = self._plausible_keys(sample, near)
        elif of_object and len(self.kinds & own) > WRONG_OPTIONS:
            keyed = (own, *keyed)
        return near, ([other for other in self.entries(keys) if self._is_rival(other, entry, sample)] for keys in keyed)

    def entries(self, keys: Iterable[str]) -> list[KnowledgeEntry]:
        """Entries of these keys, in order of key."""
        return [self._base.get(key) for key in sorted(keys)]

    def _plausible_keys(self, sample: Sample, near: Collection[str]) -> tuple[Collection[str], ...]:
        """Keys of defects this object can have: its own in the data, the data's that fit, look-alikes, any that fit."""
        first, *others = domains(sample.object)
        fitting = {entry.key for entry in self._base if entry.category in {first, *others, *GENERAL_DOMAINS}}
        of_first = {entry.key for entry in self._base if entry.category == first}
        return self.of_object.get(sample.object, ()), self._of_data & fitting, set(near) & fitting, of_first, fitting

    def _is_rival(self, other: KnowledgeEntry, entry: KnowledgeEntry, sample: Sample) -> bool:
        """Whether an entry can be a wrong option beside the right one: a kind of defect that could not be called right as well.

        A word that one's title or aliases share with the other's says that it could, but never of kinds that the data itself
        tells apart on this object.
        """
        if other.key == entry.key or other.is_normal or other.category == VAGUE_DOMAIN:
            return False
        if other.key in self.of_object.get(sample.object, ()):
            return True
        # What the right entry itself names as cause or effect may well be seen beside it: wear beside pitting.
        if self._measuring and self._words[other.key] & set(tokens(f"{entry.cause} {entry.effect} {entry.text}")):
            return False
        return not any(a in b or b in a for a in self._words[entry.key] for b in self._words[other.key])


def answer_under(entry: KnowledgeEntry, question: Question) -> int | None:
    """The option a reader who believes `entry` must choose: what KR-RTS concludes under a wrong entry (Section 3.3).

    Detection follows `is_normal`; a question whose options come from entries follows the option of this one; a normal state
    leads to the object of its material; a place or an outline seen in the picture is the same under every defect. None where
    the entry leads to no option.
    """
    if question.subtask is Subtask.DETECTION:
        right_side = entry.is_normal != question.sample.is_anomalous
        return question.answer if right_side else 1 - question.answer
    keys = question.provenance.get("keys", "").split()
    if keys:
        return keys.index(entry.key) if entry.key in keys else None
    if question.subtask is Subtask.OBJECT_CLASSIFICATION and entry.is_normal:
        return _object_of(entry, question)
    asks_defect = question.subtask in {Subtask.LOCALIZATION, Subtask.DESCRIPTION}
    return question.answer if asks_defect != entry.is_normal else None


def _object_of(entry: KnowledgeEntry, question: Question) -> int | None:
    """The part asked for where its normal state can be `entry`; else the only option whose normal state can."""
    named = [number for number, option in enumerate(question.options) if entry.category in domains(option)]
    if question.answer in named or entry.category not in DOMAINS:
        return question.answer
    return named[0] if len(named) == 1 else None
