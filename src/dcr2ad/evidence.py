"""Whether the visual expert's findings carry what a question's right answer says; not in the paper.

Reads a `Question` with findings and the geometry of its mask; returns the reason why not. A small language model sees the
findings' words far better than the picture: taught answers that go against them, it learns to guess. Knows nothing about
models or how responses are written.
"""

from __future__ import annotations

from dcr2ad.geometry import Geometry
from dcr2ad.kind_names import TOLD
from dcr2ad.places import PLACES
from dcr2ad.prompts import shape_word, size_word, told_places
from dcr2ad.types import ExpertFindings, Question, Subtask


def unsupported(question: Question, geometry: Geometry | None) -> str:
    """Why the findings do not carry the right answer, or an empty text; without findings there is nothing to go against.

    The verdict must agree where it is asked for. Where places are offered, the first of those told that is offered must be the
    right one; for all else of a defect the hottest cell must be the mask's own. Of the kinds told, the first whose entry an
    option speaks of must be the right one; where options speak of none, the right one must be among them. Size and shape must
    be the mask's where an option states them. What is asked of a good part's object does not rest on findings.

    Args:
        question: the question; its sample's findings are those that a prompt tells.
        geometry: of the sample's masks, if any.
    """
    sample, findings = question.sample, question.sample.expert
    if findings is None:
        return ""
    if question.subtask is Subtask.DETECTION and findings.is_anomalous != sample.is_anomalous:
        return "the expert's verdict is the other one"
    if not sample.is_anomalous:
        return ""
    if geometry is not None and not _place_agrees(question, findings, geometry):
        return "the expert's hottest place is another one"
    told = [kind.key for kind in findings.kinds[:TOLD]]
    keys = question.provenance.get("keys", "").split()
    first = next((key for key in told if key in keys), sample.right_key)
    if told and sample.right_key not in told:
        return "the right kind is not among those told"
    if first != sample.right_key:
        return "another kind offered is told first"
    if geometry is not None and question.subtask is Subtask.DESCRIPTION and question.provenance.get("verified") == "mask":
        seen = size_word(findings.extent), shape_word(findings.elongation)
        if seen != (size_word(geometry.extent), shape_word(geometry.elongation)):
            return "the expert's hot spot has another size or shape"
    return ""


def _place_agrees(question: Question, findings: ExpertFindings, geometry: Geometry) -> bool:
    if question.subtask is Subtask.LOCALIZATION and set(question.options) <= set(PLACES):
        told = [place for place in told_places(findings) if place in question.options]
        return bool(told) and told[0] == question.options[question.answer]
    return geometry.cell == findings.cell
