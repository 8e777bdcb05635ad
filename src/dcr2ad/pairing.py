"""Two evaluations paired by question: what differs between them, and by how much (not in the paper).

Reads reports and predictions, of one training or of several on each side; returns a `PairedResult`, or why they are no pair.
Pure: no files. Intervals resample the same images on both sides; McNemar's test takes questions as independent.
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
    trainings: Sequence[tuple[Sequence[Prediction], Sequence[Prediction]]],
    names: tuple[str, str],
    *,
    differ: Sequence[str] = (),
) -> PairedResult:
    """Second minus first, question by question, the mean over trainings such as seeds.

    An image is resampled with its answers under every training, so that the interval is of these trainings on other images.

    Args:
        trainings: of each the predictions of both evaluations; all of the same questions in any order.
        names: what the two are called.
        differ: what differs between them.

    Raises:
        InputError: the questions are not the same, or there is none.
    """
    sides = [[{p.question_id: p for p in found} for found in both] for both in trainings]
    asked = sides[0][0]
    for found in (side for both in sides for side in both):
        if not asked or asked.keys() != found.keys() or any(asked[name].gold != found[name].gold for name in asked):
            shared = len(asked.keys() & found.keys())
            raise InputError(
                f"the questions are not the same ({len(asked)} and {len(found)}, {shared} in both)",
                "Ask both the same benchmark",
            )
    rows = [[[found[name] for name in asked] for found in both] for both in sides]
    one, two = ([p for both in rows for p in both[side]] for side in (0, 1))
    spans = {
        subtask: span.model_copy(update={"n": span.n // len(rows)})
        for subtask, span in metrics.paired_differences(one, two).items()
    }
    right = [[p.is_correct for p in found] for found in (one, two)]
    only_first, only_second = metrics.discordant(*right)
    rates = [metrics.detection_rates(found) for found in (one, two)]
    several = len(rows) > 1
    return PairedResult(
        first=names[0],
        second=names[1],
        differ=tuple(differ),
        questions=len(asked),
        subtasks={subtask.value: span for subtask, span in spans.items() if subtask is not None},
        average=spans[None],
        only_first=only_first,
        only_second=only_second,
        p_value=None if several else metrics.mcnemar(*right)[2],
        detection={name: rates[1][name] - rates[0][name] for name in rates[0]},
        trainings=tuple(_average(second) - _average(first) for first, second in rows) if several else (),
    )


def _average(predictions: Sequence[Prediction]) -> float:
    found = metrics.average(predictions)
    assert found is not None, "there are questions"
    return found
