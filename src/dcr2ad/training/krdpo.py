"""KR-DPO: preference pairs in, a model that selects the right knowledge out (Section 3.3.1, Equation 5).

Reads pairs, the knowledge base, and the SFT model; writes model/, reference.jsonl and log.jsonl under the stage's folder and
returns a summary. pi_ref is the SFT model that training starts from: its log-probabilities are computed once, before the first
step, and kept with that model's digest, so no second model is ever held. Standard DPO (Equation 4), the ablation, is the same
training on the same questions with y_l a wrong answer under the right knowledge (``objective = "dpo"``); see
`dcr2ad.training.losses` and `dcr2ad.training.batches.rejected_trajectory`. Knows nothing about where the pairs come from.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dcr2ad.artifacts import RecordWriter, digest_json, digest_records, read_records
from dcr2ad.config import KrdpoSettings
from dcr2ad.errors import InputError, RunError
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.vlm import VisionLanguageModel
from dcr2ad.training.batches import (
    UNSCORED,
    ResponseTokens,
    TrainingRow,
    check_lengths,
    group_by_image,
    pair_row,
    rejected_trajectory,
    sft_row,
)
from dcr2ad.training.checkpoints import ends, read_log
from dcr2ad.training.dev_routing import RoutingDev
from dcr2ad.training.losses import SEGMENTS, PreferenceLoss, krdpo_loss, segment_sums, sft_loss
from dcr2ad.training.outcome import Outcome
from dcr2ad.training.stage import StageWork, run_stage, train_images
from dcr2ad.training.start import start_from
from dcr2ad.training.trainer import Progress, Session
from dcr2ad.types import PreferencePair, Question, Record

REFERENCE = "reference.jsonl"
"""File of the reference's log-probabilities in the stage's folder."""
CHOSEN, REJECTED = slice(1), slice(1, None)
"""Of a row's responses those of y_w and of y_l."""
DISPLACED = -0.05
"""log pi/pi_ref a token of the right responses below which they have become too unlikely (docs/nano.md; not in the paper)."""
DRIFTED = 1.5
"""Loss of the rehearsed questions, last tenth of the steps over the first, that says they are not kept up; not in the paper."""


class ReferenceScores(Record):
    """Log-probabilities of one pair under pi_ref."""

    id: str
    """Id of the pair."""
    model: str
    """Digest of the model that gave them."""
    chosen: tuple[float, float, float]
    """Of y_w's path, reasoning and answer, nats."""
    rejected: tuple[float, float, float]
    """Of y_l's."""


def train_krdpo(
    vlm: VisionLanguageModel,
    pairs: Sequence[PreferencePair],
    knowledge_base: KnowledgeBase,
    settings: KrdpoSettings,
    out: Path,
    *,
    base_spec: str,
    seed: int,
    rehearsed: Sequence[Question] = (),
    fresh: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a model to prefer the right knowledge path; continues where an earlier run stopped.

    log.jsonl gets one line an optimiser step: ``step``, ``loss`` (Equation 5), ``learning_rate``, ``grad_norm``, ``tokens``,
    ``seconds``; ``reward_chosen``, ``reward_rejected``, ``margin``, ``accuracy`` (share of pairs with a positive margin), the
    last two also as ``margin_path``, ``accuracy_path`` and so on; ``log_ratio_chosen``, ``log_ratio_rejected``: log pi/pi_ref a
    token that counts, whose mean on the policy's own samples would be the KL divergence. Rewards are beta * log pi/pi_ref,
    unweighted. ``sft_loss`` and ``rehearsal_loss`` (Equation 2) where the settings weigh them. With `settings.routing_dev`,
    every `routing_steps` steps also ``routing_top1``, ``routing_top3`` and ``routing_mrr``: how well the policy routes that
    file's photographs; routing.jsonl holds the same, the starting policy included.

    Args:
        vlm: the SFT model, or the base of the SFT adapter that `base_spec` names. It is used up; open ``out/model`` instead.
        pairs: preference pairs; those whose two responses are equal are left out and counted.
        knowledge_base: holds every candidate.
        settings: how to train.
        out: the stage's folder.
        base_spec: name of the SFT model. Where that is the folder of an adapter, `vlm` is the adapter's base: with LoRA the
            adapter is trained on, so that one adapter is the result; for full fine-tuning it is merged first. Otherwise `vlm`
            itself is the SFT model.
        seed: seed of row order, adapter, dropout and partners.
        rehearsed: instruction questions to keep up beside the pairs; wanted where `settings.rehearsal_weight` is set, see
            `partners`.
        fresh: throw earlier work in `out` away first.
        progress: is told the optimiser steps done and their total.

    Returns:
        as `dcr2ad.training.sft.train_sft`; ``chosen_log_ratio``, the mean of ``log_ratio_chosen`` over the last tenth, and
        ``rehearsal_losses``, those of the first and the last tenth where questions are rehearsed (see `displaced`); ``routing``
        before and after, where it was measured.

    Raises:
        InputError: no pair is left, a row exceeds the model's positions (names them), `vlm` is not what `base_spec` calls for,
            a pair lacks the response that Equation (4) needs, the dev set shows no photograph that can be routed, or there is
            nothing to rehearse.
        RunError: the folder holds work made from other settings, inputs or another starting model.
        ModelError: the loss stopped being a number, or the adapter does not fit.
    """
    kept = [pair for pair in pairs if rejected_trajectory(pair, settings.rejected) != pair.chosen]
    if not kept:
        raise InputError(f"none of {len(pairs)} pairs has two different responses", "Run `dcr2ad synthesize` first")
    beside = partners(kept, rehearsed, seed) if settings.rehearsal_weight else []
    dev = RoutingDev.open(settings, knowledge_base, Path(out))
    start = start_from(vlm, base_spec)
    work = StageWork(
        stage="krdpo",
        settings=settings,
        out=Path(out),
        inputs={
            "pairs": digest_records(kept),
            "knowledge": knowledge_base.digest,
            **start.digests,
            **({"rehearsed": digest_records(beside)} if beside else {}),
            **({"routing_dev": dev.digest} if dev else {}),
        },
        base=start.base,
        seed=seed,
        fresh=fresh,
        adapter=start.adapter,
        train_images=lambda: train_images([*(pair.question for pair in kept), *beside], start.trained),
        dropped=dict(Counter(["chosen and rejected are equal"] * (len(pairs) - len(kept)))),
    )
    task = _Krdpo(vlm, kept, knowledge_base, settings, Path(out) / REFERENCE, digest_json(start.digests), beside, dev)
    return run_stage(vlm, task, work, progress)


def partners(pairs: Sequence[PreferencePair], questions: Sequence[Question], seed: int) -> list[Question]:
    """The question rehearsed beside each pair: drawn by lot from those with a response that no pair is made of.

    Sub-tasks take turns, so that those with few questions are kept up as well; within one, each question is used once before
    one is used again. A pair keeps its partner in every epoch.

    Raises:
        InputError: no such question.
    """
    asked = {pair.question.id for pair in pairs}
    pool = [question for question in questions if question.response is not None and question.id not in asked]
    if not pool:
        what = f"krdpo.rehearsal_weight is set, and none of {len(questions)} questions can be rehearsed"
        raise InputError(what, "Give instruction data with responses (--rehearse), or set the weight to 0")
    random.Random(f"{seed}/rehearsed").shuffle(pool)
    subtasks = [[question for question in pool if question.subtask == name] for name in sorted({q.subtask for q in pool})]
    turns = (divmod(number, len(subtasks)) for number in range(len(pairs)))
    return [subtasks[which][turn % len(subtasks[which])] for turn, which in turns]


def displaced(summary: Mapping[str, Any]) -> str:
    """What to say of a training that made less likely what should be written; empty of one that did not.

    A preference is learnt by the difference alone: both responses may become unlikely, and then what the model writes breaks
    (likelihood displacement). Its gradient may also outweigh the terms that hold the rest. Not in the paper.

    Args:
        summary: as `train_krdpo` returns it, or as a version before wrote it.
    """
    told = []
    ratio = summary.get("chosen_log_ratio", 0.0)
    if ratio < DISPLACED:
        what = f"the right responses have become less likely too (log-ratio {ratio:.2f} a token): what is written may break"
        told.append(f"{what}. Lower krdpo.learning_rate or max_steps, or set krdpo.sft_weight")
    first, last = summary.get("rehearsal_losses", (0.0, 0.0))
    if last > DRIFTED * first:
        what = f"the rehearsed questions have become less likely ({first:.2f} to {last:.2f} nats a token)"
        told.append(f"{what}: the preference outweighs them. Raise krdpo.rehearsal_weight and krdpo.sft_weight")
    return "; ".join(told)


@dataclass
class _Krdpo:
    """Rows and loss of Equation (5), or (4); a `Task`."""

    vlm: VisionLanguageModel
    pairs: Sequence[PreferencePair]
    knowledge_base: KnowledgeBase
    settings: KrdpoSettings
    reference_file: Path
    digest: str
    beside: Sequence[Question] = ()
    dev: RoutingDev | None = None
    reference: list[ReferenceScores] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pairs)

    def groups(self) -> tuple[tuple[int, ...], ...]:
        return group_by_image([pair.question for pair in self.pairs])

    def row(self, number: int) -> TrainingRow:
        settings = self.settings
        return pair_row(self.vlm, self.pairs[number], self.knowledge_base, settings.rejected, scored=settings.tokens)

    def rehearsed(self, number: int) -> TrainingRow:
        return sft_row(self.vlm, self.beside[number], self.knowledge_base)

    def begin(self, session: Session) -> None:
        check_lengths(self.vlm, len(self), self.row)
        check_lengths(self.vlm, len(self.beside), self.rehearsed)
        self.reference = self._score_reference(session)
        if self.dev is not None:
            self.dev.measure(session, 0)

    def after(self, session: Session, step: int, total: int) -> dict[str, float]:
        return self.dev.measure(session, step).line() if self.dev is not None and self.dev.is_due(step, total) else {}

    def summary(self) -> dict[str, Any]:
        lines = read_log(self.reference_file.parent)
        kept_up = {"rehearsal_losses": list(ends(lines, "rehearsal_loss"))} if self.beside else {}
        _, ratio = ends(lines, "log_ratio_chosen")
        return {"chosen_log_ratio": ratio, **kept_up, **(self.dev.summary() if self.dev is not None else {})}

    def losses(self, session: Session, rows: Sequence[int]) -> Outcome:
        built = [self.row(number) for number in rows]
        beside = [self.rehearsed(number) for number in rows] if self.beside else []
        every = session.logprobs([*built, *beside])
        logprobs, kept_up = every[: len(built)], every[len(built) :]
        chosen, rejected = _sums(built, logprobs, CHOSEN), _sums(built, logprobs, REJECTED)
        found = krdpo_loss(
            chosen,
            rejected,
            chosen.new_tensor([self.reference[number].chosen for number in rows]),
            rejected.new_tensor([self.reference[number].rejected for number in rows]),
            beta=self.settings.beta,
            path_weight=self.settings.path_weight,
            reasoning_weight=self.settings.reasoning_weight,
            stepwise=self.settings.reasoning == "stepwise",
        )
        losses, metrics = found.losses, _metrics(found, built)
        terms = (("sft_loss", self.settings.sft_weight, logprobs), ("rehearsal_loss", self.settings.rehearsal_weight, kept_up))
        for name, weight, scored in terms:
            if weight:
                supervised = sft_loss([responses[0] for responses in scored])
                metrics[name] = supervised.detach()
                losses = losses + weight * supervised
        return Outcome(losses, metrics, sum(row.tokens for row in [*built, *beside]))

    def _score_reference(self, session: Session) -> list[ReferenceScores]:
        """Scores of every pair under the starting policy: those on disk, and the rest computed and appended."""
        from accelerate.utils import broadcast_object_list, gather_object

        accelerator = session.accelerator
        writer = RecordWriter(self.reference_file) if accelerator.is_main_process else None
        found = [self._stored() if writer else None]
        scores: list[ReferenceScores] = broadcast_object_list(found)[0] or []
        size = self.settings.batch_size
        for first in range(len(scores), len(self), size * accelerator.num_processes):
            mine = first + size * accelerator.process_index
            numbers = range(mine, min(mine + size, len(self)))
            # A process without pairs scores one for nothing: a divided model wants all processes in each forward.
            new = gather_object(self._score(session, numbers or [first])[: len(numbers)])
            scores += new
            if writer:
                writer.write(*new)
        if writer:
            writer.close()
        return scores

    def _stored(self) -> list[ReferenceScores]:
        stored = list(read_records(self.reference_file, ReferenceScores))
        for line, pair in zip(stored, self.pairs, strict=False):
            if line.model != self.digest or line.id != pair.id:
                what = f"{self.reference_file} holds scores of another model or other pairs (at {line.id!r})"
                raise RunError(what, "Use another folder, or --fresh to throw the old work away")
        return stored

    def _score(self, session: Session, numbers: Sequence[int]) -> list[ReferenceScores]:
        built = [self.row(number) for number in numbers]
        with torch.no_grad():
            logprobs = session.logprobs(built)
        pairs = zip(built, _sums(built, logprobs, CHOSEN).tolist(), _sums(built, logprobs, REJECTED).tolist(), strict=True)
        return [ReferenceScores(id=row.id, model=self.digest, chosen=won, rejected=lost) for row, won, lost in pairs]


def _sums(rows: Sequence[TrainingRow], logprobs: Sequence[Sequence[torch.Tensor]], which: slice) -> torch.Tensor:
    """Segment log-probabilities of y_w or y_l of each row, shape ``(B, 3)``."""
    return torch.stack([_row_sums(row, values, which) for row, values in zip(rows, logprobs, strict=True)])


def _row_sums(row: TrainingRow, logprobs: Sequence[torch.Tensor], which: slice) -> torch.Tensor:
    scored = torch.cat(list(logprobs[which]))
    segments = [segment for response in row.responses[which] for segment in response.segments]
    return segment_sums(scored, torch.tensor(segments, device=scored.device))


def _scored(responses: Sequence[ResponseTokens]) -> int:
    return sum(segment != UNSCORED for response in responses for segment in response.segments)


def _metrics(found: PreferenceLoss, rows: Sequence[TrainingRow]) -> dict[str, torch.Tensor]:
    device = found.losses.device
    scored = [[_scored(row.responses[which]) for which in (CHOSEN, REJECTED)] for row in rows]
    lengths = torch.tensor(scored, device=device).clamp(min=1)
    metrics = {
        "reward_chosen": found.chosen_rewards,
        "reward_rejected": found.rejected_rewards,
        "margin": found.margins,
        "accuracy": (found.margins > 0).float(),
        "log_ratio_chosen": found.chosen_ratios.sum(-1) / lengths[:, 0],
        "log_ratio_rejected": found.rejected_ratios.sum(-1) / lengths[:, 1],
    }
    for number, name in enumerate(SEGMENTS):
        absent = [not any(number in response.segments for response in row.responses) for row in rows]
        margins = found.segment_margins[:, number].masked_fill(torch.tensor(absent, device=device), torch.nan)
        metrics[f"margin_{name}"] = margins
        metrics[f"accuracy_{name}"] = torch.where(margins.isnan(), margins, (margins > 0).float())
    return metrics
