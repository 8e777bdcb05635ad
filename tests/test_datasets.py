"""Readers, drawn parts and drawn defects: small trees of the exact layouts, and the shared photographs where they lie."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dcr2ad.datasets.defects import DEFECT_KINDS, draw_defect
from dcr2ad.datasets.drawn import PART_KINDS, draw_part, write_drawn
from dcr2ad.datasets.folder import balanced_subset, object_words, read_folder, with_knowledge
from dcr2ad.datasets.foreground import estimate_foreground
from dcr2ad.errors import ImageError, InputError, RecordError, UnknownNameError
from dcr2ad.images import load_mask
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.types import Sample

REAL_MINI = Path(__file__).parents[2] / "shared" / "data" / "real-mini"
needs_real_mini = pytest.mark.skipif(not REAL_MINI.is_dir(), reason=f"the shared photographs are not at {REAL_MINI}")


def _picture(path: Path, level: int = 120) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (32, 32), level).save(path)


def _mvtec(root: Path, categories: tuple[str, ...] = ("metal_nut", "solar_cell_mono")) -> Path:
    for category in categories:
        for index in range(3):
            _picture(root / category / "train" / "good" / f"{index:03d}.png")
            _picture(root / category / "test" / "good" / f"{index:03d}.png")
            _picture(root / category / "test" / "scratch" / f"{index:03d}.png")
            _picture(root / category / "ground_truth" / "scratch" / f"{index:03d}_mask.png", 255)
    return root


def _index(root: Path, rows: list[dict[str, object]]) -> Path:
    for row in rows:
        _picture(root / str(row["image"]))
    (root / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def test_mvtec_layout_gives_samples_with_masks_and_references_of_their_own_category(tmp_path: Path) -> None:
    reading = read_folder(_mvtec(tmp_path / "mvtec"), references=2)
    samples = list(reading)
    assert reading.layout == "mvtec" and not reading.skipped
    assert len(samples) == 18 and sum(s.is_anomalous for s in samples) == 6
    assert {s.object for s in samples} == {"metal nut", "solar cell"} and {s.dataset for s in samples} == {"mvtec"}
    for sample in samples:
        assert sample.image not in sample.references
        assert all(Path(r).parts[-4] == Path(sample.image).parts[-4] for r in sample.references)
        assert bool(sample.masks) == sample.is_anomalous and (sample.defect == "scratch") == sample.is_anomalous


def test_one_category_folder_reads_like_the_folder_of_categories(tmp_path: Path) -> None:
    root = _mvtec(tmp_path / "mvtec")
    one = [s.id for s in read_folder(root / "metal_nut")]
    assert one == [s.id for s in read_folder(root) if s.object == "metal nut"]


def test_a_layout_without_splits_gets_one_and_references_stay_inside_it(tmp_path: Path) -> None:
    root = _mvtec(tmp_path / "mvtec")
    train, dev = list(read_folder(root, split="train")), list(read_folder(root, split="dev"))
    assert len(train) == 12 and len(dev) == 6
    assert not {s.image for s in train} & {s.image for s in dev}
    assert not {r for s in train for r in s.references} & {r for s in dev for r in s.references}


def test_train_part_can_serve_as_references_only(tmp_path: Path) -> None:
    samples = list(read_folder(_mvtec(tmp_path / "mvtec"), parts=("test",)))
    assert samples and all("/test/" in s.image for s in samples) and all("/train/" in s.references[0] for s in samples)


def test_a_missing_mask_and_an_empty_image_are_named(tmp_path: Path) -> None:
    root = _mvtec(tmp_path / "mvtec", ("tile",))
    (root / "tile" / "ground_truth" / "scratch" / "001_mask.png").unlink()
    (root / "tile" / "test" / "good" / "000.png").write_bytes(b"")
    reading = read_folder(root)
    samples = list(reading)
    assert len(samples) == 8
    assert next(s for s in samples if s.id.endswith("scratch/001.png")).masks == ()
    whys = {Path(item.path).name: item.why for item in reading.skipped}
    assert whys == {
        "001_mask.png": "no such file; the image is kept without its mask",
        "000.png": "empty file; the image is left out",
    }


def test_plain_folders_with_and_without_kinds(tmp_path: Path) -> None:
    for name in ("good/a", "good/b", "bad/c", "bad/crack/d"):
        _picture(tmp_path / "bolts" / f"{name}.png")
    samples = {Path(s.image).stem: s for s in read_folder(tmp_path / "bolts", object_name="hex bolt")}
    assert [samples[k].is_anomalous for k in "abcd"] == [False, False, True, True]
    assert samples["c"].defect is None and samples["d"].defect == "crack"
    assert samples["a"].references == (samples["b"].image,) and samples["a"].object == "hex bolt"


def test_index_uses_its_own_reference_first_and_never_one_of_the_same_group(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"image": "g1.png", "label": "good", "part": "train", "group": "a", "split": "train", "category": "pcb"},
        {"image": "g2.png", "label": "good", "part": "train", "group": "a", "split": "train", "category": "pcb"},
        {"image": "g3.png", "label": "good", "part": "train", "group": "b", "split": "train", "category": "pcb"},
        {"image": "g4.png", "label": "good", "part": "train", "group": "c", "split": "dev", "category": "pcb"},
        {"image": "d1.png", "label": "defect", "defect": "short", "ref": "g2.png", "split": "train", "category": "pcb"},
    ]
    samples = {s.id: s for s in read_folder(_index(tmp_path / "set", rows), references=3)}
    assert [Path(r).name for r in samples["g1.png"].references] == ["g3.png"]
    assert Path(samples["d1.png"].references[0]).name == "g2.png" and len(samples["d1.png"].references) == 3
    assert samples["g4.png"].references == () and samples["d1.png"].object == "printed circuit board"
    assert samples["d1.png"].dataset == "set"


def test_a_row_listed_twice_is_read_once_and_named(tmp_path: Path) -> None:
    reading = read_folder(_index(tmp_path, [{"image": "a.png", "label": "good"}, {"image": "a.png", "label": "good"}]))
    assert len(list(reading)) == 1 and [item.why for item in reading.skipped] == ["listed twice; the first row is used"]


def test_bad_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read_folder(tmp_path / "none")
    with pytest.raises(InputError, match="no layout"):
        read_folder(tmp_path)
    with pytest.raises(InputError, match="no image of split 'test'"):
        read_folder(_mvtec(tmp_path / "mvtec"), split="test")
    (tmp_path / "index.jsonl").write_text('{"image": "a.png", "label": "fine"}\n')
    with pytest.raises(RecordError, match=r"index\.jsonl:1: label"):
        read_folder(tmp_path)


def test_knowledge_is_attached_by_label(tmp_path: Path) -> None:
    base = KnowledgeBase.builtin()
    samples = list(with_knowledge(read_folder(_mvtec(tmp_path / "mvtec", ("metal_nut",))), base))
    keys = {s.defect: s.right_key for s in samples}
    assert keys["scratch"] and "scratch" in base.get(keys["scratch"]).aliases
    assert keys[None] and base.get(keys[None]).is_normal


@given(
    counts=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4),
    wanted=st.integers(1, 40),
    seed=st.integers(0, 3),
)
def test_balanced_subset_takes_turns(counts: list[tuple[int, int]], wanted: int, seed: int) -> None:
    samples = [
        Sample(id=f"{o}-{bad}-{i}", image="x", dataset="d", object=f"o{o}", is_anomalous=bad, defect="k" if bad else None)
        for o, pair in enumerate(counts)
        for bad in (False, True)
        for i in range(pair[bad])
    ]
    chosen = balanced_subset(samples, wanted, seed)
    assert len(chosen) == min(wanted, len(samples)) == len({s.id for s in chosen})
    assert chosen == balanced_subset(samples, wanted, seed)
    by_object = {o: [s for s in chosen if s.object == f"o{o}"] for o in range(len(counts))}
    for o, members in by_object.items():
        if len(members) < sum(counts[o]):  # not used up: no other object has more than one more
            assert all(len(other) <= len(members) + 1 for other in by_object.values())
        bad = sum(s.is_anomalous for s in members)
        good = len(members) - bad
        if good < counts[o][0] and bad < counts[o][1]:
            assert abs(good - bad) <= 1


def test_object_words() -> None:
    assert [object_words(c) for c in ("pcb", "pcb3", "solar_cell_poly", "Metal-Nut")] == [
        "printed circuit board",
        "printed circuit board",
        "solar cell",
        "metal nut",
    ]


@needs_real_mini
def test_real_mini_is_read_whole_and_splits_never_share_a_reference_or_group() -> None:
    samples = list(read_folder(REAL_MINI, references=2))
    assert len(samples) == 1386
    by_split = {name: [s for s in samples if s.split == name] for name in ("train", "dev")}
    for field in ("group", "image"):
        first, second = ({getattr(s, field) for s in by_split[name]} - {None} for name in ("train", "dev"))
        assert not first & second
    assert not {r for s in by_split["train"] for r in s.references} & {s.image for s in by_split["dev"]}
    assert all(len(s.references) == 2 for s in samples)
    keyed = list(with_knowledge(samples, KnowledgeBase.builtin()))
    assert all(s.right_key for s in keyed)


@pytest.mark.parametrize("kind", PART_KINDS)
def test_parts_are_reproducible_and_differ_by_their_defect_alone(kind: str) -> None:
    good, empty = draw_part(kind, None, 3, 96)
    assert not empty.any() and good.size == (96, 96)
    assert np.array_equal(np.asarray(good), np.asarray(draw_part(kind, None, 3, 96)[0]))
    assert not np.array_equal(np.asarray(good), np.asarray(draw_part(kind, None, 4, 96)[0]))
    for defect in PART_KINDS[kind].defects:
        bad, mask = draw_part(kind, defect, 3, 96)
        changed = (np.abs(np.asarray(bad, dtype=int) - np.asarray(good, dtype=int)) > 12).any(axis=2)
        assert mask.any() and mask.mean() < 0.2, defect
        assert (changed & mask).any(), defect
        if defect not in PART_KINDS[kind].own:
            assert not (changed & ~mask).any(), defect
        else:  # a removed component also takes its shadow and highlights with it
            assert (changed & ~mask).sum() < 4 * mask.sum() + 60, defect


def test_every_drawn_label_leads_to_an_entry() -> None:
    base = KnowledgeBase.builtin()
    labels = {(kind, defect) for kind, part in PART_KINDS.items() for defect in part.defects}
    unknown = {d for kind, d in labels if base.resolve_label("drawn", object_words(kind), d, True) is None}
    assert not unknown


def test_drawn_parts_are_written_in_the_mvtec_layout(tmp_path: Path) -> None:
    written = write_drawn(tmp_path / "drawn", 1, seed=2, size=64)
    samples = list(read_folder(tmp_path / "drawn"))
    assert len(samples) == written == sum(2 + len(part.defects) for part in PART_KINDS.values())
    assert all(load_mask(s.masks[0]).any() for s in samples if s.is_anomalous)
    with pytest.raises(InputError, match="none"):
        write_drawn(tmp_path, 0)


def test_unknown_parts_and_defects_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="no drawn part"):
        draw_part("bolt", None, 0)
    with pytest.raises(UnknownNameError, match="no drawn defect 'hole'"):
        draw_part("metal_nut", "hole", 0)
    with pytest.raises(UnknownNameError, match="no drawn defect"):
        draw_defect(Image.new("RGB", (64, 64)), "rust", seed=0)
    with pytest.raises(ImageError, match="foreground"):
        draw_defect(Image.new("RGB", (64, 64)), "pit", seed=0, foreground=np.zeros((64, 64), dtype=bool))


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(DEFECT_KINDS), seed=st.integers(0, 10_000), grey=st.booleans())
def test_a_drawn_defect_changes_what_its_mask_says_and_stays_on_the_part(kind: str, seed: int, grey: bool) -> None:
    rng = np.random.default_rng(seed)
    levels = rng.normal(128, 10, (90, 120, 1 if grey else 3)).clip(0, 255).astype(np.uint8)
    levels[30:60:6, 30:90] //= 3  # strokes of a print
    image = Image.fromarray(np.broadcast_to(levels, (90, 120, 3)).copy())
    foreground = np.zeros((90, 120), dtype=bool)
    foreground[15:75, 20:100] = True
    drawn, mask = draw_defect(image, kind, seed=seed, foreground=foreground)
    changed = (np.asarray(drawn) != np.asarray(image)).any(axis=2)
    assert (
        not (changed & ~mask).any()
        and not (mask & ~foreground).any()
        and (
            kind == "misprint" or changed.sum() >= 0.3 * mask.sum()  # of a misprint's region the strokes change
        )
    )
    assert mask.any() or kind in {"misprint", "misplaced", "missing"}
    if grey:
        assert (np.ptp(np.asarray(drawn), axis=2) == 0).all()


def test_foreground_is_found_on_a_plain_ground_and_is_everything_elsewhere() -> None:
    scene = np.full((80, 80, 3), 30, dtype=np.uint8)
    scene[20:60, 20:60] = 200
    found = estimate_foreground(Image.fromarray(scene))
    assert found[40, 40] and not found[2, 2]
    assert estimate_foreground(Image.new("RGB", (50, 50), "grey")).all()
