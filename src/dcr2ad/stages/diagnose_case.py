"""What a diagnosis starts from: settings, checked input, the photograph with the expert's findings, its knowledge.

Reads images, model, knowledge base and expert; returns a `Case`. Asks the model for nothing but the ranking.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dcr2ad.errors import InputError, UnknownNameError
from dcr2ad.images import load_image
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.limits import LEAST, SHARE
from dcr2ad.models.base import ChatModel
from dcr2ad.parsing import LETTERS
from dcr2ad.prompts import (
    build_prompt,
    detection_question,
)
from dcr2ad.report.overlay import encode_map
from dcr2ad.routing import rank_titles, route_sample
from dcr2ad.stages.findings import inspect_sample
from dcr2ad.types import (
    KnowledgeEntry,
    RankedEntry,
    RouteMode,
    RoutingNote,
    Sample,
)

if TYPE_CHECKING:
    from dcr2ad.expert import Expert

CONTEXTS = "none, category, routed or oracle:KEY"


@dataclasses.dataclass(frozen=True)
class Diagnoser:
    """Everything a diagnosis needs but the photograph.

    Attributes:
        model: the model that answers.
        knowledge_base: K.
        expert: the visual expert, or None to switch it off.
        context: ``none``, ``category``, ``routed`` or ``oracle:KEY``.
        max_new_tokens: limit of a response.
        routing: how a routed context is ranked.
        orders: orders of a listing that the ranking is averaged over.
        shots: references the model is shown; the expert sees all.
        alarms: share of good parts that may pass the expert's limit, where there are references enough to set one
            (`dcr2ad.limits.LEAST`); fewer leave the general limit.
    """

    model: ChatModel
    knowledge_base: KnowledgeBase
    expert: Expert | None
    context: str = "routed"
    max_new_tokens: int = 160
    routing: RouteMode = "hybrid"
    orders: int = 1
    shots: int = 1
    alarms: float = 1 - SHARE

    def __post_init__(self) -> None:
        check_context(self.context, self.knowledge_base)


def check_context(context: str, knowledge_base: KnowledgeBase) -> None:
    """Refuse a context that does not exist, before anything is loaded.

    Raises:
        UnknownNameError: no such context, or no entry under the key of ``oracle:KEY``.
    """
    kind, _, key = context.partition(":")
    if kind not in {"none", "category", "routed", "oracle"} or (kind == "oracle") != bool(key):
        raise UnknownNameError(f"no context {context!r}", f"Use {CONTEXTS}")
    if kind == "oracle":
        knowledge_base.get(key)


def check_question(question: str | None, options: Sequence[str]) -> None:
    """Refuse options that no question goes with.

    Raises:
        InputError: options without a question, a single option, more than there are letters, or an empty question.
    """
    if question is not None and not question.strip():
        raise InputError("the question is empty", "Give --question some words")
    if (options and question is None) or len(options) == 1:
        raise InputError("options need a question and at least two of them", "Give --question, and --option twice or more")
    if len(options) > len(LETTERS):
        raise InputError(f"{len(options)} options are more than there are letters", f"Give {len(LETTERS)} at most")


@dataclasses.dataclass(frozen=True)
class Case:
    """One photograph under one context."""

    sample: Sample
    entries: tuple[KnowledgeEntry, ...]
    ranking: tuple[RankedEntry, ...]
    routing: RoutingNote | None = None

    @property
    def abstained(self) -> bool:
        """Whether the router found no entry probable enough to reason under."""
        return self.routing is not None and self.routing.abstained


def check_images(image: str | Path, references: Sequence[str | Path]) -> list[str]:
    """Notes on references of another size; raises ImageError where an image cannot be used."""
    size = load_image(image).size
    notes = []
    for path in references:
        other = load_image(path).size
        if other != size:
            notes.append(
                f"The reference has {other[0]}x{other[1]} pixels and the photograph {size[0]}x{size[1]}; "
                "the expert scaled the reference to fit."
            )
    return notes


def make_sample(
    diagnoser: Diagnoser, image: str | Path, references: Sequence[str | Path], object_name: str, notes: list[str]
) -> tuple[Sample, str | None]:
    """The photograph as a sample (its label is unknown and never used), with the expert's findings and map.

    The expert sees every reference; the sample keeps those that the model is shown.
    """
    sample = Sample(
        id=Path(image).stem,
        image=str(image),
        references=tuple(str(path) for path in references),
        dataset="",
        object=object_name,
        is_anomalous=False,
    )
    anomaly_map = None
    if diagnoser.expert is not None and references:
        sample, raw_map = inspect_sample(sample, diagnoser.expert, diagnoser.knowledge_base, share=1 - diagnoser.alarms)
        anomaly_map = encode_map(raw_map)
        if len(references) >= LEAST and sample.expert is not None:
            notes.append(
                f"The visual expert's limit is {sample.expert.threshold:.1f} here, set from the {len(references)} "
                f"references so that about {diagnoser.alarms:.0%} of good parts pass it; its general limit is "
                f"{diagnoser.expert.limit:.1f}."
            )
    elif diagnoser.expert is not None:
        notes.append("No reference was given, so the visual expert had nothing to compare with.")
    return sample.model_copy(update={"references": sample.references[: diagnoser.shots]}), anomaly_map


def make_case(diagnoser: Diagnoser, sample: Sample) -> Case:
    """Entries in the prompt, and the ranking among the candidates of the context."""
    kind, _, key = diagnoser.context.partition(":")
    knowledge_base, model = diagnoser.knowledge_base, diagnoser.model
    shots = len(sample.references)
    if kind == "none":
        return Case(sample, (), ())
    if kind == "oracle":
        entry = knowledge_base.get(key)
        return Case(sample, (entry,), (RankedEntry(key=entry.key, title=entry.title, probability=1.0),))
    if kind == "routed":
        routing = route_sample(
            model,
            sample,
            knowledge_base,
            mode=diagnoser.routing,
            shots=shots,
            orders=diagnoser.orders,
        )
        listed = () if routing.note.abstained else routing.listed  # a verdict rests on an entry, or on none
        return Case(sample, tuple(knowledge_base.get(k) for k in listed), routing.ranking, routing.note)
    entries = knowledge_base.category(sample.object)
    if model.info.backend == "openai":
        return Case(sample, entries, ())
    prompt = build_prompt(detection_question(sample.id, sample), entries=entries, shots=shots)
    return Case(sample, entries, tuple(rank_titles(model, prompt, entries)))
