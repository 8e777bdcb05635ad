"""Two evaluations paired by question: differences with intervals, like with like (not in the paper).

Reads the folders of two evaluations, or of both under several trainings; returns a `PairedResult`. Refuses what differs in more
than it is told. Asks no model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from dcr2ad.artifacts import read_records
from dcr2ad.errors import InputError
from dcr2ad.pairing import differences, pair
from dcr2ad.stages.evaluate import read_report
from dcr2ad.types import EvalProtocol, EvalReport, PairedResult, Prediction


def compare(first: Path, second: Path, *, also: Sequence[tuple[Path, Path]] = (), differ: Collection[str] = ()) -> PairedResult:
    """Pair two evaluations of one benchmark, or those of several trainings.

    Args:
        first: folder of an evaluation.
        second: folder of another; positive differences are in its favour.
        also: folders of the same two under further trainings, such as seeds; the differences' mean over all is told.
        differ: what is meant to differ: fields of the protocol, ``model`` or ``knowledge``. Two models under one protocol
            need no such word.

    Raises:
        InputError: they differ in something that was not named, not in what was named, or in their questions; or trainings
            differ in more than their models.
        RecordError: a folder holds no finished evaluation.
    """
    named = sorted(set(differ))
    known = {*EvalProtocol.model_fields, "model", "knowledge", "pixels"}
    if set(named) - known:
        raise InputError(f"nothing is called {(set(named) - known).pop()!r}", f"One of {', '.join(sorted(known))}")
    pairs = [(first, second), *also]
    reports = [(read_report(one), read_report(two)) for one, two in pairs]
    found = [_differing(*folders, *read, named) for folders, read in zip(pairs, reports, strict=True)]
    for folders, read in zip(pairs[1:], reports[1:], strict=True):
        for folder, start, report, begun in zip(folders, pairs[0], read, reports[0], strict=True):
            if unlike := sorted(set(differences(begun, report)) - {"model", "pixels"}):
                shown = f"{start} and {folder} differ in {', '.join(unlike)}"
                raise InputError(shown, "Trainings taken together differ in their models alone")
    rows = [(_predictions(one), _predictions(two)) for one, two in pairs]
    names = (reports[0][0].model["name"], reports[0][1].model["name"])
    return pair(rows, names, differ=tuple(dict.fromkeys(name for each in found for name in each)))


def _differing(first: Path, second: Path, one: EvalReport, two: EvalReport, named: Sequence[str]) -> list[str]:
    """What two evaluations differ in, which is what was named."""
    found = differences(one, two)
    meant = set(named) | ({"model", "pixels"} if not named else set())
    unmeant = [name for name in found if name not in meant]
    if unmeant:
        shown = "; ".join(f"{name}: {found[name][0]} and {found[name][1]}" for name in unmeant)
        fix = " ".join(f"--differ {name}" for name in found)
        raise InputError(f"{first} and {second} differ in {shown}", f"Compare like with like, or say {fix} if that is meant")
    same = [name for name in named if name not in found]
    if same:
        raise InputError(f"{first} and {second} do not differ in {same[0]}", "Leave --differ out")
    return list(found)


def _predictions(folder: Path) -> list[Prediction]:
    return list(read_records(folder / "predictions.jsonl", Prediction))
