"""Search by meaning (`dcr2ad.meaning`), and by words where its extra is absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dcr2ad import meaning
from dcr2ad.cli import app
from dcr2ad.errors import ModelError
from dcr2ad.knowledge import KnowledgeBase

needs_extra = pytest.mark.skipif(meaning.model_folder() is None, reason="the extra dcr2ad[search] is not installed")


@pytest.fixture(scope="module")
def base() -> KnowledgeBase:
    return KnowledgeBase.builtin()


@pytest.fixture(scope="module")
def encoder() -> meaning.SentenceEncoder:
    folder = meaning.model_folder()
    assert folder is not None
    return meaning.SentenceEncoder(folder)


def test_without_the_extra_words_decide_and_it_is_said(monkeypatch: pytest.MonkeyPatch, base: KnowledgeBase) -> None:
    monkeypatch.setattr(meaning, "model_folder", lambda: None)
    assert meaning.find(base, "dark round hole in metal") == (base.search("dark round hole in metal"), meaning.BY_WORDS)
    done = CliRunner().invoke(app, ["knowledge", "search", "dark round hole in metal"])
    assert done.exit_code == 0 and "by words (BM25)" in done.stderr and "dcr2ad[search]" in done.stderr


def test_a_damaged_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        meaning.SentenceEncoder(tmp_path)


@needs_extra
def test_a_text_means_the_same_alone_and_among_others(encoder: meaning.SentenceEncoder) -> None:
    texts = ["a scratch", "a much longer text about a torn wrap with visible content", ""]
    together = encoder.encode(texts)
    assert together.shape == (3, meaning.WIDTH)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(together, np.concatenate([encoder.encode([text]) for text in texts]), atol=1e-5)


@needs_extra
def test_meaning_is_found_without_a_shared_word(base: KnowledgeBase, encoder: meaning.SentenceEncoder, tmp_path: Path) -> None:
    index = meaning.MeaningIndex(base, encoder, tmp_path)
    assert "General.contamination.mould" in {entry.key for entry, _ in index.search("fungi", 3)}
    scores = [score for _, score in index.search("it is oxidised", len(base) + 1)]
    assert len(scores) == len(base) and scores == sorted(scores, reverse=True)


@needs_extra
def test_embeddings_are_kept_and_mended(
    base: KnowledgeBase, encoder: meaning.SentenceEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = KnowledgeBase(base.entries[:5])
    first = meaning.MeaningIndex(small, encoder, tmp_path).search("scratch")
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"torn")
    assert meaning.MeaningIndex(KnowledgeBase(reversed(small.entries)), encoder, tmp_path).search("scratch") == first
    asked: list[int] = []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda texts: asked.append(len(texts)) or encode(texts))
    meaning.MeaningIndex(small, encoder, tmp_path).search("scratch")
    assert asked == [1]
