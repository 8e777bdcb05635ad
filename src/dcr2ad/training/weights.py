"""What is trained of a model, and the folder a trained model is kept in.

Reads a `VisionLanguageModel` and settings; makes parameters trainable (all of them, or LoRA by peft), writes and reads
`FOLDER/dcr2ad.json` beside a peft adapter or a whole transformers model, and merges an adapter for inference. Knows nothing
about losses, data or stages. Full fine-tuning and LoRA are the paper's (Section 4.3); ranks and the projector's part are not
in it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from dcr2ad.artifacts import digest_file, digest_json, versions, write_text
from dcr2ad.config import TrainSettings
from dcr2ad.errors import InputError, ModelError
from dcr2ad.models.adapters import MARKER, TrainedModel, lies_in, merge_for_inference, with_adapter
from dcr2ad.models.placement import cpu_has_bfloat16
from dcr2ad.models.projected import PROJECTORS
from dcr2ad.models.vlm import VisionLanguageModel

FEATURE_BYTES = 512 * 1024 * 1024
"""Image features kept in training with a frozen tower: every epoch asks for all of them again."""
_VISION = ("visual", "vision_tower", "vision_model")
_LANGUAGE = "language_model"
_PROCESSOR_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
)


def load_trainable(
    vlm: VisionLanguageModel, settings: TrainSettings, adapter: str | Path | None = None, *, seed: int = 0
) -> None:
    """Make a model ready to be trained, in place.

    Trainable weights become float32, so that small steps are not lost in bfloat16; the rest keeps its type, or under LoRA takes
    that of `compute_dtype`, since only the adapter is written afterwards. Under LoRA
    `vlm.model` becomes a peft model: LoRA on every linear layer of the language model (of the vision tower too, unless frozen),
    and the projector trained whole beside it.

    Args:
        vlm: the base model, or a whole trained one.
        settings: method, ranks, and what stays frozen.
        adapter: adapter to go on with. Under LoRA it is the one that is trained on; for full fine-tuning it is merged first.
        seed: seed of a fresh adapter.

    Raises:
        ModelError: the adapter does not fit the model, or the model's parts are unknown.
        InputError: the adapter was made with other LoRA settings than these.
    """
    if settings.method == "full" and adapter is not None:
        vlm.model = merge_for_inference(vlm.model, adapter)
    if settings.method == "full" or adapter is None:
        vlm.model = choose_trained(vlm.model, settings, seed=seed)
    else:
        asked = _lora_config(vlm.model, settings)
        vlm.model = with_adapter(vlm.model, Path(adapter), trainable=True)
        _check_same(vlm.model.peft_config["default"], asked, adapter)
    set_types(vlm.model, settings, compute_dtype(vlm, settings))
    vlm.forget_features(keep=FEATURE_BYTES)


def choose_trained(model: Any, settings: TrainSettings, *, seed: int = 0) -> Any:
    """The model with the parameters requiring gradients that the settings train; a peft model with a fresh adapter under LoRA.

    Raises:
        ModelError: the model's parts are unknown.
    """
    if settings.method == "lora":
        return _fresh_adapter(model, settings, seed)
    _select(model, settings)
    return model


def set_types(model: Any, settings: TrainSettings, computed: torch.dtype) -> None:
    """Trained weights float32, frozen ones as `load_trainable` says; in place.

    Args:
        model: a model as `choose_trained` returns it.
        settings: method and precision.
        computed: type that products are computed in.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
        elif settings.method == "lora" and settings.precision is not None:
            parameter.data = parameter.data.to(computed)


def compute_dtype(vlm: VisionLanguageModel, settings: TrainSettings) -> torch.dtype:
    """Type that products are computed in: bfloat16 or float32; as the model was loaded where the settings leave it open."""
    if settings.precision is None:
        return torch.bfloat16 if vlm.model.dtype == torch.bfloat16 else torch.float32
    if settings.precision == "auto":
        able = vlm.device.type != "cpu" or vlm.model.dtype == torch.bfloat16 or cpu_has_bfloat16()
        return torch.bfloat16 if able else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[settings.precision]


def save_trained(
    vlm: VisionLanguageModel,
    folder: str | Path,
    about: dict[str, Any],
    *,
    dtype: torch.dtype,
    state: dict[str, torch.Tensor] | None = None,
) -> TrainedModel:
    """Write a trained model; the folder appears in one step.

    Args:
        vlm: the model as `load_trainable` left it, trained.
        folder: where; what stands there is replaced.
        about: ``base``, ``base_digest``, ``stage``, ``seed``, ``recipe``, ``train_images`` and
            ``train_hashes`` of `TrainedModel`.
        dtype: type a whole model is written in. An adapter is written as it was trained, in float32.
        state: its tensors by name, where the model itself holds a share of them only.

    Returns:
        what was written to `dcr2ad.json`.
    """
    folder = Path(folder)
    work = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    is_adapter = hasattr(vlm.model, "peft_config")
    if is_adapter:
        vlm.model.peft_config["default"].base_model_name_or_path = about["base"]
        vlm.model.save_pretrained(work, state_dict=state, save_embedding_layers=False)  # "auto" would ask a hub for the base
        (work / "README.md").unlink(missing_ok=True)  # peft's template for a hub
    else:
        vlm.model.to(dtype).save_pretrained(work, state_dict=state)
        _copy_processor(vlm, work)
    trained = TrainedModel(kind="adapter" if is_adapter else "full", digest=weights_digest(work), versions=versions(), **about)
    write_text(work / MARKER, json.dumps(trained.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    work.rename(folder)
    return trained


ImageInputs = Literal["features", "tower", "pixels"]
"""What images enter as: cached features; the vision tower's cached output, through the projector as it stands; pixels."""


def image_inputs(model: Any) -> ImageInputs:
    """What images must enter as for everything trainable to get its gradient: pixels where the vision tower is trained."""
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if any(map(is_vision, trained)):
        return "pixels"
    return "tower" if any(lies_in(name, PROJECTORS) for name in trained) else "features"


def is_vision(name: str) -> bool:
    """Whether a parameter's name lies in the vision tower; the projector is no part of it."""
    return lies_in(name, _VISION) and not lies_in(name, PROJECTORS)


def sees_images(name: str) -> bool:
    """Whether a parameter's name lies in the vision tower or the projector."""
    return lies_in(name, (*_VISION, *PROJECTORS))


def weights_digest(folder: str | Path) -> str:
    """SHA-256 of a folder's weights file; of all their digests, by name, where there are several."""
    digests = {path.name: digest_file(path) for path in sorted(Path(folder).glob("*.safetensors"))}
    return next(iter(digests.values())) if len(digests) == 1 else digest_json(digests)


def model_digest(model: Any) -> str:
    """SHA-256 over names, shapes and bytes of a loaded model's parameters, behind their type: ``float32-…``."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return f"{str(model.dtype).removeprefix('torch.')}-{digest.hexdigest()}"


def _select(model: Any, settings: TrainSettings) -> None:
    """Full fine-tuning: everything but the frozen vision tower; the projector as asked."""
    vision, projector = _part(model, _VISION), _part(model, PROJECTORS)
    for name, parameter in model.named_parameters():
        if lies_in(name, (projector,)):
            parameter.requires_grad_(settings.train_projector)
        else:
            parameter.requires_grad_(not (settings.freeze_vision and lies_in(name, (vision,))))


def _part(model: Any, names: tuple[str, ...]) -> str:
    """The one of these names under which the model has the part."""
    modules = [f".{name}" for name, _ in model.named_modules()]
    for part in names:
        if any(name.endswith(f".{part}") for name in modules):
            return part
    raise ModelError(f"{type(model).__name__} has none of the parts {', '.join(names)}", "Use Qwen2.5-VL or InternVL")


def _lora_config(model: Any, settings: TrainSettings) -> Any:
    from peft import LoraConfig

    parts = [_LANGUAGE] if settings.freeze_vision else [_LANGUAGE, _part(model, _VISION)]
    projector = _part(model, PROJECTORS)
    leaves = sorted({name.rsplit(".", 1)[-1] for name in _linear_layers(model, parts) if not lies_in(name, (projector,))})
    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        target_modules=rf".*\b({'|'.join(parts)})\..*\b({'|'.join(leaves)})",
        modules_to_save=[projector] if settings.train_projector else None,
    )


def _linear_layers(model: Any, parts: list[str]) -> Iterator[str]:
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and lies_in(name, parts):
            yield name


def _fresh_adapter(model: Any, settings: TrainSettings, seed: int) -> Any:
    from peft import get_peft_model

    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(seed)
        warnings.simplefilter("ignore")
        return get_peft_model(model, _lora_config(model, settings))


def _check_same(stored: Any, asked: Any, folder: str | Path) -> None:
    for name in ("r", "lora_alpha", "target_modules", "modules_to_save"):
        was, now = getattr(stored, name), getattr(asked, name)
        if was != now:
            raise InputError(
                f"the adapter in {folder} was trained with {name} {was!r}, now {now!r}",
                "Use the lora_rank, lora_alpha, train_projector and freeze_vision of the stage before",
            )


def _copy_processor(vlm: VisionLanguageModel, folder: Path) -> None:
    """Processor files as they came, so that the folder keeps the hub's layout."""
    source = Path(vlm.model.name_or_path)
    if not source.is_dir():
        raise ModelError(f"the model was not loaded from a folder ({source})", "Load it with VisionLanguageModel.load")
    for name in _PROCESSOR_FILES:
        if (source / name).is_file():
            shutil.copy2(source / name, folder / name)
