"""Search by meaning (`dcr2ad.meaning`), and by words where its extra is absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dcr2ad import meaning
from dcr2ad.cli import app
from dcr2ad.errors import ModelError
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.models.sentence import MOST_TOKENS, SentenceEncoder

needs_extra = pytest.mark.skipif(meaning.model_folder() is None, reason="the extra dcr2ad[search] is not installed")


@pytest.fixture(scope="module")
def base() -> KnowledgeBase:
    return KnowledgeBase.builtin()


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    folder = meaning.model_folder()
    assert folder is not None
    return SentenceEncoder(folder)


def test_without_the_extra_words_decide_and_it_is_said(monkeypatch: pytest.MonkeyPatch, base: KnowledgeBase) -> None:
    monkeypatch.setattr(meaning, "model_folder", lambda: None)
    assert meaning.find(base, "dark round hole in metal") == (base.search("dark round hole in metal"), meaning.BY_WORDS)
    done = CliRunner().invoke(app, ["knowledge", "search", "dark round hole in metal"])
    assert done.exit_code == 0 and "by words (BM25)" in done.stderr and "dcr2ad[search]" in done.stderr


def test_a_damaged_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        SentenceEncoder(tmp_path)


@needs_extra
def test_a_text_means_the_same_alone_and_among_others(encoder: SentenceEncoder) -> None:
    texts = ["a scratch", "a much longer text about a torn wrap with visible content", ""]
    together = encoder.encode(texts)
    assert together.shape == (3, encoder.width)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(together, np.concatenate([encoder.encode([text]) for text in texts]))


@needs_extra
def test_the_light_encoder_equals_transformers_own(encoder: SentenceEncoder) -> None:
    from tokenizers import Tokenizer
    from transformers import BertModel

    folder = meaning.model_folder()
    assert folder is not None
    model, tokenizer = BertModel.from_pretrained(folder).eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MOST_TOKENS)
    exact = SentenceEncoder(folder, dtype=torch.float32)
    for text in ("a scratch", "brown powdery patches near an edge that spread along scratches", "word " * 400):
        ids = torch.tensor([tokenizer.encode(text).ids])
        with torch.inference_mode():
            mean = model(input_ids=ids).last_hidden_state[0].mean(0)
        expected = torch.nn.functional.normalize(mean, dim=0).numpy()
        np.testing.assert_allclose(exact.encode([text])[0], expected, atol=1e-5)
        assert float(encoder.encode([text])[0] @ expected) > 0.999


@needs_extra
def test_meaning_is_found_without_a_shared_word(base: KnowledgeBase, encoder: SentenceEncoder, tmp_path: Path) -> None:
    index = meaning.MeaningIndex(base, encoder, tmp_path)
    assert "General.contamination.mould" in {entry.key for entry, _ in index.search("fungi", 3)}
    scores = [score for _, score in index.search("it is oxidised", len(base) + 1)]
    assert len(scores) == len(base) and scores == sorted(scores, reverse=True)


@needs_extra
def test_embeddings_are_kept_and_mended(
    base: KnowledgeBase, encoder: SentenceEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
