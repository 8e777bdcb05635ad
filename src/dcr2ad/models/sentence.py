"""The sentence encoder of search by meaning: a small BERT for one text at a time, without transformers.

Reads tokenizer and weights of all-MiniLM-L6-v2 (or any BERT of its layout) from a folder; returns embeddings. A query costs
the reading of all weights, whatever its length: so they are kept in bfloat16 where the processor computes in it, query, key
and value as one matrix, and texts are never padded. Importing transformers for it would take longer than a search. Not in the
paper.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from dcr2ad.errors import ModelError
from dcr2ad.models.placement import cpu_has_bfloat16

MOST_TOKENS = 256
"""What the model was trained to read; the rest of a longer text is cut."""
_EPSILON = 1e-12

Weights = dict[str, torch.Tensor]


class SentenceEncoder:
    """Embeddings of texts: the mean of the last hidden states, scaled to length one.

    Args:
        folder: ``config.json``, ``tokenizer.json`` and ``model.safetensors``.
        dtype: type to compute in; by default bfloat16 where the processor has units for it, else float32.

    Raises:
        ModelError: the files are damaged.
    """

    def __init__(self, folder: Path, *, dtype: torch.dtype | None = None) -> None:
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            state = {name.removeprefix("bert."): value for name, value in load_file(folder / "model.safetensors").items()}
            self._heads = int(config["num_attention_heads"])
            self.width = int(config["hidden_size"])
            self.dtype = dtype or (torch.bfloat16 if cpu_has_bfloat16() else torch.float32)
            self._embedding = _named(state, "embeddings", self.dtype)
            layers = range(int(config["num_hidden_layers"]))
            self._layers = [_joined(_named(state, f"encoder.layer.{number}", self.dtype)) for number in layers]
        except Exception as error:  # tokenizers raises bare Exception for a damaged file
            raise ModelError(
                f"the search model in {folder} cannot be read: {str(error).partition(chr(10))[0]}",
                "Reinstall dcr2ad[search], or search with --words",
            ) from error
        self._tokenizer.enable_truncation(MOST_TOKENS)
        self._tokenizer.no_padding()

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings (texts, `width`) of length one, float32."""
        rows = [self._embed(self._tokenizer.encode(text).ids) for text in texts]
        return torch.stack(rows).numpy() if rows else np.empty((0, self.width), dtype=np.float32)

    def _embed(self, ids: Sequence[int]) -> torch.Tensor:
        """Embedding (`width`,) of token ids."""
        own = self._embedding
        hidden = own["word_embeddings.weight"][torch.tensor(ids)] + own["position_embeddings.weight"][: len(ids)]
        hidden = _normed(hidden + own["token_type_embeddings.weight"][0], own, "LayerNorm")
        for layer in self._layers:
            query, key, value = _linear(hidden, layer, "joined").view(len(ids), 3, self._heads, -1).permute(1, 2, 0, 3)[:, None]
            # In float32: for few tokens the kernel for bfloat16 takes several times as long.
            seen = functional.scaled_dot_product_attention(query.float(), key.float(), value.float())[0].to(hidden.dtype)
            seen = seen.transpose(0, 1).flatten(1)
            hidden = _normed(hidden + _linear(seen, layer, "attention.output.dense"), layer, "attention.output.LayerNorm")
            wide = functional.gelu(_linear(hidden, layer, "intermediate.dense"))
            hidden = _normed(hidden + _linear(wide, layer, "output.dense"), layer, "output.LayerNorm")
        return functional.normalize(hidden.float().mean(0), dim=-1)


def _named(state: Weights, prefix: str, dtype: torch.dtype) -> Weights:
    """Tensors below a name."""
    return {name.removeprefix(f"{prefix}."): value.to(dtype) for name, value in state.items() if name.startswith(f"{prefix}.")}


def _joined(layer: Weights) -> Weights:
    """A layer with query, key and value as one matrix."""
    for kind in ("weight", "bias"):
        layer[f"joined.{kind}"] = torch.cat([layer.pop(f"attention.self.{name}.{kind}") for name in ("query", "key", "value")])
    return layer


def _linear(hidden: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    return functional.linear(hidden, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _normed(hidden: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    return functional.layer_norm(hidden, hidden.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], _EPSILON)
