"""Verb `plan`: the memory a recipe's training needs, as tables."""

from __future__ import annotations

from pathlib import Path
from typing import cast, get_args

from dcr2ad import console
from dcr2ad.commands.common import say
from dcr2ad.config import TrainSettings, load_recipe
from dcr2ad.errors import UnknownNameError
from dcr2ad.training.memory import RESERVED, Counts, Machine, Need, RowShape, Sharding, fits, need, smaller

_GIB = 2**30
_PARTS = ("weights", "gradients", "optimizer", "copies", "activations", "logits", "reserved", "total")
_COUNTED = ("method", "lora_rank", "train_projector", "freeze_vision", "precision")
"""Settings that a model's counts depend on."""


def run_plan(recipe: Path, *, gpus: int, memory: float, sharding: str, model: str | None, row: dict[str, int]) -> bool:
    """Print what each training stage needs; returns whether all fit.

    Args:
        recipe: the recipe.
        gpus: GPUs.
        memory: GiB of each.
        sharding: one of `Sharding`.
        model: the model, where it is not the recipe's.
        row: ``text``, ``images``, ``image_tokens`` and ``response`` of `RowShape`.

    Raises:
        UnknownNameError: no such sharding.
        ModelError: no configuration for the model.
    """
    loaded = load_recipe(recipe)
    if sharding not in get_args(Sharding):
        raise UnknownNameError(f"no sharding {sharding!r}", f"Use {', '.join(get_args(Sharding))}")
    from dcr2ad.models.sizes import planned_config
    from dcr2ad.training.counting import count

    config = planned_config(model or loaded.model)
    stages: dict[str, TrainSettings] = {"sft": loaded.sft, "krdpo": loaded.krdpo}
    counts = {"sft": count(config, loaded.sft)}
    same = all(getattr(loaded.sft, name) == getattr(loaded.krdpo, name) for name in _COUNTED)
    counts["krdpo"] = counts["sft"] if same else count(config, loaded.krdpo)
    _print_counts(model or loaded.model, stages, counts)
    rows, advice = [], []
    for responses, (name, settings) in enumerate(stages.items(), 1):
        shape = RowShape(**row, responses=responses, batch=settings.batch_size)
        machine = Machine(gpus, int(memory * _GIB), cast(Sharding, sharding), settings.gradient_checkpointing)
        needed = need(counts[name], shape, machine)
        rows.append(_line(name, settings, shape, needed, machine))
        if not fits(needed, machine):
            changes = _changes(config, settings, counts[name], shape, machine)
            advice += [f"{name} would fit with: {change}" for change in changes]
    title = f"GiB a GPU, {gpus} x {memory:g} GiB, {sharding}"
    console.out.print(console.table(title, ("stage", "checkpointing", "tokens", *_PARTS, "fits"), rows))
    images = f"{row['images']} images of {row['image_tokens']} tokens"
    say(f"row: {row['text']} tokens of prompt, {images}, {row['response']} tokens a response; krdpo: [prefix|chosen|rejected]")
    say("weights, gradients and optimizer follow from the counts; the rest is estimated (docs/training.md). No second model.")
    say(f"copies: bfloat16 copies under autocast, and what is gathered at a time; reserved: {RESERVED / _GIB:g} GiB, assumed")
    for line in advice:
        say(line)
    if sharding == "zero3":
        say("not counted: what DeepSpeed keeps gathered, up to stage3_max_live_parameters, 1e9 elements by default")
    return not advice


def _print_counts(model: str, stages: dict[str, TrainSettings], counts: dict[str, Counts]) -> None:
    rows = [
        (
            name,
            stages[name].method + (f", rank {stages[name].lora_rank}" if found.lora else ""),
            f"{found.trained:,}",
            f"{found.frozen:,}",
            f"{found.trained + found.frozen:,}",
        )
        for name, found in counts.items()
    ]
    console.out.print(console.table(f"parameters of {model}", ("stage", "method", "trained", "frozen", "all"), rows))


def _line(name: str, settings: TrainSettings, shape: RowShape, needed: Need, machine: Machine) -> tuple[object, ...]:
    figures = [f"{getattr(needed, part) / _GIB:.1f}" for part in _PARTS]
    checkpointing = "yes" if settings.gradient_checkpointing else "no"
    return (name, checkpointing, shape.tokens, *figures, "yes" if fits(needed, machine) else "no")


def _changes(config: object, settings: TrainSettings, counts: Counts, shape: RowShape, machine: Machine) -> list[str]:
    """What to change so that a stage fits; LoRA where the stage trains the whole model."""
    from dcr2ad.training.counting import count

    found = [what for what, _ in smaller(counts, shape, machine)]
    if settings.method == "full":
        lora = count(config, settings.model_copy(update={"method": "lora"}))
        if fits(need(lora, shape, machine), machine):
            found.append('method = "lora"')
        else:
            found += [f'method = "lora" and {what}' for what, _ in smaller(lora, shape, machine)][:1]
    return found or ["a smaller model, or shorter rows (--image-tokens, --prompt-tokens)"]
