"""Records of what came out: predictions, diagnoses, protocols, reports, manifests."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field

from dcr2ad.types.base import Probability, Record
from dcr2ad.types.prompts import RankedEntry, RouteMode, RoutingNote
from dcr2ad.types.questions import ExpertFindings, Question, Subtask


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
Precision = Literal["fp32", "bf16"]


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
    precision: Precision = "fp32"
    """What a model computes in on a CPU; on a GPU, and behind a server, it has no meaning."""

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
    """Pairs, those of several trainings counted once."""
    subtasks: dict[str, Interval]
    """Difference a sub-task, with an interval clustered by image."""
    average: Interval
    """Difference of the averages."""
    only_first: int
    """Questions that only the first got right, over all trainings."""
    only_second: int
    """Questions that only the second got right, over all trainings."""
    p_value: float | None
    """Exact McNemar test over all questions, which takes them as independent; the intervals do not. None over several
    trainings, whose answers to one question are surely not."""
    detection: dict[str, float]
    """Differences of Overkill, Miss, Precision, Recall and F1, over the answers of all trainings."""
    trainings: tuple[float, ...] = ()
    """Difference of the averages of each training, where several are taken together, such as seeds; the figures above are then
    means over them, and the intervals resample images with their answers under all: they hold for these trainings on other
    images, and how far trainings differ is seen here."""


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
