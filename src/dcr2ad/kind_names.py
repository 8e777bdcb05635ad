"""Kinds of defect under the names they have on an object.

Reads the visual expert's findings with every kind that `dcr2ad.kinds` knows; returns them with the few that are
told. Knows nothing about images or prompts. Not in the paper.
"""

from __future__ import annotations

from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.knowledge.objects import GENERAL_DOMAINS, domains
from dcr2ad.types import ExpertFindings, KindGuess

TOLD = 3
"""Kinds told at most."""


def kinds_of_object(findings: ExpertFindings, dataset: str, object_name: str, knowledge_base: KnowledgeBase) -> ExpertFindings:
    """The findings with kinds that this object can have, under the names they have there, `TOLD` of them.

    What cracks in a ceramic and what cracks in a cell look alike to the reader and are two entries: each kind is told as the
    entry that its label means for this object, equal ones together. Kinds of domains that do not fit the object are left out,
    unless none would be left.

    Args:
        findings: what `Expert.inspect` returned, every kind the reader knows.
        dataset: data set of the part; empty where it has none.
        object_name: the object in words.
        knowledge_base: K.
    """
    shares: dict[str, float] = {}
    titles: dict[str, str] = {}
    for kind in findings.kinds:
        entry = knowledge_base.resolve_label(dataset, object_name, kind.key.rpartition(".")[2], True)
        key = entry.key if entry is not None else kind.key
        titles[key] = entry.title if entry is not None else kind.title
        shares[key] = shares.get(key, 0.0) + kind.probability
    fitting = {*domains(object_name), *GENERAL_DOMAINS}
    kept = [key for key in shares if key in knowledge_base and knowledge_base.get(key).category in fitting] or list(shares)
    whole = sum(shares[key] for key in kept)
    told = sorted(kept, key=lambda key: -shares[key])[:TOLD]
    kinds = tuple(KindGuess(key=key, title=titles[key], probability=min(1.0, shares[key] / whole)) for key in told)
    return findings.model_copy(update={"kinds": kinds})
