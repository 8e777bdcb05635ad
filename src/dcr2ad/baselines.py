"""Answers without the language model: the rows that a model of the ablation has to beat.

Reads a benchmark's questions with the findings in their samples; returns predictions. Knows nothing about models or files.
Not in the paper.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dcr2ad.blind import blind_answers
from dcr2ad.places import named_cells
from dcr2ad.types import EvalProtocol, ExpertFindings, Prediction, Question, Subtask

NO_MODEL = "no language model"
"""Backend of their evaluations."""


def expert_alone(questions: Sequence[Question], *, seed: int = 0) -> list[Prediction]:
    """What the visual expert's findings answer by themselves.

    Anomaly Detection: defective where the score passes the threshold. Defect Localization: the option that names the hottest
    cell. Kind, look and consequence: the option whose kind of defect the findings tell first, where they tell kinds. Else, and
    where a sample has no findings, one option by lot.
    """
    rows = []
    for question in questions:
        findings = question.sample.expert
        answer = None if findings is None else _told(question, findings)
        if answer is None:
            answer = random.Random(f"{seed}/{question.id}/lot").randrange(len(question.options))
        rows.append(Prediction.of(question, status="answered", answer=answer))
    return rows


def blind_reader(questions: Sequence[Question], *, seed: int = 0) -> list[Prediction]:
    """What a reader of question and options alone answers, learnt from the answers of the benchmark's other images."""
    given = blind_answers(questions, seed=seed)
    return [Prediction.of(question, status="answered", answer=given[question.id]) for question in questions]


@dataclass(frozen=True)
class Baseline:
    """A row beside the models.

    Attributes:
        label: its name in tables.
        protocol: what it is shown.
        answer: from questions, and a seed by name, to predictions.
    """

    label: str
    protocol: EvalProtocol
    answer: Callable[..., list[Prediction]]


BASELINES = {
    "expert-alone": Baseline("visual expert alone", EvalProtocol(shots=1, expert=True), expert_alone),
    "blind-reader": Baseline("blind reader", EvalProtocol(shots=0, expert=False), blind_reader),
}
"""Name of the evaluation -> what answers."""


def _told(question: Question, findings: ExpertFindings) -> int | None:
    """Index of the option that the findings lead to; None where they lead to none."""
    if question.subtask is Subtask.DETECTION and len(question.options) == 2:
        right = findings.is_anomalous == question.sample.is_anomalous
        return question.answer if right else 1 - question.answer
    if question.subtask is Subtask.LOCALIZATION:
        heat = [max((findings.cells[cell] for cell in named_cells(option)), default=None) for option in question.options]
        known = {number: value for number, value in enumerate(heat) if value is not None}
        return max(known, key=known.__getitem__) if len(known) == len(heat) else None
    keys = question.provenance.get("keys", "").split()
    return next((keys.index(kind.key) for kind in findings.kinds if kind.key in keys), None)
