"""Any in-process model as one folder in the hub's own layout: what transformers, vLLM and others load.

Reads a model by name, with the adapters its folder stands on; writes weights with everything merged, and the base's own
processor files unchanged: a processor saved from memory would be our image-only subclass, which `AutoProcessor` elsewhere
silently takes for a bare tokenizer. Knows nothing about stages.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import torch
from pydantic import Field

from dcr2ad.errors import InputError
from dcr2ad.models.adapters import MARKER, merge_for_inference
from dcr2ad.models.hf import resolve
from dcr2ad.models.vlm import VisionLanguageModel
from dcr2ad.types import Record

EXPORT_FILE = "dcr2ad-export.json"
_NOT_COPIED = ("*.safetensors", "*.bin", "*.pt", "*.gguf", "*.index.json", "config.json", "generation_config.json", MARKER)
_NOT_COPIED_ADAPTER = ("adapter_*", "nano.json", "optimizer*", "training_*", EXPORT_FILE)
VLLM_FAMILIES = frozenset({"qwen2_vl", "qwen2_5_vl"})
"""Model types whose export has been served by a real vLLM (tests/test_vllm.py)."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Exported(Record):
    """What an exported folder holds; kept beside the weights."""

    source: str
    """The model's name when it was exported."""
    digest: str
    """Digest of its weights and adapters, as evaluations record it."""
    adapters: int
    """Adapters merged."""
    architecture: str
    """Class that loads it."""
    dtype: str
    """Type of the weights."""
    parameters: int = Field(ge=1)
    """Number of weights."""
    vllm: bool
    """Whether vLLM is known to serve this family."""


def export_model(spec: str, out: str | Path, *, dtype: str = "auto") -> Exported:
    """Write a model as a folder that `AutoModelForImageTextToText` and `AutoProcessor` load.

    The folder appears whole or not at all. Adapters are merged in float32, then rounded to `dtype`.

    Args:
        spec: ``nano``, ``nano:base``, ``hf:PATH`` or the folder of a training stage.
        out: folder to write; must not exist, be empty, or be an earlier export.
        dtype: type of the weights, ``float32``, ``bfloat16`` or ``float16``; ``auto`` keeps the base's.

    Raises:
        InputError: `spec` is an endpoint, there is no such type, or `out` holds something else.
        ModelError: the model cannot be loaded.
    """
    out = Path(out)
    if dtype not in {"auto", *DTYPES}:
        raise InputError(f"{dtype!r} is no type of weights", f"Use auto, {', '.join(DTYPES)}")
    if spec.startswith("openai:"):
        raise InputError(f"{spec} runs behind an endpoint and has no weights here", "Name nano, hf:PATH or a trained folder")
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / EXPORT_FILE).is_file())):
        raise InputError(f"{out} holds something that is no export", "Name a new folder")
    folder, adapters, digest = resolve(spec)
    wanted = DTYPES[_stored_dtype(folder) if dtype == "auto" else dtype]
    vlm = VisionLanguageModel.load(folder, dtype=torch.float32 if adapters else wanted, device="cpu")
    model = vlm.model
    for adapter in adapters:
        model = merge_for_inference(model, adapter)
    model = model.to(wanted)
    about = Exported(
        source=spec,
        digest=digest,
        adapters=len(adapters),
        architecture=type(model).__name__,
        dtype=str(wanted).removeprefix("torch."),
        parameters=sum(p.numel() for p in model.parameters()),
        vllm=model.config.model_type in VLLM_FAMILIES,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as work:
        whole = Path(work) / "export"
        skipped = shutil.ignore_patterns(*_NOT_COPIED, *_NOT_COPIED_ADAPTER)
        shutil.copytree(folder, whole, ignore=lambda at, names: {*skipped(at, names), *_folders(at, names)})
        model.save_pretrained(whole)
        (whole / EXPORT_FILE).write_text(about.model_dump_json(indent=2) + "\n", encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        whole.rename(out)
    return about


def _folders(at: str, names: list[str]) -> set[str]:
    """Folders inside a model's folder: caches and checkpoints, no part of it."""
    return {name for name in names if (Path(at) / name).is_dir()}


def _stored_dtype(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) if (folder / "config.json").is_file() else {}
    named = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return named if named in DTYPES else "float32"
