"""The leak guard: copies are told by path, content and look, and other photographs of like parts are not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcr2ad.artifacts import read_records
from dcr2ad.config import InstructSettings
from dcr2ad.datasets.drawn import write_drawn
from dcr2ad.errors import ImageError, InputError
from dcr2ad.images import content_digest
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.leaks import NEAR, Forbidden, find_overlap, hash_file, perceptual_hash, read_forbidden
from dcr2ad.questions import Rejected
from dcr2ad.stages.instruct import build_instructions
from dcr2ad.types import Question

REAL_MINI = Path(__file__).parents[2] / "shared" / "data" / "real-mini"
MMAD = REAL_MINI.parent / "mmad-sample" / "mmad.json"
needs_shared = pytest.mark.skipif(not REAL_MINI.is_dir(), reason=f"the shared photographs are not at {REAL_MINI}")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("leaks") / "drawn"
    write_drawn(folder, 2, seed=1, size=128)
    return folder


def _bits(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


def test_copies_are_told_and_others_are_not(drawn: Path, tmp_path: Path) -> None:
    image = drawn / "metal_nut" / "test" / "good" / "000.png"
    guard = read_forbidden([image])
    exact, small, lossy = tmp_path / "exact.png", tmp_path / "small.png", tmp_path / "lossy.jpg"
    exact.write_bytes(image.read_bytes())
    opened = Image.open(image)
    opened.resize((80, 80)).save(small)
    opened.convert("RGB").save(lossy, quality=80)
    assert [guard.find(path).by for path in (exact, small, lossy)] == ["content", "look", "look"]  # type: ignore[union-attr]
    others = [path for path in drawn.rglob("*.png") if "ground_truth" not in path.parts and "metal_nut" not in path.parts]
    assert others and not [path for path in others if guard.find(path)]


def test_hash_is_the_signs_of_differences() -> None:
    ramp = Image.fromarray(np.tile(np.arange(170, dtype=np.uint8), (170, 1)))
    assert perceptual_hash(ramp) == "f" * 64 + "0" * 64  # brighter to the right everywhere, never downwards
    assert perceptual_hash(ramp.rotate(-90)) == "0" * 64 + "f" * 64


def test_pictures_of_one_tone_are_not_taken_for_each_other(tmp_path: Path) -> None:
    for name, level in (("black", 0), ("grey", 99)):
        Image.new("L", (40, 40), level).save(tmp_path / f"{name}.png")
    assert read_forbidden([tmp_path / "black.png"]).find(tmp_path / "grey.png") is None


def test_a_list_forbids_the_same_file_in_every_copy_of_a_data_set_and_no_other(tmp_path: Path) -> None:
    keys = {"DS-MVTec/pill/image/crack/000.png": {"random_templates": ["MVTec-AD/pill/train/good/007.png"]}}
    (tmp_path / "mmad.json").write_text(json.dumps(keys))
    guard = read_forbidden([tmp_path / "mmad.json"])
    for path in (
        "/x/mvtec_anomaly_detection/pill/test/crack/000.png",
        "/x/MVTec-AD/pill/test/crack/000.jpg",
        "/x/DS-MVTec/pill/image/crack/000.png",
        "/x/mvtec/pill/train/good/007.png",
    ):
        match = guard.find(path)
        assert match is not None and match.by == "path", path
    assert guard.find("/x/own/pill/test/crack/000.png", "MVTec-AD") is not None
    for path in ("/x/drawn/pill/test/crack/000.png", "/x/MVTec-AD/pill/test/crack/001.png", "/x/VisA/pill/test/crack/000.png"):
        assert guard.find(path) is None


def test_lists_of_every_form_and_bad_ones(drawn: Path, tmp_path: Path) -> None:
    image = str(drawn / "bottle_cap" / "test" / "good" / "000.png")
    (tmp_path / "a.txt").write_text(image + "\n\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"sample": {"image": image}}) + "\n" + json.dumps({"image": image}) + "\n")
    for name in ("a.txt", "b.jsonl"):
        match = read_forbidden([tmp_path / name]).find(image)
        assert match is not None and match.by == "content"
    for name, text in (("c.jsonl", "{}"), ("d.json", "[1]"), ("e.json", "{"), ("f.txt", "")):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError):
            read_forbidden([tmp_path / name])
    with pytest.raises(InputError, match="no such file or folder"):
        read_forbidden([tmp_path / "none"])
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ImageError):
        read_forbidden([tmp_path / "broken.png"])
    with pytest.raises(InputError, match="no perceptual hash"):
        Forbidden().add_recorded({}, {"x": "12"})


def test_overlap_of_a_trained_model_and_a_benchmark(drawn: Path, tmp_path: Path) -> None:
    folder = drawn / "bottle_cap" / "test" / "good"
    one, two = folder / "000.png", folder / "001.png"
    Image.open(one).resize((96, 96)).save(tmp_path / "copy.png")
    digest = content_digest(one)
    found = find_overlap({digest: "good/000.png"}, {digest: hash_file(one)}, [tmp_path / "copy.png", one, two, one])
    assert [(Path(match.image).name, match.by, match.other) for match in found] == [
        ("copy.png", "look", "good/000.png"),
        ("000.png", "content", "good/000.png"),
    ]
    assert [match.by for match in find_overlap({digest: "good/000.png"}, {}, [tmp_path / "copy.png", one])] == ["content"]


def test_instruct_refuses_forbidden_images_and_references_and_says_so(drawn: Path, tmp_path: Path) -> None:
    refused = drawn / "metal_nut" / "test" / "scratch"
    guard = read_forbidden([refused])
    settings = InstructSettings(expert=False, split="")
    seen: list[int] = []
    progress = lambda done, total: seen.append(done)  # noqa: E731
    how = {"seed": 0, "datasets": ("drawn",), "forbidden": guard, "progress": progress}
    summary = build_instructions(drawn, tmp_path / "out", KnowledgeBase.builtin(), settings, **how)  # type: ignore[arg-type]
    asked = {q.sample.image for q in read_records(tmp_path / "out" / "questions.jsonl", Question)}
    assert asked and not {path for path in asked if str(refused) in path}
    lines = [r for r in read_records(tmp_path / "out" / "rejected.jsonl", Rejected) if r.reason.startswith("image is in")]
    assert {line.sample for line in lines} >= {"metal_nut/test/scratch/000.png", "metal_nut/test/scratch/001.png"}
    assert summary.rejected["image is in a benchmark"] == len(lines)
    assert seen == list(range(1, summary.images + len(lines) + 1))  # refused images count as done too


@needs_shared
def test_real_photographs_and_the_real_list(tmp_path: Path) -> None:
    images = sorted((REAL_MINI / "mtd").rglob("*.jpg"))[:60]
    for index, path in enumerate(images):
        with Image.open(path) as image:
            image.resize((256, 256)).save(tmp_path / f"{index}.png")
    guard = read_forbidden([tmp_path])
    caught = [guard.find(path) for path in images]
    assert sum(match is not None and match.by == "look" for match in caught) >= 0.95 * len(images)
    other = [path for name in ("cookies", "bsdata") for path in sorted((REAL_MINI / name).rglob("*.jpg"))[:60]]
    assert not [path for path in other if guard.find(path)]
    assert len(read_forbidden([MMAD])) > 250
    assert NEAR < 512 // 8 and _bits(hash_file(images[0]), hash_file(tmp_path / "0.png")) <= NEAR
