"""Two evaluations paired by question: differences with intervals, like with like (not in the paper).

Reads the folders of two evaluations; returns a `PairedResult`. Refuses what differs in more than it is told. Asks no model.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from dcr2ad import metrics
from dcr2ad.artifacts import read_records
from dcr2ad.errors import InputError
from dcr2ad.stages.evaluate import read_report
from dcr2ad.types import EvalProtocol, EvalReport, PairedResult, Prediction


def compare(first: Path, second: Path, *, differ: Collection[str] = ()) -> PairedResult:
    """Pair two evaluations of one benchmark.

    Args:
        first: folder of an evaluation.
        second: folder of another; positive differences are in its favour.
        differ: what is meant to differ: fields of the protocol, ``model`` or ``knowledge``. Two models under one protocol
            need no such word.

    Raises:
        InputError: they differ in something that was not named, not in what was named, or in their questions.
        RecordError: a folder holds no finished evaluation.
    """
    reports = [read_report(folder) for folder in (first, second)]
    found = _differences(*reports)
    named = sorted(set(differ))
    known = {*EvalProtocol.model_fields, "model", "knowledge", "pixels"}
    if set(named) - known:
        raise InputError(f"nothing is called {(set(named) - known).pop()!r}", f"One of {', '.join(sorted(known))}")
    meant = set(named) | ({"model", "pixels"} if not named else set())
    unmeant = [name for name in found if name not in meant]
    if unmeant:
        shown = "; ".join(f"{name}: {found[name][0]} and {found[name][1]}" for name in unmeant)
        fix = " ".join(f"--differ {name}" for name in found)
        raise InputError(f"{first} and {second} differ in {shown}", f"Compare like with like, or say {fix} if that is meant")
    same = [name for name in named if name not in found]
    if same:
        raise InputError(f"{first} and {second} do not differ in {same[0]}", "Leave --differ out")
    return _paired(_predictions(first), _predictions(second), reports, tuple(found))


def _paired(
    one: dict[str, Prediction], two: dict[str, Prediction], reports: list[EvalReport], differ: tuple[str, ...]
) -> PairedResult:
    if one.keys() != two.keys() or any(one[name].gold != two[name].gold for name in one):
        shared = len(one.keys() & two.keys())
        raise InputError(
            f"the questions are not the same ({len(one)} and {len(two)}, {shared} in both)", "Ask both the same benchmark"
        )
    rows = [[found[name] for name in one] for found in (one, two)]
    spans = metrics.paired_differences(*rows)
    only_first, only_second, p_value = metrics.mcnemar(*([p.is_correct for p in found] for found in rows))
    rates = [metrics.detection_rates(found) for found in rows]
    return PairedResult(
        first=reports[0].model["name"],
        second=reports[1].model["name"],
        differ=differ,
        questions=len(one),
        subtasks={subtask.value: span for subtask, span in spans.items() if subtask is not None},
        average=spans[None],
        only_first=only_first,
        only_second=only_second,
        p_value=p_value,
        detection={name: rates[1][name] - rates[0][name] for name in rates[0]},
    )


def _differences(first: EvalReport, second: EvalReport) -> dict[str, tuple[str, str]]:
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


def _predictions(folder: Path) -> dict[str, Prediction]:
    return {p.question_id: p for p in read_records(folder / "predictions.jsonl", Prediction)}
