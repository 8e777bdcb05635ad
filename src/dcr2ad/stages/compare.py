"""One photograph answered under four contexts, and which entry the model trusts (the paper's Figure 1, left).

Reads what `dcr2ad.stages.diagnose` reads; returns a `Comparison`. Without knowledge, under the category's, routed, and under
an entry that deceives for the routed one. Knows nothing about pages or the command line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from dcr2ad.deception import choose_wrong_key
from dcr2ad.errors import InputError
from dcr2ad.prompts import detection_question
from dcr2ad.routing import route
from dcr2ad.stages.diagnose import Diagnoser, diagnose
from dcr2ad.types import Comparison, RankedEntry, Sample

CONTEXTS = 4
"""Diagnoses a comparison holds."""


def compare_contexts(
    diagnoser: Diagnoser,
    image: str | Path,
    references: Sequence[str | Path] = (),
    *,
    object_name: str = "part",
    right: str | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Diagnose one photograph without knowledge, with the category's, routed, and under a deceptive entry.

    The deceptive entry is chosen as KR-RTS chooses k_l: for the entry named `right`, else for the routed one. Then both stand
    in one prompt, and the model's probability of each is read over both orders: the likelier is the one it trusts.

    Args:
        diagnoser: model, knowledge, expert and route mode; its context is left aside.
        image: the photograph.
        references: photographs of good parts.
        object_name: what the part is called.
        right: key of the entry that is known to apply, if it is.
        seed: decides which deceptive entry is drawn.
        progress: called with diagnoses done and diagnoses in all.

    Raises:
        ImageError: an image cannot be used.
        UnknownNameError: no entry under the key `right`.
        InputError: the base holds no entry that deceives.
    """
    base = diagnoser.knowledge_base
    made = []

    def under(context: str) -> None:
        made.append(diagnose(dataclasses.replace(diagnoser, context=context), image, references, object_name=object_name))
        if progress:
            progress(len(made), CONTEXTS)

    for context in ("none", "category", "routed"):
        under(context)
    routed = made[-1]
    ranking = (*((routed.knowledge,) if routed.knowledge else ()), *routed.runners_up)
    key = base.get(right).key if right else ranking[0].key
    sample = Sample(
        id=Path(image).stem,
        image=str(image),
        references=tuple(str(path) for path in references),
        dataset="",
        object=object_name,
        is_anomalous=not base.get(key).is_normal,
        expert=routed.expert,
    )
    try:
        wrong = choose_wrong_key(sample, key, base, seed=seed, ranking=ranking)
    except IndexError:
        raise InputError("the knowledge base holds no entry that deceives", "Use a base with more entries") from None
    under(f"oracle:{wrong.key}")
    return Comparison(
        diagnoses=tuple(made),
        right_key=key,
        right_known=right is not None,
        wrong_key=wrong.key,
        wrong_reason=wrong.reason,
        trust=_trust(diagnoser, sample, (key, wrong.key)),
    )


def _trust(diagnoser: Diagnoser, sample: Sample, keys: tuple[str, str]) -> tuple[RankedEntry, ...]:
    """Both entries listed together, over both orders; empty where the model gives no probabilities."""
    if not diagnoser.model.info.can_score:
        return ()
    question = detection_question(sample.id, sample)
    found = route(
        diagnoser.model,
        sample.image,
        sample.references,
        question,
        diagnoser.knowledge_base,
        mode="listed",
        candidates=keys,
        orders=2,
    )
    return found.ranking
