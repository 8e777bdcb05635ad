"""Records of knowledge, photographs, questions and responses: what is asked, and what training is made of."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field, model_validator

from dcr2ad.types.base import Probability, Record


class Subtask(StrEnum):
    """The seven sub-tasks under MMAD's names (the paper's "Anomaly Discrimination" is `DETECTION`)."""

    DETECTION = "Anomaly Detection"
    CLASSIFICATION = "Defect Classification"
    LOCALIZATION = "Defect Localization"
    DESCRIPTION = "Defect Description"
    ANALYSIS = "Defect Analysis"
    OBJECT_CLASSIFICATION = "Object Classification"
    OBJECT_ANALYSIS = "Object Analysis"


class LookAlike(Record):
    """Another entry that is easily taken for this one."""

    key: str
    """Key of the deceptive entry."""
    difference: str
    """What tells the two apart, one sentence."""


class KnowledgeEntry(Record):
    """One piece of object-agnostic knowledge about a defect, or about what is normal (Section 3.3)."""

    key: str
    """``Source.category.defect``, for example ``General.surface.scratch``; unique in a base."""
    title: str
    """Short name the model writes when it selects the entry; unique in a base; holds no colon and no angle bracket."""
    text: str
    """What an inspector should know, with ``[object]`` where the object would be named."""
    is_normal: bool = False
    """True for an entry that describes acceptable variation."""
    source: str = "builtin"
    """Where the text comes from: ``builtin``, ``mmad``, ``real-iad`` or ``own``."""
    cues: tuple[str, ...] = ()
    """Visual cues, each a short phrase."""
    place: str = ""
    """Where it usually appears."""
    look_alikes: tuple[LookAlike, ...] = ()
    """Entries that deceive, and what tells them apart."""
    cause: str = ""
    """Likely cause."""
    effect: str = ""
    """Likely effect on the part's use."""
    aliases: tuple[str, ...] = ()
    """Data-set labels and everyday names that mean this entry, lower case."""

    @property
    def category(self) -> str:
        """Middle part of the key: the domain of a built-in entry, the object category of an imported one."""
        parts = self.key.split(".")
        return parts[1] if len(parts) > 2 else parts[0]


class KindGuess(Record):
    """A kind of defect that the hot spot looks like; see `dcr2ad.kinds`."""

    key: str
    """Knowledge entry."""
    title: str
    """Its title."""
    probability: Probability
    """Among the kinds the reader knows."""


class ExpertFindings(Record):
    """What the one-shot visual expert sees: never the model's own statement, always labelled as the expert's."""

    score: float
    """Image score in units of the reference's own patch statistics; 0 is as alike as the reference is to itself."""
    raw: float
    """The same before normalisation (cosine distance)."""
    threshold: float
    """Score above which the expert calls the part anomalous."""
    cell: int
    """Hottest cell of the 3x3 grid, row by row, 0 = top left, 8 = bottom right."""
    cells: tuple[float, ...]
    """Score of each of the nine cells, same units as `score`."""
    extent: Probability
    """Share of the image area that is hot."""
    elongation: float
    """Ratio of the hot region's principal axes; 1 is round, above about 3 is line-like."""
    tone: Literal["darker", "brighter", "same"]
    """The hot region beside the reference at its matched places."""
    box: tuple[float, float, float, float] | None = None
    """Hot region's bounding box, x1 y1 x2 y2 as shares of width and height; None when nothing is hot."""
    kinds: tuple[KindGuess, ...] = ()
    """Kinds of defect the hottest spot looks like, were it one, best first; empty where no gallery is at hand."""

    @property
    def is_anomalous(self) -> bool:
        """The expert's own verdict."""
        return self.score > self.threshold


class Sample(Record):
    """One inspected photograph with what is known about it."""

    id: str
    """Unique in its data set; stable over runs."""
    image: str
    """Path of the query image."""
    references: tuple[str, ...] = ()
    """Paths of normal images to compare with, best first."""
    masks: tuple[str, ...] = ()
    """Paths of mask images (non-zero = defect); several for data sets with one mask a defect."""
    dataset: str
    """Name of the data set."""
    object: str
    """Name of the inspected object, in words."""
    defect: str | None = None
    """The data set's label of the defect; None for a good part or where the kind is not known."""
    is_anomalous: bool
    """Explicit label; never read off a path."""
    group: str | None = None
    """Physical item or place; a group never crosses a split."""
    split: str = ""
    """``train``, ``dev`` or empty."""
    right_key: str | None = None
    """Key of the knowledge entry that applies, where the label resolves to one."""
    expert: ExpertFindings | None = None
    """The visual expert's findings, where they were computed."""

    @property
    def item(self) -> str:
        """The physical item or place, unique over data sets; the image itself where no group is known."""
        return f"{self.dataset}/{self.object}/{self.group}" if self.group else self.image

    @model_validator(mode="after")
    def _consistent(self) -> Sample:
        if not self.is_anomalous and self.defect is not None:
            raise ValueError(f"sample {self.id!r} is labelled good but has defect {self.defect!r}")
        return self


class Question(Record):
    """One multiple-choice question about one sample."""

    id: str
    """Unique in its file."""
    sample: Sample
    """The photograph asked about."""
    subtask: Subtask
    """Which of the seven sub-tasks."""
    text: str
    """The question, without its options."""
    options: tuple[str, ...]
    """Option texts in the order shown."""
    answer: int
    """Index of the right option."""
    candidates: tuple[str, ...] = ()
    """Keys of the knowledge entries listed in the prompt, in the order listed; empty: none."""
    exchanged: tuple[str, ...] = ()
    """For each candidate the key of the entry whose cause and effect it is listed with; empty: its own. Such a question is
    answered right by who reads the list, and wrong by who recalls; for training alone (`KnowledgeBase.listed`)."""
    response: Trajectory | None = None
    """A worked response for supervised fine-tuning, where a teacher wrote one."""
    provenance: dict[str, str] = Field(default_factory=dict)
    """Who made the question (teacher, template, verification) and from what."""

    @model_validator(mode="after")
    def _answer_in_range(self) -> Question:
        if len(self.options) < 2 or not 0 <= self.answer < len(self.options):
            raise ValueError(f"question {self.id!r}: answer {self.answer} with {len(self.options)} options")
        if self.exchanged and sorted(self.exchanged) != sorted(self.candidates):
            raise ValueError(f"question {self.id!r}: exchanged holds other keys than candidates")
        return self


class Trajectory(Record):
    """One whole response y = (p, c, A): the selected knowledge and why, the reasoning, the answer."""

    entry: str
    """Title (or key) of the selected knowledge entry; empty when the response selects none."""
    why: str
    """One sentence on why the entry applies; with `entry` this is the path p."""
    reasoning: str
    """Reasoning under the selected entry, c."""
    answer: int
    """Index of the chosen option, A."""


class Unparsed(Record):
    """A response that could not be read; counts as wrong and is reported."""

    reason: str
    """Why it could not be read."""


class BoundaryQuestion(Record):
    """A question whose gold probability lies near chance (Appendix B.2)."""

    question: Question
    """The question."""
    probabilities: tuple[Probability, ...]
    """Probability the SFT model gives each option."""
    margin: float
    """p(gold) minus chance, chance being one over the number of options; calibrated where ``[mine] calibrated`` says so."""

    @property
    def side(self) -> Literal["above", "below"]:
        """``above``: uncertain but right of chance; ``below``: recoverable."""
        return "above" if self.margin >= 0 else "below"


class PreferencePair(Record):
    """One sample of KR-DPO: a right and a deceptive trajectory for one question (Sections 3.3, 3.3.1)."""

    id: str
    """Unique in its file."""
    question: Question
    """The question; its candidates hold both keys below, in random order."""
    right_key: str
    """k_w."""
    wrong_key: str
    """k_l, deceptively similar and not true of the image."""
    wrong_reason: str
    """Why k_l deceives, in words: the kind and its specifics, such as what sets the look-alikes apart."""
    wrong_kind: str = ""
    """The kind alone: sibling, declared look-alike, text similarity, or the model's own mistake (`dcr2ad.deception`)."""
    wrong_strength: float | None = None
    """The model's probability of k_l, or the similarity of its text, where that is what deceives."""
    chosen: Trajectory
    """y_w = (p_w, c_w, A_w)."""
    rejected: Trajectory
    """y_l = (p_l, c_l, A_l)."""
    kind: Literal["answer", "path", "elsewhere"]
    """``answer``: the answers differ, each following from its entry; ``path``: the answer does not depend on the knowledge,
    only the path differs; ``elsewhere``: nor does it, but the rejected response is wrong by where it sees the mark, or how
    large (not in the paper)."""
    unrouted: Trajectory | None = None
    """y_l of plain DPO (Equation 4), the ablation: a wrong answer under k_w, so that no knowledge is chosen wrongly."""
