"""A model's counts without its weights: it is built on torch's meta device and made trainable as training would.

Reads a configuration and a stage's settings; returns `dcr2ad.training.memory.Counts`. Not in the paper.
"""

from __future__ import annotations

from typing import Any

import torch

from dcr2ad.config import TrainSettings
from dcr2ad.errors import ModelError
from dcr2ad.training.memory import FLOAT, Blocks, Counts
from dcr2ad.training.sharding import parts, undivided
from dcr2ad.training.weights import choose_trained, image_inputs, is_vision, set_types


def build_on_meta(config: Any) -> Any:
    """A model of this configuration, in bfloat16 as a GPU loads it, that takes no memory.

    Raises:
        ModelError: transformers has no vision-language model for it.
    """
    from transformers import AutoModelForImageTextToText

    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    except ValueError as error:
        raise ModelError(f"no vision-language model of type {config.model_type!r} ({error})", "Use Qwen2.5-VL") from None


def count(config: Any, settings: TrainSettings) -> Counts:
    """Counts of a model under a stage's method, as on a GPU.

    Raises:
        ModelError: the model cannot be built, or its parts are unknown.
    """
    compute = torch.float32 if settings.precision == "fp32" else torch.bfloat16
    model = choose_trained(build_on_meta(config), settings)
    set_types(model, settings, compute)
    return count_model(model, config, settings, compute)


def count_model(model: Any, config: Any, settings: TrainSettings, compute: torch.dtype) -> Counts:
    """Counts of a model whose trained parameters require gradients.

    Args:
        model: it, with or without weights.
        config: its configuration.
        settings: the stage's settings.
        compute: type that products are computed in.
    """
    parameters = dict(model.named_parameters())
    trained = [value for value in parameters.values() if value.requires_grad]
    frozen = [value for value in parameters.values() if not value.requires_grad]
    matrices = {
        value
        for module in model.modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d | torch.nn.Conv3d)
        for value in module.parameters(recurse=False)
        if value.requires_grad
    }
    text, vision = config.get_text_config(), config.vision_config
    whole = undivided(model, image_inputs(model))
    in_low = {value for part, low in parts(model) if low for value in part.parameters()}
    return Counts(
        trained=sum(value.numel() for value in trained),
        frozen=sum(value.numel() for value in frozen),
        frozen_bytes=sum(value.nbytes for value in frozen),
        products=sum(value.numel() for value in matrices),
        whole=sum(value.nbytes for value in whole),
        copied=sum(value.numel() for value in matrices - in_low),
        gathered=_largest_part(model, whole, compute),
        text=_text_blocks(text),
        vision=_vision_blocks(vision),
        patches=getattr(vision, "spatial_merge_size", 2) ** 2,
        vocabulary=text.vocab_size,
        lora=settings.method == "lora",
        trains_text=settings.method == "full",
        trains_vision=any(value.requires_grad and is_vision(name) for name, value in parameters.items()),
        compute=compute.itemsize,
    )


def _text_blocks(text: Any) -> Blocks:
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    queries, keys = head * text.num_attention_heads, head * text.num_key_value_heads
    return Blocks(text.num_hidden_layers, text.hidden_size, text.intermediate_size, queries, keys)


def _vision_blocks(vision: Any) -> Blocks:
    """Of Qwen's towers (``depth``, gated) or of the others' (``num_hidden_layers``)."""
    width = vision.hidden_size
    gated = hasattr(vision, "depth")
    return Blocks(vision.depth if gated else vision.num_hidden_layers, width, vision.intermediate_size, width, width, gated)


def _largest_part(model: Any, whole: set[torch.nn.Parameter], compute: torch.dtype) -> int:
    """Bytes that the largest part takes while it is gathered; what no other part holds is the last one."""
    found = [({*part.parameters()} - whole, low) for part, low in parts(model)]
    rest = {*model.parameters()} - whole - {value for values, _ in found for value in values}
    return max(_gathered(values, compute if low else torch.float32) for values, low in [*found, (rest, False)])


def _gathered(values: set[torch.nn.Parameter], kind: torch.dtype) -> int:
    total = 0
    for value in values:
        size = min(value.element_size(), kind.itemsize)
        total += value.numel() * (2 * size + (size + FLOAT if value.requires_grad else 0))
    return total
