"""Readers of public layouts, on small trees of the exact form (names and fields as published; pictures of our own)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from dcr2ad.datasets.folder import read_folder
from dcr2ad.errors import RecordError
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.questions import QuestionMaker
from dcr2ad.types import Sample


def _picture(path: Path, level: int = 120) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (32, 32), level).save(path)


def _real_iad(root: Path, nested: bool, size: str = "realiad_256") -> Path:
    category, rows = "audiojack", {"train": [], "test": []}  # type: ignore[var-annotated]
    for item in range(1, 5):
        for view in range(1, 6):
            name = f"OK/S{item:04d}/{category}_{item:04d}_OK_C{view}_2023092113{item:02d}{view:02d}.jpg"
            _picture(root / size / category / name)
            row = {"category": category, "anomaly_class": "OK", "image_path": name, "mask_path": None}
            rows["train" if item < 3 else "test"].append(row)
    for view in range(1, 6):
        stem = f"NG/BX/S0009/{category}_0009_NG_BX_C{view}_20230921140{view}00"
        _picture(root / size / category / f"{stem}.jpg")
        mask = f"{stem}.png" if view < 4 else None  # from two sides the defect does not show
        if mask:
            _picture(root / size / category / mask, 255)
        row = {"category": category, "anomaly_class": "BX", "image_path": f"{stem}.jpg", "mask_path": mask}
        rows["test"].append(row)
    listed = {"meta": {"prefix": f"{category}/", "normal_class": "OK"}, **rows}
    file = root / "realiad_jsons" / ("realiad_jsons" if nested else "") / f"{category}.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(listed))
    return root


@pytest.mark.parametrize("nested", [False, True])
def test_real_iad(tmp_path: Path, nested: bool) -> None:
    reading = read_folder(_real_iad(tmp_path, nested), references=2)
    samples = list(reading)
    assert reading.layout == "real-iad" and not reading.skipped and len(samples) == 25
    bad = [s for s in samples if s.is_anomalous]
    assert len(bad) == 3 and all(s.defect == "BX" and len(s.masks) == 1 for s in bad)
    hidden = [s for s in samples if "/NG/" in s.image and not s.is_anomalous]
    assert len(hidden) == 2 and all(s.defect is None for s in hidden)
    for sample in samples:
        view = sample.image.split("_C")[1][0]
        assert sample.references and all(f"_C{view}_" in ref and "/OK/" in ref for ref in sample.references)
        assert all(Path(ref).parent != Path(sample.image).parent for ref in sample.references)
    assert {s.object for s in samples} == {"audiojack"} and {s.dataset for s in samples} == {"real_iad"}


def test_real_iad_single_view_lists(tmp_path: Path) -> None:
    """The lists of the single-view protocol name one camera's images alone, the folder of pictures holds all five."""
    root = _real_iad(tmp_path, False)
    whole = root / "realiad_jsons" / "audiojack.json"
    listed = json.loads(whole.read_text())
    for part in ("train", "test"):
        listed[part] = [row for row in listed[part] if "_C1_" in row["image_path"]]
    (root / "realiad_jsons_sv").mkdir()
    (root / "realiad_jsons_sv" / "audiojack.json").write_text(json.dumps(listed))
    assert len(list(read_folder(root))) == 25  # with both, the multi-view lists are read
    whole.unlink()
    samples = list(read_folder(root))
    assert len(samples) == 5 and sum(s.is_anomalous for s in samples) == 1
    assert all("_C1_" in path for s in samples for path in (s.image, *s.references)) and all(s.references for s in samples)


def test_all_views_of_one_part_lie_in_one_split(tmp_path: Path) -> None:
    _real_iad(tmp_path, False)
    train, dev = (list(read_folder(tmp_path, split=split)) for split in ("train", "dev"))
    assert dev and not {s.group for s in train} & {s.group for s in dev}


def test_real_iad_without_images_or_with_a_broken_list_is_refused(tmp_path: Path) -> None:
    root = _real_iad(tmp_path / "a", False)
    (root / "realiad_jsons" / "audiojack.json").write_text('{"meta": {}, "train": [{}]}')
    with pytest.raises(RecordError, match=r"audiojack\.json is no list"):
        read_folder(root)
    with pytest.raises(RecordError, match="no images"):
        read_folder(_real_iad(tmp_path / "b", False, size="elsewhere"))


def test_visa_by_its_split_file(tmp_path: Path) -> None:
    lines = ["object,split,label,image,mask"]
    for index in range(3):
        for folder, part in (("Normal", "train"), ("Normal", "test"), ("Anomaly", "test")):
            number = f"{index + (10 if part == 'train' else 0):04d}"
            image = f"candle/Data/Images/{folder}/{number}.JPG"
            mask = f"candle/Data/Masks/Anomaly/{number}.png" if folder == "Anomaly" else ""
            _picture(tmp_path / image)
            if mask:
                _picture(tmp_path / mask, 1)
            lines.append(f"candle,{part},{folder.lower()},{image},{mask}")
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv" / "1cls.csv").write_text("\n".join(lines) + "\n")
    samples = list(read_folder(tmp_path, parts=("test",)))
    assert len(samples) == 6 and sum(s.is_anomalous for s in samples) == 3
    assert all(s.object == "candle" and s.dataset == "visa" for s in samples)
    assert all(bool(s.masks) == s.is_anomalous and (s.defect == "bad") == s.is_anomalous for s in samples)
    assert all("/Normal/" in s.references[0] for s in samples)
    (tmp_path / "split_csv" / "1cls.csv").write_text("object,split,label,image\ncandle,test,odd,x.JPG\n")
    with pytest.raises(RecordError, match=r"1cls\.csv:2"):
        read_folder(tmp_path)


def test_loco_masks_are_folders(tmp_path: Path) -> None:
    root = tmp_path / "mvtec_loco"
    for index in range(2):
        _picture(root / "screw_bag" / "train" / "good" / f"{index:03d}.png")
        _picture(root / "screw_bag" / "test" / "logical_anomalies" / f"{index:03d}.png")
        for mask in range(index + 1):
            _picture(root / "screw_bag" / "ground_truth" / "logical_anomalies" / f"{index:03d}" / f"{mask:03d}.png", 255)
    samples: list[Sample] = list(read_folder(root, parts=("test",)))
    assert [len(s.masks) for s in samples] == [1, 2] and all(s.defect == "logical_anomalies" for s in samples)
    asked = [question for s in samples for question in QuestionMaker(KnowledgeBase.builtin(), samples).make(s)[0]]
    assert asked  # several masks of one image are read as one


@pytest.mark.parametrize("masks", ["rbg_mask", "rgb_mask"])
def test_ds_mvtec(tmp_path: Path, masks: str) -> None:
    root = tmp_path / "DS-MVTec"
    for index in range(2):
        _picture(root / "pill" / "image" / "good" / f"{index:03d}.png")
        _picture(root / "pill" / "image" / "crack" / f"{index:03d}.png")
        _picture(root / "pill" / masks / "crack" / f"{index:03d}_mask.png", 255)
    samples = list(read_folder(root))
    assert len(samples) == 4 and all(bool(s.masks) == s.is_anomalous for s in samples)
    assert all(s.references and "/good/" in s.references[0] for s in samples)


@pytest.mark.parametrize("name", ["MVTec-AD", "mvtec_anomaly_detection"])
def test_ds_mvtec_takes_references_from_mvtec_ad_beside_it(tmp_path: Path, name: str) -> None:
    root = tmp_path / "DS-MVTec"
    for index in range(3):
        _picture(root / "pill" / "image" / "good" / f"{index:03d}.png")
        _picture(root / "pill" / "image" / "crack" / f"{index:03d}.png")
        _picture(root / "pill" / "rbg_mask" / "crack" / f"{index:03d}_mask.png", 255)
        _picture(tmp_path / name / "pill" / "train" / "good" / f"{index:03d}.png")
        _picture(tmp_path / name / "pill" / "test" / "good" / f"{index:03d}.png")
    for path in (root, root / "pill"):
        samples = list(read_folder(path, references=2))
        assert len(samples) == 6 and all(Path(s.image).is_relative_to(root) for s in samples)
        lent = tmp_path / name / "pill" / "train" / "good"
        assert all(Path(ref).parent == lent for s in samples for ref in s.references)
        assert all(len(s.references) == 2 for s in samples)


def test_goodsad_mpdd_and_btad_read_as_mvtec(tmp_path: Path) -> None:
    goods, mpdd, btad = tmp_path / "GoodsAD", tmp_path / "MPDD", tmp_path / "BTAD"
    for index in range(2):
        _picture(goods / "food_box" / "train" / "good" / f"000_{index:03d}.jpg")
        _picture(goods / "food_box" / "test" / "opened" / f"001_{index:03d}.jpg")
        _picture(goods / "food_box" / "ground_truth" / "opened" / f"001_{index:03d}.png", 255)
        _picture(mpdd / "metal_plate" / "train" / "good" / f"{index:03d}.png")
        _picture(mpdd / "metal_plate" / "test" / "major_rust" / f"{index:03d}.png")
        _picture(mpdd / "metal_plate" / "ground_truth" / "major_rust" / f"{index:03d}_mask.png", 255)
        _picture(btad / "01" / "train" / "ok" / f"{index:04d}.bmp")
        _picture(btad / "01" / "test" / "ko" / f"{index:04d}.bmp")
        _picture(btad / "01" / "ground_truth" / "ko" / f"{index:04d}.png", 255)
    for root, kind in ((goods, "opened"), (mpdd, "major_rust"), (btad, "ko")):
        samples = list(read_folder(root, parts=("test",)))
        assert len(samples) == 2 and all(s.defect == kind and s.masks and s.references for s in samples)
