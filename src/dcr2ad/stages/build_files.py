"""The three files of one run of `dcr2ad.stages.building`: unfinished lines cut off, sides evened, what they hold counted.

Reads and rewrites ``samples.jsonl``, ``questions.jsonl`` and ``rejected.jsonl``; returns ids of finished images and a
`BuildSummary`. Knows nothing about how questions are made.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from dcr2ad.artifacts import RecordWriter, drop_torn_line, read_records, write_text
from dcr2ad.balance import uneven_sides
from dcr2ad.datasets.folder import Skipped
from dcr2ad.datasets.onto import DRAWN
from dcr2ad.questions import TOO_OFTEN, Rejected
from dcr2ad.types import Question, Record, Sample, Subtask

UNREADABLE, SKIPPED, FORBIDDEN = "image or mask cannot be read", "file skipped", "image is in a benchmark"
UNDRAWN = "no defect could be drawn"
"""How the reason of a whole image begins in rejected.jsonl; the case follows after a colon."""


class BuildSummary(Record):
    """What was made and what was dropped, counted."""

    images: int
    """Images in samples.jsonl."""
    defective: int
    """Of these, defective ones."""
    drawn: int = 0
    """Of these, good photographs onto which a defect was drawn."""
    with_findings: int
    """Of these, those with the expert's findings."""
    questions: int
    """Questions made."""
    subtasks: dict[str, int]
    """Questions a sub-task."""
    objects: dict[str, int]
    """Questions an object."""
    letters: dict[str, list[int]]
    """How often each option index is right, by number of options."""
    reasoned: int
    """Questions with a worked response."""
    direct: int
    """Questions with a direct answer."""
    rewritten: int = 0
    """Responses that stand after having been written again: the mask denied the first."""
    rejected: dict[str, int] = Field(default_factory=dict)
    """Questions and images dropped, by reason."""
    skipped: dict[str, int] = Field(default_factory=dict)
    """Files the reader could not use, by reason; the files are named in rejected.jsonl."""


def keep_finished(out: Path) -> set[str]:
    """Ids of the images that are done; lines of an unfinished one are cut off the files."""
    paths = {name: out / f"{name}.jsonl" for name in ("samples", "questions", "rejected")}
    for path in paths.values():
        drop_torn_line(path)
        path.touch()
    done = {sample.id for sample in read_records(paths["samples"], Sample)}
    whole = (UNREADABLE, FORBIDDEN, UNDRAWN)
    done |= {item.sample for item in read_records(paths["rejected"], Rejected) if item.reason.startswith(whole)}
    for name in ("questions", "rejected"):
        lines = paths[name].read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if _sample_of(json.loads(line)) in done]
        if len(kept) < len(lines):
            write_text(paths[name], "".join(kept))
    return done


def even_sides(out: Path, seed: str) -> None:
    """Leave out questions of detection, by lot, until every object is defective as often as good; the rest keep their order.

    What the findings or the masks deny falls on one side more than on the other, which is known at the end only. May be
    stopped between its two writes and called again.
    """
    path = out / "questions.jsonl"
    asked = (question.sample for question in read_records(path, Question) if _detects(question))
    surplus = uneven_sides((sample.model_copy(update={"expert": None}) for sample in asked), seed)
    if not surplus:
        return
    noted = {row.sample for row in read_records(out / "rejected.jsonl", Rejected) if row.reason == TOO_OFTEN and _detects(row)}
    with RecordWriter(out / "rejected.jsonl") as rejected:
        for one in sorted(surplus - noted):
            rejected.write(Rejected(sample=one, subtask=Subtask.DETECTION, reason=TOO_OFTEN))
    kept = path.with_name(f"{path.name}.tmp")
    kept.unlink(missing_ok=True)
    with RecordWriter(kept) as writer:
        for question in read_records(path, Question):
            if not (_detects(question) and question.sample.id in surplus):
                writer.write(question)
    kept.replace(path)


def _detects(row: Question | Rejected) -> bool:
    return row.subtask is Subtask.DETECTION


def _sample_of(line: dict[str, Any]) -> str:
    """Id of the sample a line of questions.jsonl or rejected.jsonl belongs to."""
    sample = line["sample"]
    return str(sample["id"] if isinstance(sample, dict) else sample)


def count_made(out: Path, skipped: Sequence[Skipped]) -> BuildSummary:
    """What the three files hold."""
    samples = list(read_records(out / "samples.jsonl", Sample))
    subtasks: Counter[str] = Counter()
    objects: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    letters: dict[str, list[int]] = {}
    for question in read_records(out / "questions.jsonl", Question):
        subtasks[question.subtask.value] += 1
        objects[question.sample.object] += 1
        if question.response is not None:
            kinds["rewritten"] += "tries" in question.provenance
            kinds["reasoned" if question.response.reasoning else "direct"] += 1
        letters.setdefault(str(len(question.options)), [0] * len(question.options))[question.answer] += 1
    reasons = Counter(item.reason.partition(":")[0] for item in read_records(out / "rejected.jsonl", Rejected))
    return BuildSummary(
        images=len(samples),
        defective=sum(sample.is_anomalous for sample in samples),
        drawn=sum(sample.id.startswith(DRAWN) for sample in samples),
        with_findings=sum(sample.expert is not None for sample in samples),
        questions=sum(subtasks.values()),
        subtasks=dict(sorted(subtasks.items())),
        objects=dict(sorted(objects.items())),
        letters=dict(sorted(letters.items())),
        reasoned=kinds["reasoned"],
        direct=kinds["direct"],
        rewritten=kinds["rewritten"],
        rejected={reason: n for reason, n in sorted(reasons.items()) if reason != SKIPPED},
        skipped=dict(sorted(Counter(item.why for item in skipped).items())),
    )
