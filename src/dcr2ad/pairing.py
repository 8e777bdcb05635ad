"""Two evaluations paired by question: what differs between them, and by how much (not in the paper).

Reads reports and predictions; returns a `PairedResult`, or why the two are no pair. Pure: no files. Intervals resample the
same images on both sides; McNemar's test takes questions as independent.
"""

from __future__ import annotations

from collections.abc import Sequence

from dcr2ad import metrics
from dcr2ad.errors import InputError
from dcr2ad.types import EvalReport, PairedResult, Prediction


def differences(first: EvalReport, second: EvalReport) -> dict[str, tuple[str, str]]:
    """What two evaluations differ in: fields of the protocol, ``model``, ``pixels`` and ``knowledge``, with both values."""
    sides = []
    for report in (first, second):
        side = {name: str(value) for name, value in report.protocol.model_dump().items()}
        side["model"] = report.model.get("digest", "")[:12]
        side["pixels"] = report.model.get("pixels", "")
        side["knowledge"] = report.knowledge_digest[:12] if report.protocol.context != "none" else ""
        sides.append(side)
    if "none" in (first.protocol.context, second.protocol.context):
        sides[0]["knowledge"] = sides[1]["knowledge"] = ""
    return {name: (sides[0][name], sides[1][name]) for name in sides[0] if sides[0][name] != sides[1][name]}


def pair(
    first: Sequence[Prediction], second: Sequence[Prediction], names: tuple[str, str], *, differ: Sequence[str] = ()
) -> PairedResult:
    """Second minus first, question by question.

    Args:
        first: predictions of one evaluation.
        second: predictions of the other, of the same questions in any order.
        names: what the two are called.
        differ: what differs between them.

    Raises:
        InputError: the questions are not the same, or there is none.
    """
    one, two = ({p.question_id: p for p in found} for found in (first, second))
    if not one or one.keys() != two.keys() or any(one[name].gold != two[name].gold for name in one):
        shared = len(one.keys() & two.keys())
        raise InputError(
            f"the questions are not the same ({len(one)} and {len(two)}, {shared} in both)", "Ask both the same benchmark"
        )
    rows = [[found[name] for name in one] for found in (one, two)]
    spans = metrics.paired_differences(*rows)
    only_first, only_second, p_value = metrics.mcnemar(*([p.is_correct for p in found] for found in rows))
    rates = [metrics.detection_rates(found) for found in rows]
    return PairedResult(
        first=names[0],
        second=names[1],
        differ=tuple(differ),
        questions=len(one),
        subtasks={subtask.value: span for subtask, span in spans.items() if subtask is not None},
        average=spans[None],
        only_first=only_first,
        only_second=only_second,
        p_value=p_value,
        detection={name: rates[1][name] - rates[0][name] for name in rates[0]},
    )
