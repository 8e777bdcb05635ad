"""Samples to multiple-choice questions with one right option each, checked against mask, label and knowledge (Appendix B.1).

Reads `Sample`s with their masks and the knowledge base; returns `Question`s without responses, and `Rejected` records with the
reason for each question that could not stand. Templates follow MMAD's types in our own words. Knows nothing about models,
letters, or files other than masks.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass

from dcr2ad.balance import LOOK_END, OptionBalance, best_options, paired_places, surplus, uneven_sides
from dcr2ad.geometry import Geometry, sample_geometry
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.knowledge.objects import domains
from dcr2ad.places import PLACES, neighbours
from dcr2ad.prompts import shape_word, size_word
from dcr2ad.rivals import COMMON_OBJECTS, VAGUE_DOMAIN, WRONG_OPTIONS, Rivals
from dcr2ad.statements import alike, at_place, capital, statement
from dcr2ad.types import KnowledgeEntry, Question, Record, Sample, Subtask
from dcr2ad.wordings import INSTRUCT_WORDING, QuestionWording

MAIN_SHARE = 0.5
"""A place is asked for only where one cell holds at least this share of the mask; not in the paper."""
CLEAR_SHARE = 0.15
"""A cell that holds more of the mask than this is never offered as a wrong place; not in the paper."""
KINDLESS_LABELS = frozenset({"defective", "defect", "bad", "ng", "anomaly", "anomalous", "ko", "damaged", "combined"})
"""Labels that say that there is a defect and not which; what an alias makes of one is no truth to measure by."""
TOO_OFTEN = "its answer would be right too often"
"""Reason of a question left out so that the texts alone give nothing away."""


class Rejected(Record):
    """A question that could not stand, or an image no question could be made of."""

    sample: str
    """Id of the sample, or path of a file no sample was made of."""
    subtask: Subtask | None = None
    """Which question; None for the whole image."""
    reason: str
    """Why, one phrase that is the same for like cases, so that reasons can be counted."""


@dataclass(frozen=True)
class _Draft:
    """A question before its options are shuffled; each option with the key of the entry it comes from, or ''."""

    text: str
    right: tuple[str, str]
    wrong: Sequence[tuple[str, str]]
    verified: str
    asks: str = ""
    """Field of the entries that the options state, if one."""


class QuestionMaker:
    """Makes the questions of one data set, reproducibly: the seed and the sample's id decide.

    Args:
        knowledge_base: where options come from.
        samples: all samples of the data set with their `right_key`; wrong options are drawn from what is right elsewhere, so
            that an option's text alone says little about whether it is right.
        seed: seed.
        wording: templates.
        hard_share: share of the questions about a defect whose wrong options are such as this object can have, as all are in
            measuring; those of the others are what is right anywhere in the data, of which the object rules out most.
        subtasks: what is asked about; empty for all.
        thin_detection: leave questions of detection out in advance, until each object is defective as often as good; not where
            others are left out for reasons of their own, after which few of those chosen would be left.
        measuring: make questions to measure with: wrong kinds of defect are such as this object can have, not such as occur
            on any object of the data, which its name would rule out; labels that name no kind are not asked about; and no
            question has more than the five options that MMAD's own scorer reads. Otherwise questions are left out whose answer
            would be right so often that a reader of the texts alone could tell.
    """

    def __init__(
        self,
        knowledge_base: KnowledgeBase,
        samples: Iterable[Sample],
        *,
        seed: int = 0,
        wording: QuestionWording = INSTRUCT_WORDING,
        hard_share: float = 0.0,
        subtasks: Sequence[Subtask] = (),
        thin_detection: bool = True,
        measuring: bool = False,
    ) -> None:
        self._base = knowledge_base
        self._seed = seed
        self._wording = wording
        self._hard_share = hard_share
        self._subtasks = frozenset(subtasks or Subtask)
        self._thin_detection = thin_detection
        self._measuring = measuring
        self.balance = OptionBalance()
        samples = list(samples)
        self._rivals = Rivals(knowledge_base, samples, measuring=measuring)
        self._keys = self._rivals.of_object
        good = [sample for sample in samples if not sample.is_anomalous]
        self._normal = {sample.right_key for sample in good if sample.right_key and not self._fits_all(sample.right_key)}
        self._normal_options = 1
        spared = self._surplus(samples, good)
        self._spared = {} if measuring else spared

    def make(self, sample: Sample) -> tuple[list[Question], list[Rejected]]:
        """All questions of one sample, and those that could not stand.

        Raises:
            ImageError: a mask cannot be read.
        """
        geometry = sample_geometry(sample)
        entry = self._base.get(sample.right_key) if sample.right_key else None
        questions: list[Question] = []
        rejected: list[Rejected] = []
        for subtask in _asked(sample):
            if subtask not in self._subtasks:
                continue
            rng = random.Random(f"{self._seed}/{self._wording.name}/{sample.id}/{subtask}")
            if sample.id in self._spared.get(subtask, ()):
                rejected.append(Rejected(sample=sample.id, subtask=subtask, reason=TOO_OFTEN))
                continue
            draft = self._draft(subtask, sample, entry, geometry, rng)
            made = self._finish(draft, subtask, sample, rng) if isinstance(draft, _Draft) else draft
            if isinstance(made, Question):
                self.balance.count(made)
                questions.append(made)
            else:
                rejected.append(Rejected(sample=sample.id, subtask=subtask, reason=made))
        return questions, rejected

    def _surplus(self, samples: Sequence[Sample], good: Sequence[Sample]) -> dict[Subtask, set[str]]:
        """Ids of the samples each sub-task leaves out."""
        names: dict[str, Hashable] = {sample.id: sample.object for sample in good}
        kinds: dict[str, Hashable] = {
            sample.id: self._kind_of_normal(sample) for sample in good if sample.right_key in self._normal
        }
        seed = f"{self._seed}/even"
        self._normal_options = best_options(kinds.values())
        out = {Subtask.DETECTION: uneven_sides(samples, seed) if self._thin_detection else set[str]()}
        if len(self._keys) > 1:
            out[Subtask.OBJECT_CLASSIFICATION] = surplus(good, names, min(4, len(self._keys)), seed)
        if self._normal_options > 1:
            out[Subtask.OBJECT_ANALYSIS] = surplus(good, kinds, self._normal_options, seed)
        return out

    def _kind_of_normal(self, sample: Sample) -> str:
        """The first of the data's normal statements that reads much like the sample's own: the two never stand together."""
        own = statement(self._base.get(sample.right_key or ""), "cues", "")
        texts = [statement(entry, "cues", "") for entry in self._rivals.entries(self._normal)]
        return next(text for text in texts if alike(text, own, 0.3))

    def _fits_all(self, key: str) -> bool:
        """Whether a normal entry says nothing that would be wrong of another object."""
        return self._base.get(key).category in {VAGUE_DOMAIN, "surface", "structural", "contamination"}

    def _draft(
        self, subtask: Subtask, sample: Sample, entry: KnowledgeEntry | None, geometry: Geometry | None, rng: random.Random
    ) -> _Draft | str:
        """The question of one sub-task, or why there is none."""
        if subtask is Subtask.DETECTION:
            return self._detection(sample, rng)
        if subtask is Subtask.LOCALIZATION:
            return self._localization(sample, geometry, rng)
        if subtask is Subtask.OBJECT_CLASSIFICATION:
            return self._object_classification(sample, rng)
        if entry is None:
            return "the label leads to no knowledge entry"
        if subtask is Subtask.OBJECT_ANALYSIS:
            return self._object_analysis(sample, entry, rng)
        if subtask is Subtask.DESCRIPTION and geometry is not None and geometry.is_outline and rng.random() < 0.5:
            drawn = self._shape_description(geometry, rng)
            if drawn is not None:
                return drawn
        if entry.category == VAGUE_DOMAIN or (self._measuring and str(sample.defect).casefold() in KINDLESS_LABELS):
            return "the label names no kind of defect"
        return self._about_defect(subtask, sample, entry, rng)

    def _detection(self, sample: Sample, rng: random.Random) -> _Draft:
        # Half of them in the first wording: that is the one a diagnosis asks in.
        text, defective, good = rng.choice(self._wording.detection[:: rng.choice((1, len(self._wording.detection)))])
        right, wrong = (defective, good) if sample.is_anomalous else (good, defective)
        return _Draft(text, (right, ""), [(wrong, "")], "label")

    def _localization(self, sample: Sample, geometry: Geometry | None, rng: random.Random) -> _Draft | str:
        """Four places mostly, neighbours among them; all nine where the place is beyond doubt."""
        if geometry is None:
            return "the mask is empty" if sample.masks else "no mask to check a place against"
        if geometry.shares[geometry.cell] < MAIN_SHARE:
            return "the defect spreads over several places"
        clear = [cell for cell in range(9) if cell != geometry.cell and geometry.shares[cell] <= CLEAR_SHARE]
        near = {PLACES[cell] for cell in clear if cell in neighbours(geometry.cell)}
        wrong = self.balance.order(Subtask.LOCALIZATION, [(PLACES[cell], "") for cell in clear], near, rng, sample.object)
        if self._measuring or len(clear) < 8 or rng.random() < 0.8:
            wrong = paired_places(PLACES[geometry.cell], wrong)
            place = PLACES[geometry.cell]
            if not self._measuring and self.balance.is_surplus(Subtask.LOCALIZATION, place, 4, sample.object):
                return TOO_OFTEN
        return _Draft(rng.choice(self._wording.localization), (PLACES[geometry.cell], ""), wrong, "mask")

    def _shape_description(self, geometry: Geometry, rng: random.Random) -> _Draft | None:
        """Size, shape and place against the mask: two looks by two places, so that no option is the odd one out."""
        shape = shape_word(geometry.elongation)
        far = [c for c in range(9) if geometry.shares[c] == 0 and c not in neighbours(geometry.cell)]
        if shape == "longish" or not far or geometry.shares[geometry.cell] < MAIN_SHARE:
            return None
        look = f"{size_word(geometry.extent)}, {shape}"
        other_shape = "compact" if shape == "line-like" else "line-like"
        others = [capital(f"{size}, {other_shape}") for size in ("tiny", "small", "medium", "large")]
        fair = self.balance.fair_looks(capital(look), others)
        if not fair:
            return None
        looks, cells = (capital(look), rng.choice(fair)), (geometry.cell, rng.choice(far))
        options = [(f"{look}{LOOK_END}{at_place(cell)}", "") for look in looks for cell in cells]
        return _Draft(rng.choice(self._wording.description), options[0], options[1:], "mask")

    def _about_defect(self, subtask: Subtask, sample: Sample, entry: KnowledgeEntry, rng: random.Random) -> _Draft | str:
        """Classification, description from cues, and analysis: the right entry against others."""
        kind = {Subtask.CLASSIFICATION: "title", Subtask.DESCRIPTION: "cues"}.get(subtask) or rng.choice(("effect", "cause"))
        templates = {
            "title": self._wording.classification,
            "cues": self._wording.description,
            "effect": self._wording.effect,
            "cause": self._wording.cause,
        }
        hard = random.Random(f"{self._seed}/{sample.id}/{subtask}/hard").random() < self._hard_share
        near, rivals = self._rivals.tiers(entry, sample, of_object=hard)
        own = self._keys[sample.object] if hard and kind == "title" else ()
        draft = self._choice(subtask, rng.choice(templates[kind]), kind, sample, entry, rivals, near, rng, own=own)
        # Data of few kinds has the same ones right again and again; and half of any kind's questions stay, unless most offers
        # keep to the object's own kinds: then the one kind of another object is hardly ever wrong.
        strict = self._hard_share > 0
        spare = not self._measuring and len(self._rivals.kinds) > 4 and (rng.random() < 0.5 or strict)
        often = spare and isinstance(draft, _Draft) and self.balance.is_surplus(subtask, draft.right[0], 4, strict=strict)
        return TOO_OFTEN if often else draft

    def _object_analysis(self, sample: Sample, entry: KnowledgeEntry, rng: random.Random) -> _Draft | str:
        """The normal entry of this object against those of domains that do not fit it, of the data's own where it has two."""
        if self._fits_all(entry.key):
            return "what is normal of the part is normal of any part"
        fitting = {*domains(sample.object), entry.category}
        own = self._normal_options > 1
        rivals = (
            [
                other
                for other in self._rivals.entries(keys)
                if other.is_normal and other.category not in fitting and not self._fits_all(other.key)
            ]
            for keys in ([self._normal] if own else [self._rivals.known])
        )
        text = rng.choice(self._wording.object_analysis)
        most = self._normal_options - 1 if own else WRONG_OPTIONS
        return self._choice(Subtask.OBJECT_ANALYSIS, text, "cues", sample, entry, rivals, (), rng, most)

    def _object_classification(self, sample: Sample, rng: random.Random) -> _Draft:
        own = [(capital(name), "") for name in sorted(self._keys) if not alike(name, sample.object, 0)]
        wrong = self.balance.order(Subtask.OBJECT_CLASSIFICATION, own, (), rng)[:3]
        if not wrong:  # data of one object: its name is always right, and others must be found
            wrong = [(capital(name), "") for name in COMMON_OBJECTS if not alike(name, sample.object, 0)]
            wrong = rng.sample(wrong, 3)
        return _Draft(rng.choice(self._wording.object_classification), (capital(sample.object), ""), wrong, "label")

    def _choice(
        self,
        subtask: Subtask,
        text: str,
        kind: str,
        sample: Sample,
        entry: KnowledgeEntry,
        rivals: Iterable[Sequence[KnowledgeEntry]],
        near: Collection[str],
        rng: random.Random,
        most: int = WRONG_OPTIONS,
        own: Collection[str] = (),
    ) -> _Draft | str:
        """The right entry's statement and up to `most` of others, from the first tier on, that do not say much the same.

        Names of kinds of which the data tell one from the other, `own`, may share a word: an open circuit is no short circuit.
        """
        right = statement(entry, kind, sample.object)
        if not right:
            return f"the knowledge entry has no {kind}"
        wrong: list[tuple[str, str]] = []
        for tier in rivals:
            offers = [(statement(rival, kind, sample.object), rival.key) for rival in tier]
            favoured = {offer for offer, key in offers if key in near}
            for offer, key in self.balance.order(subtask, offers, favoured, rng):
                limit = 0.6 if key in own else 0.3
                if offer and not any(alike(offer, other, limit) for other in (right, *(said for said, _ in wrong))):
                    wrong.append((offer, key))
                if len(wrong) == most:
                    return _Draft(text, (right, entry.key), wrong, "entry", kind)
        return "too few wrong options that are plainly wrong"

    def _finish(self, draft: _Draft, subtask: Subtask, sample: Sample, rng: random.Random) -> Question | str:
        """Shuffle the options, put the right one in its place, and make sure that just one is right."""
        wrong = rng.sample(draft.wrong, len(draft.wrong))
        texts = [option.casefold() for option, _ in (draft.right, *wrong)]
        if len(set(texts)) < len(texts):
            return "two options read the same"
        answer = self.balance.place(subtask, len(texts), sample.is_anomalous, rng)
        options = [*wrong[:answer], draft.right, *wrong[answer:]]
        provenance = {"maker": "templates", "wording": self._wording.name, "template": draft.text, "verified": draft.verified}
        if draft.asks:
            provenance["asks"] = draft.asks
        if draft.right[1]:
            provenance["keys"] = " ".join(key for _, key in options)
        return Question(
            id=f"{sample.id}#{subtask.name.lower()}",
            sample=sample,
            subtask=subtask,
            text=draft.text.format(object=sample.object),
            options=tuple(option for option, _ in options),
            answer=answer,
            provenance=provenance,
        )


def _asked(sample: Sample) -> tuple[Subtask, ...]:
    """Sub-tasks asked of a sample, in order."""
    if sample.is_anomalous:
        return (
            Subtask.DETECTION, Subtask.CLASSIFICATION, Subtask.LOCALIZATION, Subtask.DESCRIPTION, Subtask.ANALYSIS,
        )  # fmt: skip
    return (Subtask.DETECTION, Subtask.OBJECT_CLASSIFICATION, Subtask.OBJECT_ANALYSIS)
