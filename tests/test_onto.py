"""Defects drawn onto good photographs: exact masks, difficulty, resolved kinds, and the verbs that draw them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcr2ad.artifacts import read_records
from dcr2ad.config import InstructSettings
from dcr2ad.datasets.defects import DEFECT_KINDS, draw_defect
from dcr2ad.datasets.drawn import draw_part
from dcr2ad.datasets.folder import read_folder
from dcr2ad.datasets.foreground import estimate_foreground, estimate_light
from dcr2ad.datasets.onto import DRAWN, draw_planned, plan_defects, write_onto
from dcr2ad.datasets.two_tone import two_levels
from dcr2ad.errors import ImageError, InputError
from dcr2ad.images import load_image, load_mask
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.leaks import read_forbidden
from dcr2ad.questions import Rejected
from dcr2ad.report.sheet import contact_sheet
from dcr2ad.stages.building import BuildSummary
from dcr2ad.stages.instruct import build_instructions
from dcr2ad.types import Question, Sample, Subtask

BASE = KnowledgeBase.builtin()


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A line with good photographs alone."""
    folder = tmp_path_factory.mktemp("line")
    good = folder / "metal_nut" / "train" / "good"
    good.mkdir(parents=True)
    for number in range(6):
        draw_part("metal_nut", None, number, 160)[0].save(good / f"{number}.png")
    return folder


def _good(line: Path) -> list[Sample]:
    return list(read_folder(line))


def test_the_mask_is_what_differs_from_the_photograph_and_kinds_resolve(line: Path, tmp_path: Path) -> None:
    plans = list(plan_defects(_good(line), len(DEFECT_KINDS), tmp_path, BASE, seed=3))
    assert len(plans) == 6 * len(DEFECT_KINDS)
    drawn = 0
    for planned in plans:
        assert planned.sample.right_key in BASE and planned.source.image not in planned.sample.references
        try:
            draw_planned(planned)
        except ImageError as error:
            assert "seen" in error.what
            continue
        drawn += 1
        before, after = (np.asarray(load_image(path)) for path in (planned.source.image, planned.sample.image))
        changed, mask = (before != after).any(axis=2), load_mask(planned.sample.masks[0])
        assert not (changed & ~mask).any() and changed.sum() > 0.6 * mask.sum(), planned.kind
    assert drawn > 0.7 * len(plans)
    of_one = [planned.sample.defect for planned in plans if planned.source.id == plans[0].source.id]
    assert sorted(of_one, key=str) == sorted(DEFECT_KINDS)


def test_a_scale_makes_drawn_defects_larger(line: Path, tmp_path: Path) -> None:
    areas = []
    for scale in (1.0, 2.0):
        folder = tmp_path / f"{scale:g}"
        (planned, *_) = plan_defects(_good(line), 1, folder, BASE, seed=3, kinds=["hole"], scale=scale)
        draw_planned(planned)
        areas.append(load_mask(planned.sample.masks[0]).sum())
    assert areas[1] > 2 * areas[0] > 0


@pytest.mark.parametrize("kind", DEFECT_KINDS)
def test_a_lower_strength_is_smaller_or_paler_never_a_pale_hole(kind: str) -> None:
    image = _printed(200, 200)
    inside = np.zeros((200, 200), dtype=bool)
    inside[20:180, 20:180] = True
    full, slight = (draw_defect(image, kind, seed=4, foreground=inside, strength=strength) for strength in (1.0, 0.55))
    changed = [np.abs(np.asarray(after, dtype=int) - np.asarray(image, dtype=int)).sum() for after, _ in (full, slight)]
    assert 0 < changed[1] < changed[0]
    if kind == "hole":
        assert np.asarray(slight[0])[slight[1]].min() < 30


def _printed(width: int, height: int) -> Image.Image:
    """A grey plate with print: dark strokes with gaps on a light ground."""
    levels = np.full((height, width), 170, dtype=np.uint8)
    rows, columns = np.mgrid[:height, :width]
    levels[(rows % 18 < 6) & (columns % 26 < 17)] = 60
    return Image.fromarray(np.repeat(levels[..., None], 3, axis=2))


@pytest.mark.parametrize("kind", ["misprint", "misplaced", "missing"])
def test_a_pattern_is_upset_only_where_there_is_one(kind: str) -> None:
    _, mask = draw_defect(_printed(160, 160), kind, seed=1)
    assert mask.any()
    with pytest.raises(ImageError, match=f"{kind} defect needs a pattern"):
        draw_defect(Image.new("RGB", (160, 160), (150, 150, 150)), kind, seed=1)


def test_a_dent_is_dark_towards_the_light_and_bright_beyond() -> None:
    plate = Image.new("RGB", (240, 240), (150, 150, 150))
    after, mask = draw_defect(plate, "dent", seed=3, light=(-1.0, 0.0))
    levels, columns = np.asarray(after, dtype=float).mean(axis=2), np.nonzero(mask)[1]
    left = mask & (np.arange(240)[None] < np.median(columns))
    assert levels[left].mean() < 145 < 155 < levels[mask & ~left].mean()


@pytest.mark.parametrize("kind", ["crack", "pit", "misplaced"])
def test_a_large_photograph_is_drawn_on_in_a_window(kind: str) -> None:
    """A window is enlarged where the defect is larger than it; the mask is its extent in the photograph."""
    photograph = _printed(150, 110).resize((3000, 2200), Image.Resampling.BICUBIC)
    after, mask = draw_defect(photograph, kind, seed=2)
    assert after.size == photograph.size and mask.shape == (2200, 3000)
    changed = (np.asarray(after) != np.asarray(photograph)).any(axis=2)
    assert changed.any() and not (changed & ~mask).any() and changed.sum() > 0.6 * mask.sum()


def test_a_photograph_beyond_the_limit_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcr2ad.datasets.defects.MOST_PIXELS", 99_999)
    with pytest.raises(ImageError, match="400x300 pixels is too large to draw on"):
        draw_defect(Image.new("RGB", (400, 300)), "pit", seed=0)


def test_the_light_is_read_off_the_part() -> None:
    down, right = np.mgrid[0:1:60j, 0:1:80j]
    inside = np.ones((60, 80), dtype=bool)
    assert estimate_light(0.3 + 0.4 * right, inside) == pytest.approx((1.0, 0.0), abs=0.01)
    assert estimate_light(0.7 - 0.3 * down, inside) == pytest.approx((0.0, -1.0), abs=0.01)
    assert estimate_light(np.random.default_rng(0).uniform(size=(60, 80)), inside) == (-0.6, -0.8)


def test_no_chip_without_an_outline_and_nothing_invisible(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="outline"):
        draw_defect(Image.new("RGB", (64, 64), (120, 120, 120)), "chip", seed=0)
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    sample = Sample(id="n", image=str(tmp_path / "noise.png"), dataset="d", object="cloth", is_anomalous=False)
    plans = [plan for seed in range(9) for plan in plan_defects([sample], 1, tmp_path, BASE, seed=seed, kinds=["misprint"])]
    with pytest.raises(ImageError, match="cannot be seen"):
        for planned in plans:
            draw_planned(planned)


def test_the_foreground_is_the_largest_region_alone() -> None:
    pixels = np.full((160, 240, 3), 60, dtype=np.uint8)
    pixels[40:130, 60:180] = (210, 170, 110)
    pixels[2:8, 150:235] = 250
    found = estimate_foreground(Image.fromarray(pixels))
    assert found[42:128, 62:178].all() and not found[:20].any() and found.sum() < 1.15 * 90 * 120


def _build(line: Path, out: Path, **how: object) -> BuildSummary:
    settings = InstructSettings(split="", draw_defects=2, expert=False)
    return build_instructions(line, out, BASE, settings, seed=5, **how)  # type: ignore[arg-type]


def test_instruct_on_good_photographs_alone(line: Path, tmp_path: Path) -> None:
    made = _build(line, tmp_path / "a")
    samples = list(read_records(tmp_path / "a" / "samples.jsonl", Sample))
    assert made.images == len(samples) and made.drawn == made.defective == sum(s.id.startswith(DRAWN) for s in samples) > 8
    assert made.images - made.drawn == 6 and made.drawn + made.rejected.get("no defect could be drawn", 0) == 12
    located = [q for q in read_records(tmp_path / "a" / "questions.jsonl", Question) if q.sample.is_anomalous]
    assert {q.subtask for q in located} >= {
        Subtask.DETECTION,
        Subtask.LOCALIZATION,
        Subtask.CLASSIFICATION,
    }


def test_a_stopped_run_draws_the_rest_to_the_same_bytes(line: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _build(line, tmp_path / "a", progress=stop)
    some = {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "drawn").rglob("*.png")}
    whole = _build(line, tmp_path / "a")
    assert all(path.stat().st_mtime_ns == time for path, time in some.items()) and some
    other = tmp_path / "b"
    assert _build(line, other) == whole
    for name in ("samples.jsonl", "questions.jsonl", "rejected.jsonl"):
        assert (other / name).read_text().replace(str(other), str(tmp_path / "a")) == (tmp_path / "a" / name).read_text()


def test_a_forbidden_photograph_is_not_drawn_onto(line: Path, tmp_path: Path) -> None:
    one = tmp_path / "bench"
    one.mkdir()
    source = line / "metal_nut" / "train" / "good" / "2.png"
    (one / "x.png").write_bytes(source.read_bytes())
    _build(line, tmp_path / "a", forbidden=read_forbidden([one]))
    assert not list((tmp_path / "a" / "drawn").rglob("2-*.png"))
    refused = [row.sample for row in read_records(tmp_path / "a" / "rejected.jsonl", Rejected) if "benchmark" in row.reason]
    assert sum(sample.startswith(DRAWN) for sample in refused) >= 2


def test_onto_writes_a_folder_that_is_read(line: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    done, dropped = write_onto(_good(line), tmp_path, 3, BASE, seed=1, progress=lambda *n: seen.append(n))
    assert seen[-1] == (18, 18) and len(done) + sum(dropped.values()) == 18
    samples = list(read_folder(tmp_path))
    defective = [sample for sample in samples if sample.is_anomalous]
    assert len(defective) == len(done) and len(samples) == len(done) + 6 and all(s.masks and s.references for s in defective)
    with pytest.raises(InputError, match="none"):
        write_onto([], tmp_path, 3, BASE, seed=1)


def test_a_contact_sheet_holds_picture_and_outlined_mask() -> None:
    mask = np.zeros((50, 50), dtype=bool)
    mask[20:30, 20:30] = True
    sheet = contact_sheet(
        [("a", Image.new("RGB", (50, 50)), mask), ("b", Image.new("RGB", (50, 50)), None)], columns=2, side=60
    )
    assert sheet.size == (120, 152)
    red = (np.asarray(sheet) == (220, 30, 30)).all(axis=2)
    assert red.any() and not red[:, :60].any()


@pytest.mark.parametrize("kind", DEFECT_KINDS)
def test_a_picture_of_two_levels_keeps_them(kind: str) -> None:
    """A camera that binarises shows no half-tones of a defect either."""
    tracks = np.full((200, 200), 5, dtype=np.uint8)
    tracks[20:180:40] = tracks[21:180:40] = tracks[22:180:40] = tracks[:, 60:72] = 250
    board, drawn = Image.fromarray(np.stack([tracks] * 3, axis=2)), 0
    for seed in range(6):
        try:
            picture, mask = draw_defect(board, kind, seed=seed)
        except ImageError:
            continue  # a chip wants an outline
        after = np.asarray(picture)
        assert set(np.unique(after)) <= {5, 250}
        assert np.array_equal((after != np.asarray(board)).any(axis=2), mask)
        drawn += bool(mask.any())
    assert drawn or kind in {"chip", "scratch", "dent", "discolouration"}  # pale ones do not cross over: none is drawn


def test_only_two_far_levels_make_a_picture_two_toned() -> None:
    noise = np.random.default_rng(0).integers(0, 12, (64, 64))
    board = np.where(np.arange(64) % 8 < 4, 235, 4)[None] + noise
    found = two_levels(Image.fromarray(board.astype(np.uint8)).convert("RGB"))
    assert found is not None and abs(found[0] - 9) <= 3 and abs(found[1] - 240) <= 3
    for other in (np.full((64, 64), 128), np.linspace(0, 255, 64)[None].repeat(64, axis=0), 120 + noise):
        assert two_levels(Image.fromarray(other.astype(np.uint8)).convert("RGB")) is None
