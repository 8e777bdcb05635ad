"""Published model sizes as transformers configurations, so that a run can be planned before any weight is downloaded.

Returns configurations; reads a folder's `config.json` where one is named. Knows nothing about training. The numbers are those
of the technical report of Qwen2.5-VL (arXiv 2502.13923, Table 1: layers, widths, heads, vision tower) and of the `config.json`
published with each model (padded vocabulary, and 3,420 for the inner width of 7B's vision tower, where the report says 3,456).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcr2ad.errors import ModelError, UnknownNameError

_TEXT: dict[str, dict[str, int]] = {
    "qwen2.5-vl-7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "qwen2.5-vl-72b": {
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}
_VISION_INNER = {"qwen2.5-vl-7b": 3420, "qwen2.5-vl-72b": 3456}
KNOWN_SIZES = tuple(_TEXT)
"""Names that need no file."""


def known_size(spec: str) -> str | None:
    """The known size that a model's name means (``hf:Qwen/Qwen2.5-VL-7B-Instruct``), or None."""
    last = spec.rsplit("/", 1)[-1].lower()
    return next((name for name in KNOWN_SIZES if last == name or last.startswith(f"{name}-")), None)


def published_config(name: str) -> Any:
    """Configuration of a known size.

    Raises:
        UnknownNameError: it is none of `KNOWN_SIZES`.
    """
    if name not in _TEXT:
        raise UnknownNameError(f"no known size {name!r}", f"Use {', '.join(KNOWN_SIZES)} or hf:FOLDER")
    from transformers import Qwen2_5_VLConfig

    text = {
        **_TEXT[name],
        "vocab_size": 152064,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": False,
    }
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": _VISION_INNER[name],
        "num_heads": 16,
        "out_hidden_size": text["hidden_size"],
        "fullatt_block_indexes": [7, 15, 23, 31],
        "window_size": 112,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "in_channels": 3,
    }
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)


def planned_config(spec: str) -> Any:
    """Configuration of what a model's name means; weights are not read.

    Args:
        spec: ``hf:FOLDER``, a folder, or a known size with or without the hub's prefix and suffix. A folder that exists goes
            before a known size.

    Raises:
        ModelError: neither, or a configuration that cannot be read.
    """
    folder = Path(spec.removeprefix("hf:"))
    if not (folder / "config.json").is_file():
        size = known_size(spec.removeprefix("hf:"))
        if size is None:
            what = f"no configuration for the model {spec!r} (no {folder / 'config.json'})"
            raise ModelError(what, f"Use --model with hf:FOLDER, or {', '.join(KNOWN_SIZES)}")
        return published_config(size)
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelError(f"{folder / 'config.json'} cannot be read ({reason})", "Check the folder") from None
