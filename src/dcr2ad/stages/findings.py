"""The visual expert's findings on a sample, as prompts tell them.

Reads samples, an expert and the knowledge base; returns samples with findings. Every stage that shows findings takes them from
here, so that kinds of defect are always told under the object's names. Knows nothing about how the expert sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from dcr2ad.kind_names import kinds_of_object
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.limits import LEAST, SHARE
from dcr2ad.types import ExpertFindings, Sample


class Inspects(Protocol):
    """What a stage needs of the visual expert."""

    def inspect(self, image: str, references: Sequence[str]) -> tuple[ExpertFindings, Any]:
        """Findings and anomaly map of an image beside its references."""


class InspectsTraceably(Inspects, Protocol):
    """What a stage needs whose files hold findings."""

    @property
    def fingerprint(self) -> str:
        """What decides the findings."""


@runtime_checkable
class SetsLimits(Inspects, Protocol):
    """An expert whose limit good parts can set."""

    def own_limit(self, good_paths: Sequence[str], share: float) -> float:
        """The score that such a share of good parts lies below."""

    def with_limit(self, limit: float) -> Inspects:
        """The same expert with another limit."""


def inspect_sample(
    sample: Sample, expert: Inspects, knowledge_base: KnowledgeBase, *, share: float = SHARE
) -> tuple[Sample, Any]:
    """The sample with findings in place of any it had, and the anomaly map.

    From `dcr2ad.limits.LEAST` references on the limit is the line's own: they are good parts of it.

    Args:
        sample: a part with at least one reference.
        expert: looks for what the references do not show.
        knowledge_base: says which kinds of defect the object can have.
        share: of good parts that should lie below a limit of the line's own.

    Raises:
        InputError: no reference.
        ImageError: an image cannot be used.
    """
    if len(sample.references) >= LEAST and isinstance(expert, SetsLimits):
        expert = expert.with_limit(expert.own_limit(sample.references, share))
    findings, anomaly = expert.inspect(sample.image, sample.references)
    named = kinds_of_object(findings, sample.dataset, sample.object, knowledge_base)
    return sample.model_copy(update={"expert": named}), anomaly
