"""Supervised fine-tuning: questions with worked responses in, a trained model out (Section 3.1, Equation 2).

Reads questions, the knowledge base their candidates lie in, and a model; writes model/ and log.jsonl under the stage's folder
and returns a summary. Knows nothing about where the questions come from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dcr2ad.artifacts import digest_records
from dcr2ad.config import SftSettings
from dcr2ad.errors import InputError
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.vlm import VisionLanguageModel
from dcr2ad.training.batches import TrainingRow, check_lengths, group_by_image, sft_row
from dcr2ad.training.losses import SEGMENTS, sft_loss
from dcr2ad.training.outcome import Outcome
from dcr2ad.training.stage import StageWork, run_stage, train_images
from dcr2ad.training.start import start_from
from dcr2ad.training.trainer import Progress, Session
from dcr2ad.types import Question


def train_sft(
    vlm: VisionLanguageModel,
    questions: Sequence[Question],
    knowledge_base: KnowledgeBase,
    settings: SftSettings,
    out: Path,
    *,
    base_spec: str,
    seed: int,
    fresh: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fine-tune a model on worked responses; continues where an earlier run stopped.

    log.jsonl gets one line an optimiser step: ``step``, ``loss`` (Equation 2, mean over tokens and rows), ``learning_rate``,
    ``grad_norm`` (before clipping), ``tokens``, ``seconds``, and ``loss_path``, ``loss_reasoning``, ``loss_answer``: the mean
    over the tokens of each segment.

    Args:
        vlm: the model to start from, or the base of the adapter that `base_spec` names. It is used up: what it holds afterwards
            is unspecified, open ``out/model`` instead.
        questions: questions; those without a response are left out and counted.
        knowledge_base: holds every candidate.
        settings: how to train.
        out: the stage's folder.
        base_spec: name of the start; kept in ``model/dcr2ad.json``. Where that is the folder of an adapter, this is a further
            stage of it: with LoRA the adapter itself is trained on, for full fine-tuning it is merged first.
        seed: seed of row order, adapter and dropout.
        fresh: throw earlier work in `out` away first.
        progress: is told the optimiser steps done and their total.

    Returns:
        ``steps``, ``rows``, ``first_loss``, ``last_loss`` (means over the first and last tenth), ``tokens``, ``seconds``,
        ``dropped`` (number by reason) and ``trained_parameters``.

    Raises:
        InputError: no question has a response, a row exceeds the model's positions (names them), an image or entry is missing.
            Or the model given is not the one that `base_spec` names; or the adapter was made with other LoRA settings.
        RunError: the folder holds work made from other settings or inputs.
        ModelError: the loss stopped being a number, or the model's parts are unknown.
    """
    kept = [question for question in questions if question.response is not None]
    if not kept:
        raise InputError(f"none of {len(questions)} questions has a response to train on", "Run `dcr2ad instruct` first")
    start = start_from(vlm, base_spec)
    work = StageWork(
        stage="sft",
        settings=settings,
        out=Path(out),
        inputs={
            "questions": digest_records(kept),
            "knowledge": knowledge_base.digest,
            **start.digests,
        },
        base=start.base,
        seed=seed,
        fresh=fresh,
        adapter=start.adapter,
        train_images=lambda: train_images(kept, start.trained),
        dropped=dict(Counter("no response" for question in questions if question.response is None)),
    )
    return run_stage(vlm, _Sft(vlm, kept, knowledge_base), work, progress)


@dataclass(frozen=True)
class _Sft:
    """Rows and loss of Equation (2); a `Task`."""

    vlm: VisionLanguageModel
    questions: Sequence[Question]
    knowledge_base: KnowledgeBase

    def __len__(self) -> int:
        return len(self.questions)

    def row(self, number: int) -> TrainingRow:
        return sft_row(self.vlm, self.questions[number], self.knowledge_base)

    def groups(self) -> tuple[tuple[int, ...], ...]:
        return group_by_image(self.questions)

    def begin(self, session: Session) -> None:
        check_lengths(self.vlm, len(self), self.row)

    def losses(self, session: Session, rows: Sequence[int]) -> Outcome:
        built = [self.row(number) for number in rows]
        logprobs = [responses[0] for responses in session.logprobs(built)]
        metrics: dict[str, list[torch.Tensor]] = {f"loss_{name}": [] for name in SEGMENTS}
        for row, values in zip(built, logprobs, strict=True):
            segments = torch.tensor(row.responses[0].segments, device=values.device)
            for number, name in enumerate(SEGMENTS):
                metrics[f"loss_{name}"].append(-values.detach()[segments == number].mean())  # NaN for an absent segment
        tokens = sum(row.tokens for row in built)
        return Outcome(sft_loss(logprobs), {name: torch.stack(values) for name, values in metrics.items()}, tokens)

    def after(self, session: Session, step: int, total: int) -> dict[str, float]:
        return {}

    def summary(self) -> dict[str, Any]:
        return {}
