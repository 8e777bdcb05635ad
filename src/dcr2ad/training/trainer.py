"""The training loop that SFT and KR-DPO share.

Reads a model, settings and a `Task` (rows and their loss); writes log.jsonl and checkpoints under a folder and returns
a summary. AdamW, warm-up and cosine restarts, gradient accumulation, clipping (Section 4.3). Knows nothing about questions,
pairs or equations.

Built on accelerate, which does devices, mixed precision and several processes, and not on `transformers.Trainer`: its
checkpoints are not written in one step and hold the whole model, its log is rewritten from memory, and a pair laid out as a
tree needs none of its collating. The loop that remains is short, and each step is a function of (seed, step) and the weights:
the order of rows, the rate and the random state are derived, never stored. So a run resumed from a checkpoint goes on bitwise
as the unbroken run would (same device type, threads and number of processes).
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from dcr2ad.config import TrainSettings
from dcr2ad.errors import ModelError
from dcr2ad.models.vlm import VisionLanguageModel
from dcr2ad.training.batches import TrainingRow, completion_logprobs
from dcr2ad.training.checkpoints import Checkpoint, Checkpoints, StepLog, ends, read_log
from dcr2ad.training.outcome import Outcome, Tally
from dcr2ad.training.plan import Plan
from dcr2ad.training.schedule import warm_restarts
from dcr2ad.training.spread import Spread
from dcr2ad.training.weights import ImageInputs

Progress = Callable[[int, int], None]
"""Is told the optimiser steps done and their total."""


class Task(Protocol):
    """What is trained on."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Rows by the image they are about."""
        ...

    def begin(self, session: Session) -> None:
        """Do what must be done with the starting policy, before the first step and again when a run resumes."""
        ...

    def losses(self, session: Session, rows: Sequence[int]) -> Outcome:
        """Loss of some rows under the policy as it stands."""
        ...

    def after(self, session: Session, step: int, total: int) -> dict[str, float]:
        """What else the log gets once so many of all steps are made; must not change the steps to come."""
        ...

    def summary(self) -> dict[str, Any]:
        """What the summary gets beside `summarize`."""
        ...


@dataclass(frozen=True)
class Session:
    """A model made ready for training.

    Attributes:
        vlm: the model.
        model: what is called in place of `vlm.model`: the same behind accelerate's wrappers.
        accelerator: accelerate's `Accelerator`.
        images: what images enter as.
        autocast: whether products are computed in bfloat16: the frozen weights' type, while trained ones are float32.
        divided: whether the model is divided among the processes, so that all of them must make the same forwards.
    """

    vlm: VisionLanguageModel
    model: Any
    accelerator: Any
    images: ImageInputs
    autocast: bool
    divided: bool

    def logprobs(self, rows: Sequence[TrainingRow]) -> list[list[torch.Tensor]]:
        """Log-probabilities of every response token; see `completion_logprobs`."""
        with torch.autocast(self.vlm.device.type, torch.bfloat16, enabled=self.autocast):
            return completion_logprobs(self.vlm, rows, model=self.model, images=self.images)


def train(
    vlm: VisionLanguageModel,
    task: Task,
    settings: TrainSettings,
    out: Path,
    *,
    spread: Spread,
    autocast: bool,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Train to the end, from the newest checkpoint on where there is one.

    Args:
        vlm: model whose trainable parameters require gradients (`load_trainable`); trained in place.
        task: rows and loss.
        settings: optimiser, schedule and steps.
        out: the stage's folder.
        spread: the model on its processes; it stays so.
        autocast: whether products are computed in bfloat16.
        seed: seed of row order and dropout.
        progress: is told each step.

    Returns:
        see `summarize`; and the task's own.

    Raises:
        ModelError: the loss or the gradient stopped being a number.
    """
    if settings.gradient_checkpointing:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # its new name is unknown to the older releases we support
            vlm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    accelerator = spread.accelerator
    run = _Run(vlm, task, settings, seed, spread, autocast=autocast)
    run.session.model.eval()
    task.begin(run.session)
    run.session.model.train()
    checkpoints = Checkpoints(out)
    start = run.resume(checkpoints.load(spread.reads_to))
    log = StepLog(out, start) if accelerator.is_main_process else None
    progress(start, run.plan.total)
    for step in range(start, run.plan.total):
        line = run.step(step) | task.after(run.session, step + 1, run.plan.total)
        if log is not None:
            log.write(line)
        if (step + 1) % settings.save_steps == 0:
            weights, state = spread.state(keep=log is not None)
            if log is not None:
                log.sync()
                checkpoints.save(Checkpoint(step + 1, weights, state))
        progress(step + 1, run.plan.total)
    if log is not None:
        log.close()
    accelerator.wait_for_everyone()
    vlm.model.eval()
    vlm.forget_features()
    return {**summarize(out, rows=len(task)), **task.summary()}


def summarize(out: Path, *, rows: int) -> dict[str, Any]:
    """What a log says of a whole run, over all its sessions.

    Returns:
        ``steps``, ``rows``, ``first_loss`` and ``last_loss`` (means over the first and last tenth of the steps), ``tokens``,
        and ``seconds`` spent in steps.
    """
    lines = read_log(out)
    first, last = ends(lines, "loss")
    return {
        "steps": len(lines),
        "rows": rows,
        "first_loss": first,
        "last_loss": last,
        "tokens": int(sum(line["tokens"] for line in lines)),
        "seconds": round(sum(line["seconds"] for line in lines), 1),
    }


class _Run:
    """One session of a run: model, optimiser and schedule, and how a step is made."""

    def __init__(
        self,
        vlm: VisionLanguageModel,
        task: Task,
        settings: TrainSettings,
        seed: int,
        spread: Spread,
        *,
        autocast: bool,
    ) -> None:
        self.task = task
        self.settings = settings
        groups = task.groups() if settings.group_images else ()
        self.plan = Plan(len(task), settings, spread.accelerator.num_processes, seed, groups)
        self.spread = spread
        self.session = Session(vlm, spread.called, spread.accelerator, spread.images, autocast, spread.divided)

    def resume(self, found: Checkpoint | None) -> int:
        """Bring weights, optimiser and schedule to a checkpoint; returns the steps made."""
        start = 0
        if found is not None:
            if set(found.weights) != set(self.spread.trained):
                raise ModelError("the checkpoint holds other parameters than this model trains", "Use --fresh to begin again")
            self.spread.load(found.weights, found.optimizer)
            start = found.step
        self._schedule = warm_restarts(
            self.spread.optimizer,
            self.plan.total,
            warmup_ratio=self.settings.warmup_ratio,
            t_0=self.settings.t_0,
            t_mult=self.settings.t_mult,
            start=start,
        )
        return start

    def step(self, step: int) -> dict[str, float]:
        """Make one optimiser step; returns its line of the log."""
        began = time.perf_counter()
        accelerator = self.session.accelerator
        self._seed(step)
        shares = self.plan.shares(step, accelerator.process_index)
        tally = Tally()
        for number, share in enumerate(shares):
            with self.spread.forward(last=number == len(shares) - 1):
                outcome = self.task.losses(self.session, [row for row, _ in share])
                weights = outcome.losses.new_tensor([weight for _, weight in share])
                # Gradients are averaged over processes, but the weights sum to one over all of them.
                self.spread.backward((outcome.losses * weights).sum() * self.plan.processes)
            tally.add(outcome, weights)
        rate = float(self.spread.optimizer.param_groups[0]["lr"])
        norm = self.spread.update(self.settings.max_grad_norm)
        means = tally.means(accelerator)
        if not math.isfinite(means["loss"]) or not math.isfinite(norm):
            what = f"at step {step + 1} the loss is {means['loss']} and the gradient's norm {norm}"
            raise ModelError(what, "Lower the learning rate; the last checkpoint is intact")
        self._schedule.step()
        line = {"step": step + 1, "loss": means.pop("loss"), "learning_rate": rate, "grad_norm": norm}
        line["tokens"] = int(means.pop("tokens"))
        return {**line, "seconds": round(time.perf_counter() - began, 4), **means}

    def _seed(self, step: int) -> None:
        """Random state as a function of the step, so that none has to be kept."""
        numbers = [self.plan.seed, step, self.session.accelerator.process_index]
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))
