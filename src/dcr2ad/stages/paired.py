"""Two evaluations paired by question: differences with intervals, like with like (not in the paper).

Reads the folders of two evaluations; returns a `PairedResult`. Refuses what differs in more than it is told. Asks no model.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from dcr2ad.artifacts import read_records
from dcr2ad.errors import InputError
from dcr2ad.pairing import differences, pair
from dcr2ad.stages.evaluate import read_report
from dcr2ad.types import EvalProtocol, PairedResult, Prediction


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
    found = differences(*reports)
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
    one, two = (list(read_records(folder / "predictions.jsonl", Prediction)) for folder in (first, second))
    return pair(one, two, (reports[0].model["name"], reports[1].model["name"]), differ=tuple(found))
