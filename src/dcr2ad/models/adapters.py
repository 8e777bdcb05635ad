"""Folders of trained models: what they say of themselves, and how an adapter goes onto its base.

Reads ``dcr2ad.json`` beside a peft adapter or a whole transformers model; returns records and models. Knows nothing about
training (`dcr2ad.training.weights` writes these folders). LoRA is the paper's way for 72B (Section 4.3).
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from dcr2ad.artifacts import write_text
from dcr2ad.errors import ModelError
from dcr2ad.types import Record, RouteMode, RoutingCalibration

if TYPE_CHECKING:
    import torch

MARKER = "dcr2ad.json"
"""File that makes a folder a trained model."""
PROJECTORS = ("multi_modal_projector", "visual.merger", "connector")
"""Names of the module that carries image features into the language model; an adapter holds it whole."""


_PLAIN = {
    *("peft_type", "bias", "r", "lora_alpha", "target_modules", "modules_to_save"),  # what `_merge_plain` reads
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"),  # no arithmetic
    *("init_lora_weights", "lora_dropout", "megatron_core", "qalora_group_size"),  # none in an adapter that is only merged
}
"""Settings of an adapter that may have a value; any other one makes it more than plain LoRA."""


class TrainedModel(Record):
    """What a folder that a training stage wrote holds; kept as `dcr2ad.json`."""

    format: Literal[1] = 1
    """Version of this file."""
    base: str
    """Model the training began with; an adapter is loaded onto it."""
    kind: Literal["adapter", "full"]
    """``adapter``: a peft adapter with the projector; ``full``: a whole transformers model."""
    stage: str
    """``sft`` or ``krdpo``."""
    seed: int
    """Seed of the run."""
    recipe: dict[str, Any]
    """Settings of the stage."""
    digest: str
    """SHA-256 of the weights file (of their digests, where there are several)."""
    base_digest: str
    """`model_digest` of the model as it was given to training, an earlier adapter not counted."""
    base_adapter: str = ""
    """Digest of the package's adapter that `base` names, which another release may carry otherwise; empty for another base."""
    start: str = ""
    """Digest of the trained model whose adapter the training went on with; empty where it began one of its own."""
    train_images: dict[str, str]
    """Content SHA-256 of every query image trained on -> its path's last parts; an evaluation can see what it must not ask."""
    train_hashes: dict[str, str] = Field(default_factory=dict)
    """Content SHA-256 of each of them -> its perceptual hash (`dcr2ad.leaks`), which a resized or re-encoded copy shares."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Package versions it was trained with."""
    data: dict[str, int] = Field(default_factory=dict)
    """What it was trained on: name of a data set -> number of its images."""
    objects: dict[str, int] = Field(default_factory=dict)
    """What it was trained on: ``dataset/object`` -> number of its images; empty for a model recorded without."""
    licence: str = ""
    """What the licences of that data allow, in words; empty where nobody said."""
    extracted: dict[str, float] = Field(default_factory=dict)
    """Of a full fine-tuning made an adapter: largest rank, share of the weight change kept, relative error it leaves."""
    part: float = 1.0
    """How far it lies from the model that training went on from to the trained one (`dcr2ad.training.packing`)."""
    routing: dict[RouteMode, RoutingCalibration] = Field(default_factory=dict)
    """Temperature and threshold fitted for each route mode (`dcr2ad evaluate --what routing --calibrate`)."""


def read_trained(folder: str | Path) -> TrainedModel:
    """What a trained folder says of itself.

    Raises:
        ModelError: it is no such folder.
    """
    path = Path(folder) / MARKER
    try:
        return TrainedModel.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError:
        raise ModelError(f"{folder} is no trained model (no {MARKER})", "Name the model folder of a training stage") from None
    except ValidationError as error:
        raise ModelError(f"{path} cannot be read ({error.errors()[0]['msg']})", "Train again, or use another folder") from None


def store_calibration(folder: str | Path, routing: dict[RouteMode, RoutingCalibration]) -> Path:
    """Store fitted routing calibrations in a trained model's `dcr2ad.json`; modes not given keep theirs.

    Raises:
        ModelError: the folder is no trained model, or cannot be written to.
    """
    trained = read_trained(folder)
    path = Path(folder) / MARKER
    changed = trained.model_copy(update={"routing": {**trained.routing, **routing}})
    try:
        write_text(path, json.dumps(changed.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ModelError(f"{path} cannot be written ({error.strerror})", "Use a folder of your own") from None
    return path


def adapter_of(spec: str) -> TrainedModel | None:
    """What a model's name means, where it is the folder of a trained adapter; None for any other model."""
    if not (Path(spec) / MARKER).is_file():
        return None
    trained = read_trained(spec)
    return trained if trained.kind == "adapter" else None


def merge_for_inference(model: Any, folder: str | Path, *, kept_in: torch.dtype | None = None) -> Any:
    """The model with an adapter merged into its weights; ready for inference, no peft left in it.

    Args:
        model: the adapter's base model; changed in place.
        folder: folder of a trained adapter.
        kept_in: the type that the caller will turn the model to, so that each weight is rounded to it while it is at hand;
            sums are taken in the type the weights have, and what is not changed, or changed by peft, keeps that type.

    Raises:
        ModelError: no adapter there, or it does not fit the model.
    """
    folder = Path(folder)
    if not _merge_plain(model, folder, kept_in):
        model = with_adapter(model, folder, trainable=False).merge_and_unload()
    return model.eval().requires_grad_(False)


def _merge_plain(model: Any, folder: Path, kept_in: torch.dtype | None) -> bool:
    """Add a plain LoRA adapter to the weights as peft does, bit for bit; False, and nothing changed, where it is anything else.

    peft's import and wrapping of every layer would be half of the time until a small model is loaded. What is not plain, does
    not fit or cannot be read is left to peft.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        aimed = config.get("target_modules")
        is_lora = config.get("peft_type") == "LORA" and config.get("bias") == "none"
        if not is_lora or not isinstance(aimed, str) or any(value for key, value in config.items() if key not in _PLAIN):
            return False
        stored = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError):
        return False
    state = {name.removeprefix("base_model.model."): value for name, value in stored.items()}
    parameters = dict(model.named_parameters())
    modules = model.named_modules()
    layers = [name for name, module in modules if isinstance(module, torch.nn.Linear) and re.fullmatch(aimed, name)]
    kept = [name for name in parameters if lies_in(name, config.get("modules_to_save") or ())]
    factors = {f"{layer}.lora_{factor}.weight" for layer in layers for factor in "AB"}
    if set(state) != factors | set(kept) or not all(lies_in(name, PROJECTORS) for name in kept):
        return False
    with torch.no_grad():
        for layer in layers:
            up, down = (state[f"{layer}.lora_{factor}.weight"].float() for factor in "BA")
            weight = parameters[f"{layer}.weight"]
            change = (up @ down).mul_(config["lora_alpha"] / config["r"]).to(weight)
            if kept_in is None:
                weight += change
            else:  # not in place, where each page of the file that the weights are mapped from would first be copied
                weight.data = change.add_(weight).to(kept_in)
        for name in kept:
            parameters[name].copy_(state[name])
    return True


def lies_in(name: str, parts: Iterable[str]) -> bool:
    """Whether a parameter or module lies inside one of these modules, by names that may hold dots."""
    return any(f".{part}." in f".{name}" for part in parts)


def enclosing(name: str, parts: Iterable[str]) -> str:
    """Name of the one of these modules that a parameter or module lies in, or is; empty for none.

    >>> [enclosing(name, PROJECTORS) for name in ("model.visual.merger.mlp.0", "model.connector", "lm_head")]
    ['model.visual.merger', 'model.connector', '']
    """
    for part in parts:
        before, found, _ = f".{name}.".partition(f".{part}.")
        if found:
            return f"{before}.{part}".removeprefix(".")
    return ""


def with_adapter(model: Any, folder: Path, *, trainable: bool) -> Any:
    """The model as a peft model with an adapter loaded; every stored name must have its place, and the other way round.

    Raises:
        ModelError: no adapter there, or it does not fit the model.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    file = folder / "adapter_model.safetensors"
    try:
        with safe_open(file, framework="pt") as stored:
            names = set(stored.keys())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # missing names are checked below, and are an error
            loaded = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ModelError(f"the adapter in {folder} cannot be loaded ({reason})", "Load it onto the base it names") from None
    if names != set(get_peft_model_state_dict(loaded, save_embedding_layers=False)):
        raise ModelError(f"the adapter in {folder} does not fit {type(model).__name__}", "Load it onto the base it names")
    return loaded
