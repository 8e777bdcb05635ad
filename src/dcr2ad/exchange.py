"""Questions whose list tells other causes and effects than those known by heart.

Reads a `Question` on a cause or an effect; returns it with the entries of its options listed, each with another's. A model
that has learnt its knowledge by heart answers such a question wrong, one that reads what is listed answers it right: so a
small model learns to read lists, and answers under knowledge it never saw. Not in the paper; such questions are known from
work on models that trust what they recall over what they are given (Longpre et al. 2021, arXiv:2109.05052).
"""

from __future__ import annotations

import random

from dcr2ad.types import Question


def exchange_facts(question: Question, rng: random.Random) -> Question | None:
    """The question under exchanged knowledge; its answer is the option that the right entry is listed with.

    Args:
        question: a question made from entries (``provenance``: ``asks`` and ``keys``).
        rng: draws the order of the list and who is listed with whose facts.

    Returns:
        None where it asks for neither cause nor effect, or where an option does not come from an entry of its own.
    """
    keys = question.provenance.get("keys", "").split()
    right = question.sample.right_key
    if question.provenance.get("asks") not in {"cause", "effect"} or right not in keys:
        return None
    if len(set(keys)) != len(question.options):
        return None
    ring = rng.sample(keys, len(keys))  # each is listed with the next one's: none keeps its own
    of = dict(zip(ring, ring[1:] + ring[:1], strict=True))
    candidates = rng.sample(keys, len(keys))
    told_by = {facts: key for key, facts in of.items()}
    provenance = {**question.provenance, "keys": " ".join(told_by[key] for key in keys)}
    update = {
        "candidates": tuple(candidates),
        "exchanged": tuple(of[key] for key in candidates),
        "answer": keys.index(of[right]),
        "provenance": provenance,
    }
    return question.model_copy(update=update)
