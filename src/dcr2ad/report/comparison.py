"""One photograph under four contexts, side by side, as one self-contained HTML page (the paper's Figure 1, left).

Reads a `Comparison`, the photographs it names and the knowledge entries; returns HTML. Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dcr2ad.errors import ImageError
from dcr2ad.images import load_image
from dcr2ad.knowledge.agnostic import name_object
from dcr2ad.report.diagnosis import Speaker, speakers
from dcr2ad.report.page import picture_uri, probability_text, render, shrink
from dcr2ad.types import Comparison, Diagnosis, KnowledgeEntry

_SIDE = 480


@dataclass(frozen=True)
class Column:
    """What the page shows of one context."""

    name: str
    told: str
    diagnosis: Diagnosis
    text: str
    says: tuple[Speaker, ...]
    changed: bool


@dataclass(frozen=True)
class Photograph:
    """A photograph of the page, or why it is missing."""

    caption: str
    uri: str | None
    missing: str = ""


def column_names(comparison: Comparison) -> tuple[str, ...]:
    """Heads of the four columns, in the order of the diagnoses."""
    return ("Without knowledge", "With the category's knowledge", "Routed", "Under a deceptive entry")


def trusted(comparison: Comparison, knowledge: Container[str]) -> str:
    """Which of the two entries the model trusts, in one sentence."""
    if not comparison.trust:
        return "This model gives no probabilities, so which entry it trusts cannot be read."
    first, second = comparison.trust
    kind = "deceptive" if first.key == comparison.wrong_key else "right" if comparison.right_known else "routed"
    shown = f"{probability_text(first.probability)} against {probability_text(second.probability)}"
    return f"With both entries listed, the model trusts the {kind} one: {first.title}, {shown} for {second.title}."


def render_comparison(
    comparison: Comparison, *, knowledge: Mapping[str, KnowledgeEntry], title: str = "One photograph, four contexts"
) -> str:
    """The page of one comparison.

    Args:
        comparison: what to show.
        knowledge: entries by key; one that is not there is shown by its title.
        title: heading of the page.

    Returns:
        HTML that loads nothing from anywhere and runs no script.
    """
    first = comparison.diagnoses[0]
    entries = [knowledge.get(key) for key in (comparison.right_key, comparison.wrong_key)]
    told = (
        "The prompt holds no knowledge.",
        "The prompt lists every entry of the object's category; the model selects among them.",
        "The model selects from all that can apply to the object and reasons under what it selected.",
        f"The prompt holds this entry alone. Chosen against {_title(comparison.right_key, knowledge)}: "
        f"{comparison.wrong_reason}.",
    )
    return render(
        "comparison.html.j2",
        title=title,
        name=Path(first.image).name,
        object=first.object,
        model=first.model,
        photographs=_photographs(first),
        columns=[
            Column(name, words, d, _text(d, knowledge), speakers(d, "reasoning"), d.verdict != first.verdict)
            for name, words, d in zip(column_names(comparison), told, comparison.diagnoses, strict=True)
        ],
        trust=[(r.title, r.probability, r.key == comparison.wrong_key) for r in comparison.trust],
        trusted=trusted(comparison, knowledge),
        differences=_differences(entries, first.object),
        known=comparison.right_known,
    )


def _title(key: str, knowledge: Mapping[str, KnowledgeEntry]) -> str:
    return knowledge[key].title if key in knowledge else key


def _text(diagnosis: Diagnosis, knowledge: Mapping[str, KnowledgeEntry]) -> str:
    chosen = diagnosis.knowledge
    return name_object(knowledge[chosen.key].text, diagnosis.object) if chosen and chosen.key in knowledge else ""


def _differences(entries: Sequence[KnowledgeEntry | None], object_name: str) -> str:
    """What tells the right entry from the deceptive one, where the base declares it."""
    right, wrong = entries
    if right is None or wrong is None:
        return ""
    told = next((like.difference for like in right.look_alikes if like.key == wrong.key), "")
    return name_object(told, object_name)


def _photographs(diagnosis: Diagnosis) -> list[Photograph]:
    shown = []
    for caption, path in (
        (f"Inspected {diagnosis.object}", diagnosis.image),
        *(("Reference", p) for p in diagnosis.references[:1]),
    ):
        try:
            shown.append(Photograph(caption, picture_uri(shrink(load_image(path), _SIDE))))
        except ImageError as error:
            shown.append(Photograph(caption, None, str(error)))
    return shown
