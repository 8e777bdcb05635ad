"""Preference pairs as a page to read, after the paper's Figure 6: both trajectories side by side.

Reads `PreferencePair`s and the knowledge base; returns HTML. Knows nothing about how pairs are made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from dcr2ad.datasets.good import evenly
from dcr2ad.errors import ImageError
from dcr2ad.images import load_image
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.parsing import LETTERS
from dcr2ad.report.page import picture_uri, render, shrink
from dcr2ad.types import PreferencePair

SHOWN = 12
"""Pairs on the page."""
_SIDE = 260


def render_pairs(pairs: Sequence[PreferencePair], knowledge_base: KnowledgeBase, *, shown: int = SHOWN) -> str:
    """The page; at most `shown` pairs, spread evenly over all."""
    items = [_item(pair, knowledge_base) for pair in evenly(pairs, shown)]
    counts = Counter(pair.wrong_kind for pair in pairs if pair.wrong_kind)
    kinds = ", ".join(f"{kind} {count}" for kind, count in counts.most_common())
    return render("pairs.html.j2", title="Preference pairs", total=len(pairs), items=items, letters=LETTERS, kinds=kinds)


def _item(pair: PreferencePair, knowledge_base: KnowledgeBase) -> dict[str, Any]:
    sample = pair.question.sample
    return {
        "pair": pair,
        "images": [
            (name, _uri(path)) for name, path in (*(("reference", r) for r in sample.references[:1]), ("query", sample.image))
        ],
        "right": knowledge_base.get(pair.right_key),
        "wrong": knowledge_base.get(pair.wrong_key),
        "candidates": [knowledge_base.get(key).title for key in pair.question.candidates],
    }


def _uri(path: str) -> str | None:
    try:
        return picture_uri(shrink(load_image(path), _SIDE))
    except ImageError:
        return None
