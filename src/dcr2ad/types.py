"""The records: everything that crosses a stage or touches disk.

All are frozen pydantic models that refuse unknown fields; on disk each is one JSON object a line. An answer is always an
INDEX into the options: letters exist only in `dcr2ad.prompts` and `dcr2ad.parsing`. Knows nothing about files or models.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Record(BaseModel):
    """Base of all records: immutable, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Probability = Annotated[float, Field(ge=0.0, le=1.0)]


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
    response: Trajectory | None = None
    """A worked response for supervised fine-tuning, where a teacher wrote one."""
    provenance: dict[str, str] = Field(default_factory=dict)
    """Who made the question (teacher, template, verification) and from what."""

    @model_validator(mode="after")
    def _answer_in_range(self) -> Question:
        if len(self.options) < 2 or not 0 <= self.answer < len(self.options):
            raise ValueError(f"question {self.id!r}: answer {self.answer} with {len(self.options)} options")
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
    """p(gold) minus chance, chance being one over the number of options."""

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
    kind: Literal["answer", "path"]
    """``answer``: the answers differ; ``path``: the answer does not depend on the knowledge, only the path differs."""
    unrouted: Trajectory | None = None
    """y_l of plain DPO (Equation 4), the ablation: a wrong answer under k_w, so that no knowledge is chosen wrongly."""


class TextPart(Record):
    """A stretch of text in a prompt."""

    kind: Literal["text"] = "text"
    text: str
    """The text."""


class ImagePart(Record):
    """An image in a prompt, by path; the backend opens it."""

    kind: Literal["image"] = "image"
    path: str
    """Path of the image file."""


Part = Annotated[TextPart | ImagePart, Field(discriminator="kind")]


class Prompt(Record):
    """What a model is asked: one user turn, and the text its response is made to begin with."""

    parts: tuple[Part, ...]
    """Text and images in order."""
    opening: str = ""
    """The response begins with this text; what the model adds follows it."""


class Sampling(Record):
    """How to decode."""

    max_new_tokens: int = 192
    """Limit on new tokens."""
    temperature: float = 0.0
    """0 is greedy."""
    n: int = 1
    """Completions a prompt."""
    stop: str = ""
    """Text that ends a response and is no part of it; empty for none."""
    seed: int = 0
    """Seed for temperature > 0."""


class Completion(Record):
    """What a model wrote."""

    text: str
    """The response without its opening."""
    status: Literal["stop", "length", "refused", "failed"] = "stop"
    """How it ended."""
    error: str = ""
    """One line, for ``failed``."""
    prompt_tokens: int = 0
    """Tokens of the prompt, images included."""
    new_tokens: int = 0
    """Tokens generated."""

    @property
    def answered(self) -> bool:
        """Whether the model wrote something to read, whole or cut at its limit."""
        return self.status in {"stop", "length"}


class OptionScores(Record):
    """Log-probabilities of given continuations of a prompt."""

    logprobs: tuple[float, ...]
    """Natural log-probability of each whole continuation."""
    tokens: tuple[int, ...]
    """Number of tokens of each continuation."""
    left: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of probability, at most, of continuations that were not read to their ends; 0 where all were."""


class RankedEntry(Record):
    """A knowledge entry with the probability the router gives it."""

    key: str
    """Key of the entry."""
    title: str
    """Title of the entry."""
    probability: Probability
    """Probability over the candidates; sums to one over a whole ranking."""
    score: float = 0.0
    """Natural logarithm of the probability."""


RouteMode = Literal["listed", "recall", "hybrid"]
"""How entries are ranked: candidates listed in the prompt; no list, the whole base; the whole base, then its best listed."""


class RoutingCalibration(Record):
    """Temperature and threshold of one route mode, fitted on a dev set and stored with the model; not in the paper."""

    temperature: float = Field(gt=0.0)
    """Probabilities are taken to the power 1/temperature and renormalised."""
    threshold: Probability
    """The router abstains where its best entry is less probable."""
    photographs: int
    """Photographs it was fitted on whose right entry is known."""
    ranked: int
    """Those among them whose right entry was in the ranking: the temperature rests on these."""
    nll: tuple[float, float]
    """Mean negative log-likelihood of the right entry before and after, nats."""
    questions: str
    """Digest of the questions it was fitted on."""
    knowledge: str
    """Digest of the knowledge base it was fitted on."""


class RoutingNote(Record):
    """How a diagnosis was routed."""

    mode: RouteMode
    """Route mode."""
    temperature: float
    """Temperature of the probabilities shown; 1 where none was fitted."""
    threshold: Probability
    """Probability below which the router abstains."""
    calibrated: bool
    """Whether both were fitted for this model, or are the defaults."""
    abstained: bool
    """Whether no entry was probable enough: then the model answered without knowledge."""
    left: Probability = 0.0
    """Share of recall's probability, at most, of the entries whose titles were not read to their ends; 0 where all were."""


class Prediction(Record):
    """A model's answer to one question."""

    question_id: str
    """Which question."""
    image: str
    """Its image (clusters for intervals)."""
    dataset: str
    """Its data set."""
    object: str
    """Its object."""
    defect: str | None = None
    """Its defect label."""
    is_anomalous: bool
    """Its label."""
    subtask: Subtask
    """Its sub-task."""
    n_options: int
    """How many options were shown."""
    gold: int
    """Index of the right option."""
    status: Literal["answered", "unparsed", "refused", "failed"]
    """Only ``answered`` can be right."""
    answer: int | None = None
    """Index of the option given."""
    probabilities: tuple[float, ...] | None = None
    """Probability of each option, where the backend can score."""
    raw: str = ""
    """The response as written, always kept."""
    error: str = ""
    """One line, for ``failed``."""
    right_key: str | None = None
    """Knowledge entry that applies."""
    routed: tuple[RankedEntry, ...] = ()
    """Head of the router's ranking, best first."""

    @classmethod
    def of(cls, question: Question, **given: Any) -> Self:
        """The prediction for a question: what is known of it, and what was `given` as its answer."""
        sample = question.sample
        return cls(
            question_id=question.id,
            image=sample.image,
            dataset=sample.dataset,
            object=sample.object,
            defect=sample.defect,
            is_anomalous=sample.is_anomalous,
            subtask=question.subtask,
            n_options=len(question.options),
            gold=question.answer,
            right_key=sample.right_key,
            **given,
        )

    @property
    def is_correct(self) -> bool:
        """Answered, and with the right option."""
        return self.status == "answered" and self.answer == self.gold


class Diagnosis(Record):
    """The answer to "is this part all right?" with what it rests on."""

    image: str
    """Path of the query image."""
    references: tuple[str, ...]
    """Paths of the references."""
    object: str
    """Object name used in the prompt."""
    verdict: Literal["anomalous", "normal"]
    """The model's verdict."""
    probability: Probability
    """The model's probability that the part is anomalous."""
    knowledge: RankedEntry | None
    """The entry the model reasoned under."""
    runners_up: tuple[RankedEntry, ...] = ()
    """The next entries of the ranking."""
    routing: RoutingNote | None = None
    """How the entry was selected; None where the context is not routed."""
    reasoning: str
    """The model's reasoning under the entry."""
    location: str | None
    """Where, in words; None for a normal part."""
    defect_type: str | None
    """What kind; None for a normal part."""
    description: str
    """What it looks like, from the entry and the findings."""
    effect: str
    """Likely effect, from the entry."""
    expert: ExpertFindings | None = None
    """The visual expert's findings, where it was on."""
    expert_map: str | None = None
    """The expert's anomaly map as a PNG data URI, for pictures; None in JSON output unless asked for."""
    question: str | None = None
    """The user's own question, if any."""
    options: tuple[str, ...] = ()
    """Its options."""
    answer: str | None = None
    """Text of the option answered, or the model's free answer."""
    answer_probabilities: tuple[float, ...] | None = None
    """Probability of each option."""
    context: str
    """Context setting used."""
    model: str
    """Model name and digest."""
    response: str
    """The response as the model wrote it."""
    sources: dict[str, str] = Field(default_factory=dict)
    """For each field above that is not the model's own words: who says it (expert, knowledge, model)."""
    notes: tuple[str, ...] = ()
    """Anything the reader must know: a resized reference, an unparsed response, a missing reference."""


class Comparison(Record):
    """One photograph under four contexts (the paper's Figure 1, left)."""

    diagnoses: tuple[Diagnosis, ...]
    """Without knowledge, with the category's, routed, and under the deceptive entry, in this order."""
    right_key: str
    """The entry the deceptive one was chosen against."""
    right_known: bool
    """Whether the user named it as the one that applies; otherwise it is the one the model routed to."""
    wrong_key: str
    """The deceptive entry."""
    wrong_reason: str
    """Why it deceives."""
    trust: tuple[RankedEntry, ...] = ()
    """Both, listed in one prompt in both orders, the one the model trusts first; empty where the model cannot score."""


Context = Literal["none", "category", "routed", "oracle"]
Answering = Annotated[str, Field(pattern=r"^(score|reason|reason@[1-9][0-9]?)$")]
"""``score``, ``reason``, or ``reason@k`` with k sampled trajectories, for example ``reason@8``."""
Scoring = Literal["strict", "mmad-official"]


class EvalProtocol(Record):
    """What is being measured; results under different protocols are not comparable."""

    shots: int = 1
    """References shown with each query."""
    context: Context = "none"
    """External knowledge in the prompt."""
    routing: RouteMode = "hybrid"
    """How a routed context is ranked; without meaning for the other contexts."""
    orders: int = Field(default=1, ge=1)
    """Orders of a listing that a routed ranking is averaged over."""
    expert: bool = True
    """Whether the visual expert's findings are in the prompt."""
    answering: Answering = "score"
    """How the answer is taken (METHOD: answering)."""
    scoring: Scoring = "strict"
    """How answers are read and averaged."""
    prompts: str = ""
    """Digest of the user's own wording; empty for the project's."""
    references: Literal["", "random", "similar"] = ""
    """Which of MMAD's two lists of references is shown; empty for other benchmarks."""

    @property
    def trajectories(self) -> int:
        """k of ``reason@k``; 0 for a single greedy answer."""
        return int(self.answering.partition("@")[2] or 0)


class Interval(Record):
    """A figure with a bootstrap interval clustered by image."""

    value: float
    """Point estimate, in per cent."""
    low: float
    """2.5 % bound."""
    high: float
    """97.5 % bound."""
    n: int
    """Questions behind it."""


class EvalReport(Record):
    """The numbers of one evaluation."""

    protocol: EvalProtocol
    """What was measured."""
    model: dict[str, str]
    """Name, digest, backend and versions."""
    knowledge_digest: str
    """Digest of the knowledge base used."""
    questions: int
    """Denominator."""
    answered: int
    """How many were answered."""
    status_counts: dict[str, int]
    """Questions by status."""
    subtasks: dict[str, Interval]
    """Accuracy a sub-task."""
    average: Interval | None
    """Plain mean of the sub-tasks present."""
    detection: dict[str, float]
    """Overkill, Miss, Precision, Recall and F1 of Anomaly Detection, in per cent."""
    objects: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Accuracy an object and sub-task."""
    routing: dict[str, float] = Field(default_factory=dict)
    """top1, top3, mrr and n of routing against the right key."""
    calibration_error: float | None = None
    """Expected calibration error of the option probabilities, in per cent."""
    datasets: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Accuracy a data set and sub-task."""
    defects: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Accuracy a defect (``dataset/object/defect``) and sub-task."""
    not_answered: dict[str, str] = Field(default_factory=dict)
    """Question id and why, of every question that was not answered; all of them count as wrong."""
    benchmark: str = ""
    """Digest of all questions of the benchmark, whichever shard was asked."""
    variant: str = ""
    """Row of the run's ablation that the model is; empty for an evaluation by itself."""
    seed: int | None = None
    """Seed the variant was trained with; None where no seed decides."""
    leaks: dict[str, Any] = Field(default_factory=dict)
    """What the model's recorded training images share with the benchmark; empty where the model records none."""
    trained_on: tuple[str, ...] = ()
    """Objects (``dataset/object``) or data sets that the model records as trained on."""
    notes: tuple[str, ...] = ()
    """What a reader must know before comparing figures, such as a benchmark file of no known version."""


class PairedResult(Record):
    """Two evaluations paired by question, in per cent; positive is in favour of the second."""

    first: str
    """Model of the first."""
    second: str
    """Model of the second."""
    differ: tuple[str, ...]
    """What differs between them."""
    questions: int
    """Pairs."""
    subtasks: dict[str, Interval]
    """Difference a sub-task, with an interval clustered by image."""
    average: Interval
    """Difference of the averages."""
    only_first: int
    """Questions that only the first got right."""
    only_second: int
    """Questions that only the second got right."""
    p_value: float
    """Exact McNemar test over all questions, which takes them as independent; the intervals do not."""
    detection: dict[str, float]
    """Differences of Overkill, Miss, Precision, Recall and F1."""


class RunManifest(Record):
    """What a stage's folder was made from; a later run continues only under an equal manifest."""

    stage: str
    """Name of the stage."""
    config: dict[str, Any]
    """The stage's configuration."""
    inputs: dict[str, str]
    """Digest of each input."""
    versions: dict[str, str]
    """Package versions."""
    seed: int
    """Seed."""
    done: bool = False
    """True once the stage finished."""
    summary: dict[str, Any] = Field(default_factory=dict)
    """What the stage counted: made, dropped and why."""


Question.model_rebuild()
