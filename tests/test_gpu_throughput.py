"""The benchmark for a lent GPU runs: what it builds and counts, at toy size on this machine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from benchmarks import gpu_throughput
from PIL import Image

from tests.tiny import tiny_qwen


def test_photographs_have_the_shares_sizes_and_references_of_mmad(tmp_path: Path) -> None:
    assert sum(count for _, count, _, _ in gpu_throughput.SIZES) == gpu_throughput.MMAD_QUESTIONS
    questions = gpu_throughput.make_questions(tmp_path, 44, shrink=16)
    images = {q.sample.image: q.sample for q in questions}
    assert len(questions) == 5 * len(images) and len({q.id for q in questions}) == len(questions)
    assert Counter(s.dataset for s in images.values()) == {"GoodsAD": 15, "VisA": 12, "DS-MVTec": 9, "MVTec-LOCO": 8}
    assert Image.open(next(iter(images))).size == (3000 // 16, 3000 // 16)
    references = {s.references for s in images.values()}
    assert len(references) / len(images) == pytest.approx(6102 / 8366, abs=0.05)


def test_a_true_size_is_built_unwritten_and_asked_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig

    small = AutoConfig.from_pretrained(tiny_qwen(tmp_path / "small"))
    asked: list[str] = []
    monkeypatch.setattr(gpu_throughput, "published_config", lambda name: asked.append(name) or small)
    model = gpu_throughput.model_of_size("7b", tmp_path / "model")
    assert asked == ["qwen2.5-vl-7b"] and torch.get_default_dtype() is torch.float32
    assert {p.dtype for p in model.vlm.model.parameters()} == {torch.bfloat16}
    assert "longest_edge 1003520" in model.vlm.pixel_limits  # 1280 * 28 * 28
    row = gpu_throughput.measure(model, tmp_path, 4, slow=2, reason=2, shrink=16)
    assert row["questions"] == row["answered"] == 20 and row["token_efficiency"] == 1.0 and row["answers_compared"] == 2
    assert row["mmad_hours"] == pytest.approx(39_670 / row["questions_per_second"] / 3600, rel=0.02, abs=0.006)  # two decimals
