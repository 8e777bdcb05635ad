"""Samples to multiple-choice questions with one right option each, checked against mask, label and knowledge (Appendix B.1).

Reads `Sample`s with their masks and the knowledge base; returns `Question`s without responses, and `Rejected` records with the
reason for each question that could not stand. Templates follow MMAD's types in our own words. Knows nothing about models,
letters, or files other than masks.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dcr2ad.errors import ImageError
from dcr2ad.images import load_mask
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.knowledge.agnostic import name_object
from dcr2ad.knowledge.objects import GENERAL_DOMAINS, domains
from dcr2ad.knowledge.search import tokens
from dcr2ad.places import PLACES, cell_shares, neighbours
from dcr2ad.prompts import DETECTION_QUESTION, LOCATION_QUESTION, shape_word, size_word
from dcr2ad.types import KnowledgeEntry, Question, Record, Sample, Subtask

MAIN_SHARE = 0.5
"""A place is asked for only where one cell holds at least this share of the mask; not in the paper."""
CLEAR_SHARE = 0.15
"""A cell that holds more of the mask than this is never offered as a wrong place; not in the paper."""
VAGUE_DOMAIN = "general"
"""Entries of this domain name no kind of defect ("defect of unknown kind") and are neither asked for nor offered."""
KINDLESS_LABELS = frozenset({"defective", "defect", "bad", "ng", "anomaly", "anomalous", "ko", "damaged", "combined"})
"""Labels that say that there is a defect and not which; what an alias makes of one is no truth to measure by."""
COMMON_OBJECTS = ("gear wheel", "zipper", "glass bottle", "electric cable", "leather sheet", "toothbrush", "carpet")
"""Names offered besides the data's own objects."""


class Rejected(Record):
    """A question that could not stand, or an image no question could be made of."""

    sample: str
    """Id of the sample, or path of a file no sample was made of."""
    subtask: Subtask | None = None
    """Which question; None for the whole image."""
    reason: str
    """Why, one phrase that is the same for like cases, so that reasons can be counted."""


@dataclass(frozen=True)
class QuestionWording:
    """Templates of the questions; ``{object}`` is the object's name. Two sets never share a template (see tests)."""

    name: str
    detection: tuple[tuple[str, str, str], ...]
    """Question, the option that says defective, the option that says good."""
    classification: tuple[str, ...]
    localization: tuple[str, ...]
    description: tuple[str, ...]
    effect: tuple[str, ...]
    cause: tuple[str, ...]
    object_classification: tuple[str, ...]
    object_analysis: tuple[str, ...]


INSTRUCT_WORDING = QuestionWording(
    name="instruct",
    detection=(
        (DETECTION_QUESTION, "Yes", "No"),
        ("Does the {object} deviate from a good one?", "Yes", "No"),
        ("Is this {object} free of defects?", "No", "Yes"),
        ("What is the state of the {object}?", "Defective", "Good"),
    ),
    classification=("Which kind of defect is it?", "What is the defect called?", "There is a defect. Of which type is it?"),
    localization=(LOCATION_QUESTION, "In which part of the picture is the defect?", "Which place is affected by the defect?"),
    description=("What does the defect look like?", "Which description fits the defect?", "How does the defect appear?"),
    effect=("Which effect is typical of this defect?", "What can this defect lead to?"),
    cause=("Which cause is typical of this defect?", "What does this defect usually come from?"),
    object_classification=("Which object is inspected?", "What is shown in the picture?"),
    object_analysis=("Which features show that this part is normal?", "How does a good part of this kind look?"),
)
"""For training."""

BENCHMARK_WORDING = QuestionWording(
    name="benchmark",
    detection=(
        ("Can a defect be seen on the {object}?", "Yes", "No"),
        ("Compared with a normal {object}, is anything wrong here?", "Yes", "No"),
    ),
    classification=("A defect is present. What type is it?", "Name the defect."),
    localization=("The {object} has a defect. Where does it lie?", "Name the place of the defect on the {object}."),
    description=("A defect is present. How would you describe it?", "What is the appearance of the defect?"),
    effect=("A defect is present. What may follow from it?", "What is the likely consequence of the defect?"),
    cause=("A defect is present. What has probably led to it?", "What is the likely origin of the defect?"),
    object_classification=("What kind of product is this?", "Name the product in the picture."),
    object_analysis=("What is characteristic of this product in good order?", "By what can its normal state be told?"),
)
"""Held out, for measuring; the blanks aside no template is one of training."""


@dataclass(frozen=True)
class Geometry:
    """What a mask says about its defect, in the measures of `ExpertFindings`."""

    cell: int
    """Cell that holds most of the mask."""
    shares: tuple[float, ...]
    """Share of the mask in each cell."""
    extent: float
    """Share of the image."""
    elongation: float
    """Ratio of the principal axes."""
    is_outline: bool
    """Whether shape can be told: the mask is one region, and no plain box."""


def mask_geometry(mask: np.ndarray) -> Geometry:
    """Measure a mask, boolean, shape ``(height, width)``. Raises ValueError for an empty one."""
    rows, columns = np.nonzero(mask)
    if not rows.size:
        raise ValueError("the mask is empty")
    shares = cell_shares(mask)
    spread = np.cov(np.stack([rows, columns]).astype(np.float64)) if rows.size > 1 else np.zeros((2, 2))
    # A pixel is a unit square: 1/12 keeps a line one pixel wide finite.
    small, large = np.linalg.eigvalsh(spread + np.eye(2) / 12)
    box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    return Geometry(
        cell=int(shares.argmax()),
        shares=tuple(float(share) for share in shares),
        extent=float(rows.size / mask.size),
        elongation=float(np.sqrt(large / small)),
        is_outline=bool(rows.size < box and _is_one_region(rows, columns, mask.shape)),
    )


@lru_cache(maxsize=64)
def _geometry_of(masks: tuple[str, ...]) -> Geometry | None:
    union = load_mask(masks[0])
    for path in masks[1:]:
        other = load_mask(path)
        if other.shape != union.shape:
            raise ImageError(f"mask {path} has another size than {masks[0]}", "Masks of one image must have one size")
        union = union | other
    return mask_geometry(union) if union.any() else None


def sample_geometry(sample: Sample) -> Geometry | None:
    """Geometry of all masks of a sample together; None where it is good, has no mask, or an empty one.

    Raises:
        ImageError: a mask cannot be read, or two differ in size.
    """
    return _geometry_of(sample.masks) if sample.is_anomalous and sample.masks else None


def _is_one_region(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether the pixels hang together on a coarse grid of 48 cells a side, gaps of one cell closed."""
    left = set(zip((rows * 48 // shape[0]).tolist(), (columns * 48 // shape[1]).tolist(), strict=True))
    edge = [left.pop()]
    while edge:
        r, c = edge.pop()
        near = left & {(r + dr, c + dc) for dr in range(-2, 3) for dc in range(-2, 3)}
        left -= near
        edge.extend(near)
    return not left


@dataclass(frozen=True)
class _Draft:
    """A question before its options are shuffled; each option with the key of the entry it comes from, or ''."""

    text: str
    right: tuple[str, str]
    wrong: Sequence[tuple[str, str]]
    verified: str
    side: str = ""


class OptionBalance:
    """Keeps letters and option texts from telling which option is right, over a whole data set.

    Right options are put where they have been least often, apart for each sub-task, number of options and side (defective or
    good), so that "Yes" is A as often as B; and a text is offered as a wrong option about as often, for each time it is right,
    as any other. The state follows from the questions made: a resumed run feeds those to `count`.
    """

    def __init__(self) -> None:
        self._placed: Counter[tuple[Subtask, int, bool, int]] = Counter()
        self._right: Counter[tuple[Subtask, str]] = Counter()
        self._wrong: Counter[tuple[Subtask, str]] = Counter()

    def count(self, question: Question) -> None:
        """Take note of a question made."""
        subtask, options = question.subtask, question.options
        self._placed[subtask, len(options), question.sample.is_anomalous, question.answer] += 1
        self._right[subtask, options[question.answer]] += 1
        self._wrong.update((subtask, text) for index, text in enumerate(options) if index != question.answer)

    def place(self, subtask: Subtask, n_options: int, is_anomalous: bool, rng: random.Random) -> int:
        """Index for the right option."""
        used = [self._placed[subtask, n_options, is_anomalous, index] for index in range(n_options)]
        return rng.choice([index for index, count in enumerate(used) if count == min(used)])

    def order(
        self, subtask: Subtask, offers: Iterable[tuple[str, str]], favoured: Collection[str], rng: random.Random
    ) -> list[tuple[str, str]]:
        """Candidates for wrong options, ``(text, key)``, in an order drawn by lot: those most lacking so far come first.

        `favoured` are texts that make the question hard, whose chance is raised.
        """

        def lot(text: str) -> float:
            lacking = (self._right[subtask, text] + 0.3) / (self._wrong[subtask, text] + 1)
            weight = (3 * lacking) ** 3 * (2 if text in favoured else 1)
            return float(rng.random() ** (1 / weight))

        return sorted(offers, key=lambda offer: -lot(offer[0]))


class QuestionMaker:
    """Makes the questions of one data set, reproducibly: the seed and the sample's id decide.

    Args:
        knowledge_base: where options come from.
        samples: all samples of the data set with their `right_key`; wrong options are drawn from what is right elsewhere, so
            that an option's text alone says little about whether it is right.
        seed: seed.
        wording: templates.
        measuring: make questions to measure with: wrong kinds of defect are such as this object can have, not such as occur
            on any object of the data, which its name would rule out; labels that name no kind are not asked about; and no
            question has more than the five options that MMAD's own scorer reads.
    """

    def __init__(
        self,
        knowledge_base: KnowledgeBase,
        samples: Iterable[Sample],
        *,
        seed: int = 0,
        wording: QuestionWording = INSTRUCT_WORDING,
        measuring: bool = False,
    ) -> None:
        self._base = knowledge_base
        self._seed = seed
        self._wording = wording
        self._measuring = measuring
        self.balance = OptionBalance()
        self._keys: dict[str, set[str]] = {}
        for sample in samples:
            self._keys.setdefault(sample.object, set()).update([sample.right_key] if sample.right_key else [])
        self._data_keys = set().union(*self._keys.values())
        self._words = {entry.key: _kind_words(entry) for entry in knowledge_base}

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
            rng = random.Random(f"{self._seed}/{self._wording.name}/{sample.id}/{subtask}")
            draft = self._draft(subtask, sample, entry, geometry, rng)
            made = self._finish(draft, subtask, sample, rng) if isinstance(draft, _Draft) else draft
            if isinstance(made, Question):
                self.balance.count(made)
                questions.append(made)
            else:
                rejected.append(Rejected(sample=sample.id, subtask=subtask, reason=made))
        return questions, rejected

    def _draft(
        self, subtask: Subtask, sample: Sample, entry: KnowledgeEntry | None, geometry: Geometry | None, rng: random.Random
    ) -> _Draft | str:
        """The question of one sub-task, or why there is none."""
        if subtask is Subtask.DETECTION:
            return self._detection(sample, rng)
        if subtask is Subtask.LOCALIZATION:
            return self._localization(geometry, bool(sample.masks), rng)
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

    def _localization(self, geometry: Geometry | None, has_mask: bool, rng: random.Random) -> _Draft | str:
        """Four places mostly, neighbours among them; all nine where the place is beyond doubt."""
        if geometry is None:
            return "the mask is empty" if has_mask else "no mask to check a place against"
        if geometry.shares[geometry.cell] < MAIN_SHARE:
            return "the defect spreads over several places"
        clear = [cell for cell in range(9) if cell != geometry.cell and geometry.shares[cell] <= CLEAR_SHARE]
        near = {PLACES[cell] for cell in clear if cell in neighbours(geometry.cell)}
        wrong = self.balance.order(Subtask.LOCALIZATION, [(PLACES[cell], "") for cell in clear], near, rng)
        if self._measuring or len(clear) < 8 or rng.random() < 0.8:
            first = next((offer for offer in wrong if offer[0] in near), wrong[0])
            wrong = [first, *(offer for offer in wrong if offer != first)][:3]
        return _Draft(rng.choice(self._wording.localization), (PLACES[geometry.cell], ""), wrong, "mask")

    def _shape_description(self, geometry: Geometry, rng: random.Random) -> _Draft | None:
        """Size, shape and place against the mask: two looks by two places, so that no option is the odd one out."""
        shape = shape_word(geometry.elongation)
        far = [c for c in range(9) if geometry.shares[c] == 0 and c not in neighbours(geometry.cell)]
        if shape == "longish" or not far or geometry.shares[geometry.cell] < MAIN_SHARE:
            return None
        size = size_word(geometry.extent)
        other_size = rng.choice([word for word in ("tiny", "small", "medium", "large") if word != size])
        other = f"{other_size}, {'compact' if shape == 'line-like' else 'line-like'}"
        looks, cells = (f"{size}, {shape}", other), (geometry.cell, rng.choice(far))
        options = [(_capital(f"{look} mark {at_place(cell)}"), "") for look in looks for cell in cells]
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
        near = {other.key for other, _ in self._base.look_alikes(entry.key)} | set(self._keys.get(sample.object, ()))
        tiers = self._plausible_keys(sample, near) if self._measuring else (self._data_keys, near, self._words)
        rivals = ([other for other in self._entries(keys) if self._is_rival(other, entry, sample)] for keys in tiers)
        return self._choice(subtask, rng.choice(templates[kind]), kind, sample, entry, rivals, near, rng)

    def _plausible_keys(self, sample: Sample, near: Collection[str]) -> tuple[Collection[str], ...]:
        """Keys of defects this object can have: its own in the data, the data's that fit, look-alikes, any that fit."""
        first, *others = domains(sample.object)
        fitting = {entry.key for entry in self._base if entry.category in {first, *others, *GENERAL_DOMAINS}}
        of_first = {entry.key for entry in self._base if entry.category == first}
        return self._keys.get(sample.object, ()), self._data_keys & fitting, set(near) & fitting, of_first, fitting

    def _object_analysis(self, sample: Sample, entry: KnowledgeEntry, rng: random.Random) -> _Draft | str:
        """The normal entry of this object against those of domains that do not fit it."""
        fitting = {*domains(sample.object), VAGUE_DOMAIN, "surface", "structural", "contamination", entry.category}
        rivals = (
            [other for other in self._entries(keys) if other.is_normal and other.category not in fitting]
            for keys in (self._data_keys, self._words)
        )
        text = rng.choice(self._wording.object_analysis)
        return self._choice(Subtask.OBJECT_ANALYSIS, text, "cues", sample, entry, rivals, (), rng)

    def _object_classification(self, sample: Sample, rng: random.Random) -> _Draft:
        names = (sorted(self._keys), rng.sample(COMMON_OBJECTS, len(COMMON_OBJECTS)))
        own, common = ([(_capital(name), "") for name in tier if not _alike(name, sample.object, 0)] for tier in names)
        wrong = [*self.balance.order(Subtask.OBJECT_CLASSIFICATION, own, (), rng), *common][:3]
        return _Draft(rng.choice(self._wording.object_classification), (_capital(sample.object), ""), wrong, "label")

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
    ) -> _Draft | str:
        """One statement of the right entry and three of others, from the first tier on, that do not say much the same."""
        right = _statement(entry, kind, sample.object)
        if not right:
            return f"the knowledge entry has no {kind}"
        wrong: list[tuple[str, str]] = []
        for tier in rivals:
            offers = [(_statement(rival, kind, sample.object), rival.key) for rival in tier]
            favoured = {statement for statement, key in offers if key in near}
            for statement, key in self.balance.order(subtask, offers, favoured, rng):
                if statement and not any(_alike(statement, other, 0.3) for other in (right, *(text for text, _ in wrong))):
                    wrong.append((statement, key))
                if len(wrong) == 3:
                    return _Draft(text, (right, entry.key), wrong, "entry")
        return "fewer than three wrong options that are plainly wrong"

    def _is_rival(self, other: KnowledgeEntry, entry: KnowledgeEntry, sample: Sample) -> bool:
        """Whether an entry can be a wrong option beside the right one: a kind of defect that could not be called right as well.

        A word that one's title or aliases share with the other's says that it could, but never of kinds that the data itself
        tells apart on this object.
        """
        if other.key == entry.key or other.is_normal or other.category == VAGUE_DOMAIN:
            return False
        if other.key in self._keys.get(sample.object, ()):
            return True
        # What the right entry itself names as cause or effect may well be seen beside it: wear beside pitting.
        if self._measuring and self._words[other.key] & set(tokens(f"{entry.cause} {entry.effect} {entry.text}")):
            return False
        return not any(a in b or b in a for a in self._words[entry.key] for b in self._words[other.key])

    def _entries(self, keys: Iterable[str]) -> list[KnowledgeEntry]:
        return [self._base.get(key) for key in sorted(keys)]

    def _finish(self, draft: _Draft, subtask: Subtask, sample: Sample, rng: random.Random) -> Question | str:
        """Shuffle the options, put the right one in its place, and make sure that just one is right."""
        wrong = rng.sample(draft.wrong, len(draft.wrong))
        texts = [option.casefold() for option, _ in (draft.right, *wrong)]
        if len(set(texts)) < len(texts):
            return "two options read the same"
        answer = self.balance.place(subtask, len(texts), sample.is_anomalous, rng)
        options = [*wrong[:answer], draft.right, *wrong[answer:]]
        provenance = {"maker": "templates", "wording": self._wording.name, "template": draft.text, "verified": draft.verified}
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


def answer_under(entry: KnowledgeEntry, question: Question) -> int | None:
    """The option a reader who believes `entry` must choose: what KR-RTS concludes under a wrong entry (Section 3.3).

    Detection follows `is_normal`; a question whose options come from entries follows the option of this one; a place or an
    outline seen in the picture is the same under every defect. None where the entry leads to no option.
    """
    if question.subtask is Subtask.DETECTION:
        right_side = entry.is_normal != question.sample.is_anomalous
        return question.answer if right_side else 1 - question.answer
    keys = question.provenance.get("keys", "").split()
    if keys:
        return keys.index(entry.key) if entry.key in keys else None
    asks_defect = question.subtask in {Subtask.LOCALIZATION, Subtask.DESCRIPTION}
    return question.answer if asks_defect != entry.is_normal else None


def at_place(cell: int) -> str:
    """A cell's name with its preposition: ``at the top left``, ``in the centre``."""
    return f"{'in' if cell == 4 else 'at'} the {PLACES[cell]}"


def _asked(sample: Sample) -> tuple[Subtask, ...]:
    """Sub-tasks asked of a sample, in order."""
    if sample.is_anomalous:
        return (
            Subtask.DETECTION, Subtask.CLASSIFICATION, Subtask.LOCALIZATION, Subtask.DESCRIPTION, Subtask.ANALYSIS,
        )  # fmt: skip
    return (Subtask.DETECTION, Subtask.OBJECT_CLASSIFICATION, Subtask.OBJECT_ANALYSIS)


def _statement(entry: KnowledgeEntry, kind: str, object_name: str) -> str:
    """What an entry says of one kind, as an option's text; empty where it says nothing."""
    if kind == "title":
        return entry.title
    text = ", ".join(entry.cues[:2]) if kind == "cues" else entry.effect if kind == "effect" else entry.cause
    return _capital(name_object(text, object_name))


_GENERIC = frozenset(
    tokens("surface part area region edge local small large deep circuit copper track board metal object defect")
)


def _kind_words(entry: KnowledgeEntry) -> frozenset[str]:
    """Stems of the words an entry's kind of defect goes by: of its title and of its aliases."""
    names = " ".join((entry.title, *(alias.rpartition("/")[2].replace("_", " ") for alias in entry.aliases)))
    return frozenset(word for word in tokens(names) if len(word) > 2) - _GENERIC


def _alike(one: str, other: str, limit: float) -> bool:
    """Whether two texts share more than `limit` of the shorter one's words."""
    a, b = set(tokens(one)), set(tokens(other))
    return len(a & b) > limit * max(1, min(len(a), len(b)))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
