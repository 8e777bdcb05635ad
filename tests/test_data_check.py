"""The data check names what is wrong with a folder, and exports are read back by the libraries they are for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcr2ad.artifacts import read_records
from dcr2ad.config import InstructSettings
from dcr2ad.datasets.check import check_folder
from dcr2ad.datasets.drawn import write_drawn
from dcr2ad.datasets.export import FORMATS, export_questions
from dcr2ad.datasets.folder import read_folder
from dcr2ad.errors import InputError, UnknownNameError
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.parsing import parse_response
from dcr2ad.stages.instruct import build_instructions
from dcr2ad.types import Question, Trajectory

BASE = KnowledgeBase.builtin()
REAL_MINI = Path(__file__).parents[2] / "shared" / "data" / "real-mini"


def test_a_sound_folder_has_counts_and_no_finding_and_its_digest_follows_the_content(tmp_path: Path) -> None:
    write_drawn(tmp_path / "drawn", 2, seed=0, size=64)
    found = check_folder(read_folder(tmp_path / "drawn"))
    assert found.findings == () and found.images == sum(found.objects.values()) == sum(found.splits.values())
    assert found.masks == found.defective and found.layout == "mvtec"
    assert check_folder(read_folder(tmp_path / "drawn")) == found
    mask = next((tmp_path / "drawn").rglob("*_mask.png"))
    Image.fromarray(np.full((64, 64), 255, dtype=np.uint8)).save(mask)
    assert check_folder(read_folder(tmp_path / "drawn")).digest != found.digest


def test_each_planted_fault_is_named(tmp_path: Path) -> None:
    root = tmp_path / "drawn"
    write_drawn(root, 3, seed=0, size=64)
    cap = root / "bottle_cap"
    masks = cap / "ground_truth" / "crack"
    Image.new("L", (64, 64)).save(masks / "000_mask.png")
    Image.new("L", (32, 64), 255).save(masks / "001_mask.png")
    (masks / "002_mask.png").unlink()
    (cap / "test" / "chip" / "000.png").write_bytes(b"no image")
    (cap / "test" / "good" / "001.png").write_bytes((cap / "test" / "good" / "000.png").read_bytes())  # dev and train
    lonely = root / "gauge" / "test" / "bent"
    lonely.mkdir(parents=True)
    Image.new("L", (64, 64), 90).save(lonely / "000.png")
    counts = check_folder(read_folder(root)).counts
    assert counts == {
        "image cannot be read": 1,
        "mask is empty": 1,
        "mask of another size than its image": 1,
        "no such file; the image is kept without its mask": 1,
        "no reference": 1,
        "same content across splits": 1,
    }


def test_metal_nuts_among_the_pills_are_named(tmp_path: Path) -> None:
    root = tmp_path / "DS-MVTec"
    for index in range(22):
        for name in ("pill", "metal_nut"):
            path = root / name / "image" / "good" / f"{index:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (20, 20), 10 * index).save(path)
    found = check_folder(read_folder(root))
    nuts = [finding for finding in found.findings if finding.what.startswith("metal nut among the pills")]
    assert len(nuts) == 22 and "old copy" in nuts[0].what and all("/pill/" in finding.path for finding in nuts)


@pytest.mark.skipif(not REAL_MINI.is_dir(), reason=f"the shared photographs are not at {REAL_MINI}")
def test_real_photographs() -> None:
    found = check_folder(read_folder(REAL_MINI, datasets=("cookies", "mtd")))
    assert set(found.objects) == {"cookie", "magnetic tile"} and found.images > 150
    assert not [finding for finding in found.findings if "cannot be read" in finding.what]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Question]:
    folder = tmp_path_factory.mktemp("export")
    write_drawn(folder / "drawn", 1, seed=0, size=64)
    build_instructions(folder / "drawn", folder / "out", BASE, InstructSettings(expert=False, split="", max_images=8), seed=0)
    return list(read_records(folder / "out" / "questions.jsonl", Question))


@pytest.mark.parametrize("form", FORMATS)
def test_every_form_is_read_back_by_datasets(questions: list[Question], tmp_path: Path, form: str) -> None:
    load_dataset = pytest.importorskip("datasets").load_dataset
    out = tmp_path / {"trl": "data.jsonl", "parquet": "data.parquet"}.get(form, "data.json")
    assert export_questions(questions, BASE, out, form) == len(questions)
    kind = "parquet" if form == "parquet" else "json"
    rows = load_dataset(kind, data_files=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == len(questions)
    for row, question in zip(rows, questions, strict=True):
        assert question.sample.image in row["images"] and all(Path(path).is_file() for path in row["images"])
        if form in {"trl", "parquet"}:
            shown, answer = row["prompt"][0]["content"], row["completion"][0]["content"][0]["text"]
            pictures = sum(part["type"] == "image" for part in shown)
        elif form == "sharegpt":
            assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"]
            pictures, answer = row["conversations"][0]["value"].count("<image>"), row["conversations"][1]["value"]
        else:
            assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
            pictures, answer = row["messages"][0]["content"].count("<image>"), row["messages"][1]["content"]
        assert pictures == len(row["images"])
        read = parse_response(answer, question.options)
        assert isinstance(read, Trajectory) and read == question.response
    if form == "llamafactory":
        assert json.loads((tmp_path / "dataset_info.json").read_text())["dcr2ad"]["file_name"] == out.name


def test_what_cannot_be_exported_is_refused(questions: list[Question], tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="no format"):
        export_questions(questions, BASE, tmp_path / "x", "csv")
    bare = [question.model_copy(update={"response": None}) for question in questions]
    with pytest.raises(InputError, match="no question has a response"):
        export_questions(bare, BASE, tmp_path / "x.json", "trl")
    assert not (tmp_path / "x.json").exists()
