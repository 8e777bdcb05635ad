"""Leak guard of an evaluation: which images of the benchmark the model records as trained on (not in the paper).

Reads what a model's folder records of its training images, and of the bases under it; looks at each image of the benchmark
once. A model that records nothing is said to record nothing: that is no proof of a clean model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from dcr2ad.leaks import find_overlap
from dcr2ad.models.adapters import read_trained
from dcr2ad.models.hf import trained_folder
from dcr2ad.types import Question

SHOWN = 20
"""Matches named in a report."""


def training_overlap(
    spec: str, questions: Sequence[Question], progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """What a model's training and a benchmark have in common.

    Returns:
        ``recorded`` (training images on record), ``looked_at`` (images of the benchmark that can be read; none is looked at
        where nothing is on record), ``overlap`` (how many are on record),
        ``by`` (what told them: content or look) and ``matches`` (the first of them).
    """
    images, hashes = _recorded(spec)
    asked = list(dict.fromkeys(question.sample.image for question in questions))
    unreadable: list[str] = []
    looked_at = asked if images else []
    found = find_overlap(images, hashes, looked_at, unreadable=unreadable, progress=progress)
    return {
        "recorded": len(images),
        "looked_at": len(looked_at) - len(unreadable),
        "overlap": len(found),
        "by": dict(Counter(match.by for match in found)),
        "matches": [match.reason for match in found[:SHOWN]],
    }


def _recorded(spec: str) -> tuple[dict[str, str], dict[str, str]]:
    """Training images and their hashes of a model and of what it was trained from."""
    images: dict[str, str] = {}
    hashes: dict[str, str] = {}
    folder = None if spec.startswith("openai:") else trained_folder(spec)
    while folder is not None:
        trained = read_trained(folder)
        images |= trained.train_images
        hashes |= trained.train_hashes
        below = trained_folder(trained.base)
        folder = below if below != folder else None
    return images, hashes
