"""An evaluation spread over several workers by Ray Data: shards of neighbouring images, merged to one process's result.

Reads what `evaluate` reads; each worker opens the model once and asks shards, the folders are joined at the end. Questions go
to the workers by a file, so that none holds more of them than it is asking. A thin layer: how a shard is asked, continued and
merged is `dcr2ad.stages.evaluate`'s. Needs the extra ``ray``. Not in the paper.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dcr2ad.artifacts import write_records
from dcr2ad.errors import Dcr2adError, InputError, RunError
from dcr2ad.expert import KEPT_IN_ORDER, Expert
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.base import ChatModel, open_model
from dcr2ad.models.hf import resolve
from dcr2ad.models.shipped import is_nano
from dcr2ad.prompts import Wording
from dcr2ad.record_file import RecordFile
from dcr2ad.stages.evaluate import evaluate, merge
from dcr2ad.stages.kept_findings import KeptFindings
from dcr2ad.types import EvalProtocol, EvalReport, Question

SHARDS_A_WORKER = 4
"""Shards for each worker, so that one with slow images holds nobody up for long."""
SHARDS = "shards"
"""Folder of the shards within the evaluation's."""
QUESTIONS = "questions.jsonl"
"""File of all questions in the folder of the shards."""


class Work(NamedTuple):
    """What every worker is given."""

    spec: str
    """Name of the model; opened in the worker."""
    knowledge: KnowledgeBase
    """K."""
    protocol: EvalProtocol
    """What is measured."""
    wording: Wording
    """Fixed texts of the prompts."""
    expert: bool
    """Whether findings must be computed."""
    leaks: dict[str, Any]
    """For the report."""
    notes: Sequence[str]
    """For the report."""
    out: Path
    """Folder of the whole evaluation; all workers must reach it."""
    shards: int
    """Number of shards."""


def evaluate_on_workers(
    questions: Sequence[Question],
    work: Work,
    workers: int,
    *,
    fresh: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> EvalReport:
    """Ask every question on several workers; the report is that of one process.

    A running cluster is used where the environment names one (``RAY_ADDRESS``), else one is started on this machine. A worker
    takes one GPU where there are any. What was asked stays: the same call continues.

    Args:
        questions: the whole benchmark.
        work: how it is asked; `shards` is at least `workers`.
        workers: how many workers.
        fresh: throw earlier predictions away.
        progress: called with shards done and shards in all.

    Raises:
        InputError: Ray is not installed, or there are fewer images than shards.
        RunError: a shard failed; says why.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise InputError("several workers need Ray, which is not installed", 'pip install "dcr2ad[ray]"') from None
    images = len({question.sample.image for question in questions})
    if images < work.shards:
        raise InputError(f"{images} images cannot be parted among {work.shards} shards", "Use fewer workers")
    if is_nano(work.spec):
        resolve(work.spec)  # built here once, not by every worker
    write_records(work.out / SHARDS / QUESTIONS, questions)
    began = not ray.is_initialized()
    if began:
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        rows = ray.data.from_items([{"shard": number} for number in range(1, work.shards + 1)], override_num_blocks=work.shards)
        asked = rows.map(
            Worker,
            fn_constructor_args=(work, fresh, str(Path.cwd())),
            num_gpus=gpus,
            compute=ray.data.ActorPoolStrategy(size=workers),
        )
        for done, row in enumerate(asked.iter_rows(), 1):
            if row["error"]:
                raise RunError(f"shard {row['shard']}/{work.shards}: {row['error']}", "Run the command again; it continues")
            if progress is not None:
                progress(done, work.shards)
    finally:
        if began:
            ray.shutdown()
    return merge([_shard(work.out, number) for number in range(1, work.shards + 1)], work.out, fresh=fresh)


def shards_for(workers: int, images: int) -> int:
    """Shards that so many images are parted into."""
    return max(1, min(SHARDS_A_WORKER * workers, images))


class Worker:
    """One worker: the model, opened once, and the shards it is given.

    Args:
        work: how the questions are asked.
        fresh: throw earlier predictions away.
        folder: where the command was given; paths of photographs may be relative to it.
    """

    def __init__(self, work: Work, fresh: bool, folder: str) -> None:
        os.chdir(folder)
        self._work = work
        self._fresh = fresh
        self._model: ChatModel | None = None
        self._problem = ""
        try:
            self._questions = RecordFile(work.out / SHARDS / QUESTIONS, Question)
            self._expert = KeptFindings(Expert(keep=KEPT_IN_ORDER)) if work.expert else None
            self._model = open_model(work.spec, precision=work.protocol.precision)
        except Dcr2adError as error:  # told with the shard: what a constructor raises reaches nobody as one line
            self._problem = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Ask one shard, ``{"shard": number}``; an ``error`` is one line, empty where all went well."""
        work, number = self._work, int(row["shard"])
        if self._model is None:
            return {"shard": number, "error": self._problem}
        try:
            evaluate(
                self._model,
                self._questions,
                work.knowledge,
                work.protocol,
                _shard(work.out, number),
                wording=work.wording,
                expert=self._expert,
                shard=(number, work.shards),
                leaks=work.leaks,
                notes=work.notes,
                fresh=self._fresh,
            )
        except Dcr2adError as error:
            return {"shard": number, "error": str(error)}
        return {"shard": number, "error": ""}


def _shard(out: Path, number: int) -> Path:
    return out / SHARDS / f"{number:03d}"
