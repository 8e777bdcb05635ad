"""Boundary mining (Appendix B.2): which instruct questions the SFT model answers near chance.

Reads questions and a model that scores; writes ``boundary.jsonl``, ``histogram.png`` and, for every question,
``probabilities.jsonl``. Keeps |p(gold) - chance| <= threshold, chance being one over the number of options; never widens the
band by itself, and fills sub-tasks up where it is told to (`MineSettings.least_each`). A model that answers behind its own
reasoning is mined so (`MineSettings.answering`): what it is unsure of there is not what it is unsure of when asked for the
letter alone. One that leans to an answer, whatever it sees, can be measured against its own mean answer (`calibrate`). Knows
nothing about training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from dcr2ad.artifacts import RecordWriter, StageFolder, digest_records, read_records, write_bytes, write_records
from dcr2ad.config import MineSettings
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.base import ChatModel, letter_probabilities
from dcr2ad.parsing import parse_response
from dcr2ad.prompts import answer_prompt, build_prompt
from dcr2ad.reasoning import Written, mean_probabilities, sample_responses, write_responses
from dcr2ad.report.figures import histogram_png
from dcr2ad.types import Answering, BoundaryQuestion, EvalProtocol, Question, Unparsed

BINS = 20
FEWEST_ALIKE = 20
"""Questions with the same options from which a model's lean is estimated (`calibrate`)."""


def mine_boundary(
    model: ChatModel,
    questions: Sequence[Question],
    knowledge_base: KnowledgeBase,
    settings: MineSettings,
    out: Path,
    *,
    fresh: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Keep the questions near chance, nearest first, at most ``settings.wanted``, and ``settings.least_each`` of each sub-task.

    Returns:
        counts: questions, in the band, kept, of these filled up, above and below chance (in all and a sub-task), and the
        histogram of p(gold), as calibrated, in `BINS` equal bins. A question whose responses name no option is counted as
        ``unread`` and left out, one that lists exchanged knowledge as ``exchanged``: a pair made of it would prefer what is
        false. ``other_subtasks`` are those that ``settings.subtasks`` does not name.

    Raises:
        CannotScoreError: the model gives no probabilities, and is asked for the letter alone.
        RunError: `out` holds work made with another model, questions or settings.
    """
    config = {**settings.model_dump(), "model": model.info.digest}
    inputs = {"questions": digest_records(questions), "knowledge": knowledge_base.digest}
    with StageFolder(out, stage="mine", config=config, inputs=inputs, fresh=fresh) as folder:
        if folder.done:
            return folder.manifest.summary
        file = out / "probabilities.jsonl"
        with RecordWriter(file) as writer:
            seen = {row.question.id for row in read_records(file, BoundaryQuestion)}
            wanted = [question for question in questions if not settings.subtasks or question.subtask in settings.subtasks]
            asked = [question for question in wanted if not question.exchanged]
            groups = [list(g) for _, g in groupby(sorted(asked, key=_image), key=_image)]
            for number, group in enumerate(groups, 1):
                left = [question for question in group if question.id not in seen]
                if left:
                    writer.write(*_read(model, left, knowledge_base, settings.answering))
                if progress:
                    progress(number, len(groups))
        rows = list(read_records(file, BoundaryQuestion))
        if settings.calibrated:
            rows = calibrate(rows)
        ordered = sorted(rows, key=lambda r: (abs(r.margin), r.question.id))
        band = [row for row in ordered if abs(row.margin) <= settings.threshold]
        kept = fill_up(band[: settings.wanted], ordered, settings.least_each)
        write_records(out / "boundary.jsonl", kept)
        left_out = {
            "unread": len(asked) - len(rows),
            "exchanged": len(wanted) - len(asked),
            "other_subtasks": len(questions) - len(wanted),
        }
        summary = _summary(rows, band, kept, settings) | left_out
        write_bytes(out / "histogram.png", _picture(rows, summary["histogram"], settings))
        folder.finish(summary)
    return summary


def fill_up(kept: Sequence[BoundaryQuestion], ordered: Sequence[BoundaryQuestion], least: int) -> list[BoundaryQuestion]:
    """The questions kept, which are the first in order, and after them the next of each sub-task with fewer than `least`."""
    count = Counter(row.question.subtask for row in kept)
    added = []
    for row in ordered[len(kept) :]:
        subtask = row.question.subtask
        if count[subtask] < least:
            count[subtask] += 1
            added.append(row)
    return [*kept, *added]


def calibrate(rows: Sequence[BoundaryQuestion]) -> list[BoundaryQuestion]:
    """The same questions, by their options, with margins against the model's own mean answer where questions share these.

    Each probability is divided by the mean one of its option, in whatever place it stands, and all are made to sum to one. Over
    questions with one right answer first and then over right answers, so that which is the more frequent does not count.
    Groups smaller than `FEWEST_ALIKE`, or in which some option is never right, stay as they are. Not in the paper.
    """
    groups: dict[tuple[str, tuple[str, ...]], list[BoundaryQuestion]] = {}
    for row in rows:
        groups.setdefault((row.question.subtask, tuple(sorted(row.question.options))), []).append(row)
    calibrated: list[BoundaryQuestion] = []
    for group in groups.values():
        mean = _mean_answer(group)
        calibrated += group if mean is None else [_against(row, mean) for row in group]
    return calibrated


def _mean_answer(group: Sequence[BoundaryQuestion]) -> dict[str, float] | None:
    """Mean probability of each option, every right answer counting alike; None where that says nothing or one is zero."""
    by_answer: dict[str, list[dict[str, float]]] = {}
    for row in group:
        question = row.question
        answers = dict(zip(question.options, row.probabilities, strict=True))
        by_answer.setdefault(question.options[question.answer], []).append(answers)
    options = group[0].question.options
    if len(group) < FEWEST_ALIKE or set(by_answer) != set(options):
        return None
    mean = {option: fmean(fmean(one[option] for one in answers) for answers in by_answer.values()) for option in options}
    return mean if all(mean.values()) else None


def _against(row: BoundaryQuestion, mean: Mapping[str, float]) -> BoundaryQuestion:
    question = row.question
    odds = [p / mean[option] for option, p in zip(question.options, row.probabilities, strict=True)]
    return row.model_copy(update={"margin": odds[question.answer] / sum(odds) - 1 / len(odds)})


def _read(
    model: ChatModel, group: list[Question], knowledge_base: KnowledgeBase, answering: Answering
) -> list[BoundaryQuestion]:
    prompts = [build_prompt(q, entries=knowledge_base.listed(q)) for q in group]
    options = [question.options for question in group]
    found: Sequence[tuple[float, ...] | None]
    if answering == "score":
        found = letter_probabilities(model, [answer_prompt(prompt) for prompt in prompts], list(map(len, options)))
    else:
        k = EvalProtocol(answering=answering).trajectories
        sampled = sample_responses(model, prompts, options, k) if k else [[w] for w in write_responses(model, prompts, options)]
        found = list(map(_mean, sampled, options))
    return [
        BoundaryQuestion(question=q, probabilities=p, margin=p[q.answer] - 1 / len(q.options))
        for q, p in zip(group, found, strict=True)
        if p is not None
    ]


def _mean(responses: Sequence[Written], options: Sequence[str]) -> tuple[float, ...] | None:
    """Mean probability of each option; a response without probabilities counts as sure of the letter it names."""
    votes = [found for written in responses if (found := written.probabilities or _vote(written, options)) is not None]
    return mean_probabilities(votes) if votes else None


def _vote(written: Written, options: Sequence[str]) -> tuple[float, ...] | None:
    read = parse_response(written.text, options)
    if isinstance(read, Unparsed) or not written.completion.answered:
        return None
    return tuple(float(number == read.answer) for number in range(len(options)))


def _summary(
    rows: Sequence[BoundaryQuestion],
    band: Sequence[BoundaryQuestion],
    kept: Sequence[BoundaryQuestion],
    settings: MineSettings,
) -> dict[str, Any]:
    gold = [row.margin + 1 / len(row.question.options) for row in rows]
    histogram = Counter(min(int(p * BINS), BINS - 1) for p in gold)
    return {
        "questions": len(rows),
        "in_band": len(band),
        "kept": len(kept),
        "filled_up": len(kept) - min(len(band), settings.wanted),
        "wanted": settings.wanted,
        "enough": len(band) >= settings.wanted,
        "sides": dict(Counter(row.side for row in kept)),
        "subtasks": {
            subtask: dict(Counter(row.side for row in kept if row.question.subtask == subtask))
            for subtask in sorted({row.question.subtask.value for row in kept})
        },
        "histogram": [histogram[b] for b in range(BINS)],
    }


def _picture(rows: Sequence[BoundaryQuestion], histogram: Sequence[int], settings: MineSettings) -> bytes:
    chances = sorted({1 / len(row.question.options) for row in rows})
    bands = [(max(0.0, chance - settings.threshold), min(1.0, chance + settings.threshold)) for chance in chances]
    return histogram_png(f"{len(rows)} questions; shaded: within {settings.threshold:g} of chance", histogram, bands)


def _image(question: Question) -> tuple[str, ...]:
    sample = question.sample
    return (sample.dataset, sample.object, *sample.references, sample.image)
