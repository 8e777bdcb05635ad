"""Diagnoses as one self-contained HTML page.

Reads diagnosis records, the photographs they name and the knowledge entries they cite; returns HTML. Every statement stands
under the name of who makes it: the model, the visual expert or the knowledge base. A photograph or map that cannot be read
is said so in its place. Knows nothing about models or how a diagnosis came about. The content follows Figure 2(c).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dcr2ad.errors import ImageError
from dcr2ad.images import load_image
from dcr2ad.places import PLACES, named_cells
from dcr2ad.prompts import describe_findings
from dcr2ad.report.overlay import Scale, colour_scale, decode_map, overlay
from dcr2ad.report.page import picture_uri, render, shrink
from dcr2ad.types import Diagnosis, ExpertFindings, KnowledgeEntry, RankedEntry

SPEAKERS = {"model": "model", "expert": "visual expert", "knowledge": "knowledge base", "user": "user"}
"""Who can make a statement: short name in `Diagnosis.sources` and what the page calls them."""

CONTEXTS = {
    "none": "no knowledge in the prompt",
    "category": "every entry of the object's category in the prompt",
    "routed": "selected by the model from the knowledge base",
    "oracle": "entry given, not selected",
}
"""What each context setting means."""

_EVEN = (0.4, 0.6)
_LARGE, _MEDIUM, _THUMB = 640, 420, 112
_MANY = 12
_LIKELIEST = 3
_ALIKE = 3


@dataclass(frozen=True)
class Speaker:
    """Who says it: a style name and the words shown."""

    slug: str
    name: str


@dataclass(frozen=True)
class Statement:
    """One labelled statement."""

    label: str
    text: str
    says: tuple[Speaker, ...]


@dataclass(frozen=True)
class Picture:
    """A photograph in the page, or why it is not there."""

    uri: str | None
    alt: str
    caption: str
    missing: str = ""


@dataclass(frozen=True)
class Selected:
    """The knowledge entry reasoned under and the next ones."""

    entry: KnowledgeEntry | None
    ranking: tuple[RankedEntry, ...]
    text: str
    look_alikes: tuple[tuple[str, str], ...]
    says: tuple[Speaker, ...]


@dataclass(frozen=True)
class Part:
    """All that the template shows of one diagnosis."""

    number: int
    name: str
    diagnosis: Diagnosis
    thumb: str | None
    query: Picture
    reference: Picture
    overlay: Picture | None
    scale: Scale | None
    limit: float | None
    legend: str
    context: str
    selected: Selected | None
    why_none: str
    verdict_says: tuple[Speaker, ...]
    statements: tuple[Statement, ...]
    reasoning_says: tuple[Speaker, ...]
    answer_says: tuple[Speaker, ...]
    findings: str
    look_twice: tuple[str, ...]


def render_diagnoses(
    diagnoses: Sequence[Diagnosis], *, knowledge: Mapping[str, KnowledgeEntry], title: str = "Inspection report"
) -> str:
    """One page over one or many diagnoses, the most suspicious part first.

    Args:
        diagnoses: what to show.
        knowledge: entries by key; an entry that is not there is shown by its title alone.
        title: heading of the page.

    Returns:
        HTML that loads nothing from anywhere and runs no script.
    """
    side = _LARGE if len(diagnoses) <= _MANY else _MEDIUM
    ordered = sorted(diagnoses, key=lambda d: (d.verdict != "anomalous", -d.probability))
    names = display_names([d.image for d in ordered])
    parts = [
        _part(number, name, diagnosis, knowledge, side)
        for number, (name, diagnosis) in enumerate(zip(names, ordered, strict=True), 1)
    ]
    return render(
        "diagnosis.html.j2",
        title=title,
        parts=parts,
        anomalous=sum(d.verdict == "anomalous" for d in diagnoses),
        twice=sum(bool(part.look_twice) for part in parts),
        models=sorted({d.model for d in diagnoses}),
        contexts=sorted({_context(d) for d in diagnoses}),
    )


def display_names(paths: Sequence[str]) -> list[str]:
    """File names, with as many parent folders as tell them apart."""
    split = [Path(path).parts or (path,) for path in paths]
    depth = 1
    while depth < max((len(parts) for parts in split), default=1):
        shown = {parts[-depth:] for parts in split}
        if len(shown) == len({tuple(parts) for parts in split}):
            break
        depth += 1
    return ["/".join(parts[-depth:]) for parts in split]


def look_twice(diagnosis: Diagnosis, entry: KnowledgeEntry | None) -> tuple[str, ...]:
    """Where the statements of one diagnosis do not fit together, each in one sentence."""
    found = []
    anomalous = diagnosis.verdict == "anomalous"
    if _EVEN[0] <= diagnosis.probability <= _EVEN[1]:
        found.append("The model's probability is close to even.")
    expert = diagnosis.expert
    if expert is not None and expert.is_anomalous != anomalous:
        side = "above" if expert.is_anomalous else "not above"
        found.append(
            f"Model and visual expert disagree: the verdict is {diagnosis.verdict}, the expert's score is {side} its limit."
        )
    if entry is not None and entry.is_normal == anomalous:
        kind = "a good part" if entry.is_normal else "a defect"
        found.append(f"The entry selected describes {kind}, the verdict is {diagnosis.verdict}.")
    if anomalous and expert is not None and expert.is_anomalous and diagnosis.location:
        cells = named_cells(diagnosis.location)
        if cells and expert.cell not in cells and max(expert.cells[cell] for cell in cells) <= expert.threshold:
            hottest = PLACES[expert.cell]
            found.append(
                f"At the place stated ({diagnosis.location}) the visual expert sees nothing; its hottest cell is {hottest}."
            )
    return tuple(found)


def speakers(diagnosis: Diagnosis, field: str) -> tuple[Speaker, ...]:
    """Who says a field: `Diagnosis.sources` where it names the field, else the model."""
    said = diagnosis.sources.get(field, "model")
    known = [word for word in re.findall(r"[a-z]+", said.lower()) if word in SPEAKERS]
    if not known:
        return (Speaker("other", said),)
    return tuple(Speaker(word, SPEAKERS[word]) for word in dict.fromkeys(known))


def _part(number: int, name: str, diagnosis: Diagnosis, knowledge: Mapping[str, KnowledgeEntry], side: int) -> Part:
    image, problem = _photograph(diagnosis.image, side)
    heat, map_problem = _map(diagnosis)
    chosen = diagnosis.knowledge
    entry = knowledge.get(chosen.key) if chosen is not None else None
    scale = None if heat is None else colour_scale(heat, diagnosis.expert)
    marked = None
    if diagnosis.expert is not None or heat is not None or map_problem:
        marked = _overlay_picture(diagnosis, image, heat, map_problem or problem)
    return Part(
        number=number,
        name=name,
        diagnosis=diagnosis,
        thumb=None if image is None else picture_uri(shrink(image, _THUMB), quality=80),
        query=Picture(_uri(image), f"inspected {diagnosis.object}", f"Inspected {diagnosis.object}", problem),
        reference=_reference(diagnosis, side),
        overlay=marked,
        scale=scale,
        limit=_limit(scale, diagnosis.expert),
        legend=_legend(diagnosis.expert) if image is not None else "",
        context=_context(diagnosis),
        selected=_selected(diagnosis, entry, knowledge),
        why_none=_why_none(diagnosis),
        verdict_says=speakers(diagnosis, "verdict"),
        statements=_statements(diagnosis),
        reasoning_says=speakers(diagnosis, "reasoning"),
        answer_says=speakers(diagnosis, "answer"),
        findings="" if diagnosis.expert is None else _sentence(describe_findings(diagnosis.expert)),
        look_twice=look_twice(diagnosis, entry),
    )


def _photograph(path: str, side: int) -> tuple[Image.Image | None, str]:
    try:
        return shrink(load_image(path), side), ""
    except ImageError as error:
        return None, str(error)


def _uri(image: Image.Image | None) -> str | None:
    return None if image is None else picture_uri(image)


def _map(diagnosis: Diagnosis) -> tuple[np.ndarray | None, str]:
    if diagnosis.expert_map is None:
        return None, ""
    try:
        return decode_map(diagnosis.expert_map), ""
    except ImageError as error:
        return None, str(error)


def _reference(diagnosis: Diagnosis, side: int) -> Picture:
    if not diagnosis.references:
        return Picture(None, "", "Reference", "No reference was given.")
    image, problem = _photograph(diagnosis.references[0], side)
    more = len(diagnosis.references) - 1
    caption = f"Reference, a normal {diagnosis.object}" + (f" (and {more} more)" if more else "")
    return Picture(_uri(image), f"normal {diagnosis.object}", caption, problem)


def _overlay_picture(diagnosis: Diagnosis, image: Image.Image | None, heat: np.ndarray | None, problem: str) -> Picture:
    caption = "Where it differs from the reference"
    if image is None:
        return Picture(None, "", caption, problem)
    picture = overlay(image, heat, diagnosis.expert)
    alt = "anomaly map of the visual expert over the photograph"
    if diagnosis.expert is not None:
        alt += f"; {describe_findings(diagnosis.expert)}"
    return Picture(picture_uri(picture), alt, caption, problem)


def _limit(scale: Scale | None, expert: ExpertFindings | None) -> float | None:
    """Where the expert's limit lies on the colour scale, as a share of it."""
    if scale is None or expert is None or not scale.low <= expert.threshold <= scale.high:
        return None
    return (expert.threshold - scale.low) / (scale.high - scale.low)


def _legend(expert: ExpertFindings | None) -> str:
    """What the marks drawn by `overlay` mean."""
    marks = []
    if expert is not None and expert.box is not None:
        marks.append("Box: hot region.")
    if expert is not None and expert.is_anomalous:
        marks.append(f"Corners: hottest cell, {PLACES[expert.cell]}.")
    return " ".join(marks)


def _selected(diagnosis: Diagnosis, entry: KnowledgeEntry | None, knowledge: Mapping[str, KnowledgeEntry]) -> Selected | None:
    if diagnosis.knowledge is None:
        return None
    alike = entry.look_alikes[:_ALIKE] if entry is not None else ()
    return Selected(
        entry=entry,
        ranking=(diagnosis.knowledge, *diagnosis.runners_up),
        text="" if entry is None else _named(entry.text, diagnosis),
        look_alikes=tuple(
            (knowledge[a.key].title if a.key in knowledge else a.key, _named(a.difference, diagnosis)) for a in alike
        ),
        says=speakers(diagnosis, "knowledge"),
    )


def _statements(diagnosis: Diagnosis) -> tuple[Statement, ...]:
    fields = (
        ("Place", "location", diagnosis.location),
        ("Type", "defect_type", diagnosis.defect_type),
        ("Looks like", "description", diagnosis.description),
        ("Likely effect", "effect", diagnosis.effect),
    )
    return tuple(Statement(label, _sentence(text), speakers(diagnosis, field)) for label, field, text in fields if text)


def _context(diagnosis: Diagnosis) -> str:
    """The context setting in words; an oracle's names its entry (``oracle:KEY``)."""
    return CONTEXTS.get(diagnosis.context.partition(":")[0], diagnosis.context)


def _why_none(diagnosis: Diagnosis) -> str:
    """Why the model reasoned under no knowledge, and what would have been next."""
    routing = diagnosis.routing
    if routing is None or not routing.abstained:
        return f"None: {_context(diagnosis)}."
    likeliest = ", ".join(f"{ranked.title} {ranked.probability:.2f}" for ranked in diagnosis.runners_up[:_LIKELIEST])
    return f"None is probable enough to reason under (at least {routing.threshold:.2f}). The likeliest: {likeliest or 'none'}."


def _named(text: str, diagnosis: Diagnosis) -> str:
    """Knowledge with the object's name put in, as the model read it."""
    return text.replace("[object]", diagnosis.object)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
