"""Preference pairs as others read them: a reader of texts alone, other trainers, and a person."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from dcr2ad.blind_pairs import read_pairs
from dcr2ad.errors import UnknownNameError
from dcr2ad.parsing import write_response
from dcr2ad.report.pairs import render_pairs
from dcr2ad.stages.pair_formats import export_pairs
from dcr2ad.types import PreferencePair
from tests.tiny import tiny_base, tiny_pairs

BASE = tiny_base()


def _swapped_at_random(pairs: list[PreferencePair]) -> list[PreferencePair]:
    draw = random.Random(3)
    return [p if draw.random() < 0.5 else p.model_copy(update={"chosen": p.rejected, "rejected": p.chosen}) for p in pairs]


def test_a_tell_in_the_text_is_found(tmp_path: Path) -> None:
    """The test records say "line" when right and "spot" when wrong, and are shorter when right."""
    found = read_pairs(tiny_pairs(tmp_path, 80))
    assert found is not None and found.accuracy > 95 and found.verdict == "leaks"


def test_pairs_that_differ_by_lot_are_not_told(tmp_path: Path) -> None:
    found = read_pairs(_swapped_at_random(tiny_pairs(tmp_path, 200)))
    assert found is not None and abs(found.accuracy - 50) < 12
    assert abs(found.length_alone - 50) < 12


def test_few_pairs_say_nothing(tmp_path: Path) -> None:
    few = read_pairs(tiny_pairs(tmp_path, 6))
    assert few is not None and few.verdict == "too few"
    assert read_pairs(tiny_pairs(tmp_path, 2)) is None
    assert read_pairs([]) is None


def test_trl_reads_the_export(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    pairs = tiny_pairs(tmp_path, 3)
    file = export_pairs(pairs, BASE, "trl", tmp_path / "out")
    rows = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    assert set(rows.column_names) == {"images", "prompt", "chosen", "rejected"}
    for row, pair in zip(rows, pairs, strict=True):
        places = [part["type"] for part in row["prompt"][0]["content"]]
        assert places.count("image") == len(row["images"]) == 2
        assert row["chosen"][0]["content"][0]["text"] == write_response(pair.chosen)
        assert row["rejected"][0]["content"][0]["text"] == write_response(pair.rejected)


def test_llamafactory_export(tmp_path: Path) -> None:
    pairs = tiny_pairs(tmp_path, 3)
    file = export_pairs(pairs, BASE, "llamafactory", tmp_path)
    info = json.loads((tmp_path / "dataset_info.json").read_text())["dcr2ad_pairs"]
    assert info["file_name"] == file.name and info["ranking"] is True and info["formatting"] == "sharegpt"
    for row, pair in zip(json.loads(file.read_text()), pairs, strict=True):
        assert set(row) == set(info["columns"].values())
        assert row["conversations"][0]["value"].count("<image>") == len(row["images"]) == 2
        assert all(Path(image).is_file() for image in row["images"])
        assert row["rejected"]["value"] == write_response(pair.rejected)
    with pytest.raises(UnknownNameError, match="trl, llamafactory"):
        export_pairs(pairs, BASE, "csv", tmp_path)


def test_examples_page(tmp_path: Path) -> None:
    pairs = tiny_pairs(tmp_path, 7)
    page = render_pairs(pairs, BASE, shown=5)
    assert page.count("<section") == 5 and "5 of 7 pairs" in page
    assert pairs[0].rejected.reasoning in page and "data:image/jpeg" in page
    assert pairs[0].wrong_reason in page and "similar text 7" in page
    assert "http" not in page.split("</style>")[1]
    Path(pairs[0].question.sample.image).unlink()
    assert "query" in render_pairs(pairs, BASE, shown=5)
