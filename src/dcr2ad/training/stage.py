"""A training stage around its loop: folder, manifest, several processes, the model written at the end.

Reads what a stage trains on as a `Task`; returns the stage's summary. Skips finished work, continues broken-off work, refuses a
folder made from something else. Knows nothing about questions, pairs or equations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dcr2ad.artifacts import StageFolder
from dcr2ad.config import TrainSettings
from dcr2ad.images import content_digest
from dcr2ad.leaks import hash_file
from dcr2ad.models.adapters import TrainedModel
from dcr2ad.models.placement import computing_device
from dcr2ad.models.shipped import adapter_digest
from dcr2ad.models.vlm import VisionLanguageModel
from dcr2ad.training.checkpoints import Checkpoints
from dcr2ad.training.launch import check_launch, open_accelerator
from dcr2ad.training.spread import Spread
from dcr2ad.training.trainer import Progress, Task, train
from dcr2ad.training.weights import compute_dtype, load_trainable, save_trained
from dcr2ad.types import Question

MODEL = "model"
"""Name of the trained model's folder in a stage's folder."""


@dataclass(frozen=True)
class StageWork:
    """What one training stage is about.

    Attributes:
        stage: ``sft`` or ``krdpo``.
        settings: its settings.
        out: its folder.
        inputs: digest of each input; ``model`` is the model's as given.
        base: name of the model an adapter is to be loaded onto.
        seed: seed.
        fresh: whether earlier work in the folder is thrown away.
        adapter: adapter to go on with.
        train_images: record of every query image trained on, see `train_images`.
        dropped: rows left out, by reason.
    """

    stage: str
    settings: TrainSettings
    out: Path
    inputs: dict[str, str]
    base: str
    seed: int
    fresh: bool
    adapter: Path | None
    train_images: Callable[[], dict[str, Any]]
    dropped: dict[str, int]


def run_stage(vlm: VisionLanguageModel, task: Task, work: StageWork, progress: Progress | None) -> dict[str, Any]:
    """Train, write the model, and say so in the manifest; at once when the manifest already does.

    Raises:
        RunError: the folder holds work made from other settings or inputs.
        ModelError: the launcher asks for what `check_launch` refuses.
    """
    from accelerate.utils import broadcast_object_list

    spread = check_launch(work.settings)
    accelerator = open_accelerator(cpu=vlm.device.type == "cpu" and (spread is Spread or computing_device() == "cpu"))
    spread = spread if accelerator.num_processes > 1 else Spread
    folder = StageFolder(
        work.out,
        stage=work.stage,
        config={**work.settings.model_dump(mode="json"), "base": work.base, "processes": accelerator.num_processes},
        inputs=work.inputs,
        seed=work.seed,
        fresh=work.fresh,
    )
    if not accelerator.is_main_process:
        finished = broadcast_object_list([None])[0]
        return finished or _train(vlm, task, work, accelerator, progress, spread)
    with folder:
        finished = folder.manifest.summary if folder.done else None
        broadcast_object_list([finished])
        if finished is not None:
            return finished
        summary = _train(vlm, task, work, accelerator, progress, spread)
        folder.finish(summary)
        Checkpoints(work.out).clear()
        return summary


def train_images(questions: Iterable[Question], before: TrainedModel | None = None) -> dict[str, Any]:
    """Record of every query image, so that a leak can be told later (`dcr2ad.leaks.find_overlap`).

    Args:
        questions: what is trained on.
        before: the trained model this training goes on from, whose images count too.

    Returns:
        ``train_images``: content digest -> name (the path's last three parts); ``train_hashes``: content digest -> perceptual
        hash; ``data``: name of a data set -> number of its images; ``objects``: ``dataset/object`` -> number of its images.
    """
    asked = list(questions)
    samples = {question.sample.image: question.sample for question in asked}.values()
    counts = dict(Counter(sample.dataset for sample in samples))
    objects = dict(Counter(f"{sample.dataset}/{sample.object}" for sample in samples))
    paths = {content_digest(path): path for path in dict.fromkeys(question.sample.image for question in asked)}
    names = {digest: "/".join(Path(path).parts[-3:]) for digest, path in paths.items()}
    looks = {digest: hash_file(path) for digest, path in paths.items()}
    if before is not None:
        names, looks = {**before.train_images, **names}, {**before.train_hashes, **looks}
        counts, objects = _most(before.data, counts), _most(before.objects or before.data, objects)
    return {"train_images": names, "train_hashes": looks, "data": counts, "objects": objects}


def _most(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    """The larger count of each name."""
    return {name: max(one.get(name, 0), other.get(name, 0)) for name in (*one, *other)}


def _train(
    vlm: VisionLanguageModel,
    task: Task,
    work: StageWork,
    accelerator: Any,
    progress: Progress | None,
    how: type[Spread],
) -> dict[str, Any]:
    dtype = vlm.model.dtype
    about = {
        "base": work.base,
        "base_digest": work.inputs["model"],
        "base_adapter": adapter_digest(work.base),
        "start": work.inputs.get("adapter", ""),
        "stage": work.stage,
        "seed": work.seed,
        "recipe": work.settings.model_dump(mode="json"),
        **work.train_images(),
    }
    autocast = compute_dtype(vlm, work.settings) == torch.bfloat16
    load_trainable(vlm, work.settings, work.adapter, seed=work.seed)
    trainable = sum(value.numel() for value in vlm.model.parameters() if value.requires_grad)
    spread = how(vlm.model, accelerator, work.settings, autocast=autocast)
    try:
        summary = train(
            vlm,
            task,
            work.settings,
            work.out,
            spread=spread,
            autocast=autocast,
            seed=work.seed,
            progress=progress if progress is not None and accelerator.is_main_process else _silent,
        )
        state = spread.whole_state(vlm.model, dtype, keep=accelerator.is_main_process)
    finally:
        spread.close()
    if accelerator.is_main_process:
        save_trained(vlm, work.out / MODEL, about, dtype=dtype, state=state)
    accelerator.wait_for_everyone()
    return {**summary, "dropped": work.dropped, "trained_parameters": trainable}


def _silent(done: int, total: int) -> None:
    """Progress nobody listens to."""
