"""The visual expert: what it says of parts whose defect is known, and how it keeps features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from dcr2ad import expert as module
from dcr2ad.errors import ImageError, InputError
from dcr2ad.expert import THRESHOLD, UNIT, Expert, even_out
from dcr2ad.patches import GRID, Features, self_distance
from dcr2ad.regions import cell_scores, connected, elongation, tone


@pytest.fixture(scope="module")
def expert(nano_folder: Path) -> Expert:
    return Expert(nano_folder)


def plate(seed: int, size: tuple[int, int] = (300, 300)) -> Image.Image:
    """A sound part: a brushed grey plate with two holes."""
    noise = np.random.default_rng(seed).normal(0, 9, (size[1], size[0]))
    image = Image.fromarray(np.clip(140 + noise, 0, 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(1)).convert("RGB")
    draw = ImageDraw.Draw(image)
    for x in (0.3, 0.7):
        centre = (x * size[0], 0.5 * size[1])
        draw.ellipse([centre[0] - 22, centre[1] - 22, centre[0] + 22, centre[1] + 22], fill=(60, 60, 60))
    return image


def save(image: Image.Image, path: Path) -> Path:
    image.save(path)
    return path


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("parts")
    blot, scratch = plate(3), plate(4)
    star = [(225, 18), (246, 34), (268, 16), (258, 42), (272, 66), (244, 54), (220, 68), (234, 42)]  # no hole looks like it
    ImageDraw.Draw(blot).polygon(star, fill=(15, 15, 15))
    ImageDraw.Draw(scratch).line([20, 262, 190, 240], fill=(250, 250, 250), width=5)
    images = {"reference": plate(0), "other": plate(1), "sound": plate(2), "blot": blot, "scratch": scratch}
    images["wide"] = plate(5, (640, 320))
    return {name: save(image, folder / f"{name}.png") for name, image in images.items()}


def test_a_sound_part_is_normal_and_has_no_hot_region(expert: Expert, parts: dict[str, Path]) -> None:
    findings, anomaly = expert.inspect(parts["sound"], [parts["reference"]])
    assert not findings.is_anomalous
    assert (findings.extent, findings.box, findings.tone, findings.elongation) == (0.0, None, "same", 1.0)
    assert anomaly.shape == (GRID, GRID)
    assert anomaly.dtype == np.float32


def test_a_dark_blot_is_found_where_it_is(expert: Expert, parts: dict[str, Path]) -> None:
    findings, anomaly = expert.inspect(parts["blot"], [parts["reference"]])
    assert findings.is_anomalous
    assert findings.cell == int(np.argmax(findings.cells)) == 2
    assert findings.tone == "darker"
    assert findings.elongation < 2.5
    assert 0 < findings.extent < 0.2
    assert findings.box is not None
    left, top, right, bottom = findings.box
    assert left < 245 / 300 < right
    assert top < 40 / 300 < bottom
    assert findings.score == pytest.approx(float(np.sort(anomaly, axis=None)[-4:].mean()))


def test_a_bright_scratch_is_long(expert: Expert, parts: dict[str, Path]) -> None:
    findings, _ = expert.inspect(parts["scratch"], [parts["reference"]])
    assert findings.is_anomalous
    assert findings.cell in (6, 7)
    assert findings.tone == "brighter"
    assert findings.elongation > 2.5


def test_a_reference_explains_itself(expert: Expert, parts: dict[str, Path]) -> None:
    findings, anomaly = expert.inspect(parts["reference"], [parts["reference"]])
    assert findings.score < THRESHOLD / 2
    assert anomaly.mean() < 0


def test_the_score_is_the_raw_distance_in_units_above_the_references_own(expert: Expert, parts: dict[str, Path]) -> None:
    findings, _ = expert.inspect(parts["blot"], [parts["reference"]])
    ordinary = findings.raw - findings.score * UNIT
    assert ordinary == pytest.approx(self_distance([expert._features(parts["reference"], views=True)]), abs=1e-6)
    assert 0 < ordinary < findings.raw


def test_more_references_never_raise_the_raw_distance(expert: Expert, parts: dict[str, Path]) -> None:
    one, _ = expert.inspect(parts["blot"], [parts["reference"]])
    two, _ = expert.inspect(parts["blot"], [parts["reference"], parts["other"]])
    assert two.raw <= one.raw + 1e-6
    assert two.is_anomalous


def test_a_reference_of_another_aspect_serves(expert: Expert, parts: dict[str, Path]) -> None:
    findings, anomaly = expert.inspect(parts["blot"], [parts["wide"]])
    assert anomaly.shape == (GRID, GRID)
    assert findings.cell == 2


@pytest.mark.parametrize("able", [True, False])
def test_in_bfloat16_the_findings_are_the_same_but_for_rounding(
    able: bool, expert: Expert, nano_folder: Path, parts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "cpu_has_bfloat16", lambda: able)
    quick = Expert(nano_folder, precision="auto")
    for name in ("sound", "blot"):
        one, two = (which.inspect(parts[name], [parts["reference"]])[0] for which in (quick, expert))
        assert one.score == pytest.approx(two.score, abs=0.1 if able else 0)
        assert (one.cell, one.is_anomalous, one.tone) == (two.cell, two.is_anomalous, two.tone)


def test_no_reference_is_refused(expert: Expert, parts: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="no reference"):
        expert.inspect(parts["blot"], [])


def test_a_file_that_is_no_image_is_refused(expert: Expert, parts: dict[str, Path], tmp_path: Path) -> None:
    text = tmp_path / "note.png"
    text.write_text("not an image")
    with pytest.raises(ImageError):
        expert.inspect(text, [parts["reference"]])


# --- features ----------------------------------------------------------------------------------------------------------


def count_encodings(expert: Expert, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    calls: list[bool] = []
    encode = expert._encode

    def counting(path: str | Path, *, views: bool) -> Features:
        calls.append(views)
        return encode(path, views=views)

    monkeypatch.setattr(expert, "_encode", counting)
    return calls


def test_a_shared_reference_is_encoded_once_whatever_its_name(
    nano_folder: Path, parts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = Expert(nano_folder)
    calls = count_encodings(fresh, monkeypatch)
    copy = tmp_path / "copy.png"
    copy.write_bytes(parts["reference"].read_bytes())
    first, _ = fresh.inspect(parts["sound"], [parts["reference"]])
    again, _ = fresh.inspect(parts["sound"], [copy])
    fresh.inspect(parts["blot"], [copy])
    assert sorted(calls) == [False, False, True]
    assert first == again


def test_the_oldest_features_are_forgotten(nano_folder: Path, parts: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    small = Expert(nano_folder, keep=1)
    calls = count_encodings(small, monkeypatch)
    before, _ = small.inspect(parts["sound"], [parts["reference"]])
    after, _ = small.inspect(parts["sound"], [parts["reference"]])
    assert len(calls) == 4
    assert before == after


def test_features_survive_on_disk_and_a_torn_file_is_computed_again(
    nano_folder: Path, parts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = Expert(nano_folder, tmp_path).inspect(parts["blot"], [parts["reference"]])
    second = Expert(nano_folder, tmp_path)
    calls = count_encodings(second, monkeypatch)
    assert second.inspect(parts["blot"], [parts["reference"]])[0] == first
    assert calls == []
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:1000])
    third = Expert(nano_folder, tmp_path)
    assert third.inspect(parts["blot"], [parts["reference"]])[0] == first


# --- numbers -----------------------------------------------------------------------------------------------------------


def test_elongation_is_the_ratio_of_a_rectangles_sides() -> None:
    rows, columns = np.nonzero(np.ones((2, 8), bool))
    assert elongation(rows, columns) == pytest.approx(4.0)
    assert elongation(np.array([3]), np.array([5])) == pytest.approx(1.0)


def test_connected_follows_diagonals_and_leaves_islands() -> None:
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]], bool)
    assert connected(mask, (0, 0)).sum() == 3


def test_a_tone_needs_a_visible_difference() -> None:
    assert (tone(-0.2), tone(0.01), tone(0.2)) == ("darker", "same", "brighter")


def test_each_cell_is_scored_by_its_own_patches() -> None:
    anomaly = np.zeros((GRID, GRID), np.float32)
    anomaly[18:21, 2:5] = 9.0
    scores = cell_scores(anomaly)
    assert scores.shape == (9,)
    assert int(scores.argmax()) == 6
    assert scores[2] == 0


def test_evening_out_brings_two_exposures_closer() -> None:
    rng = np.random.default_rng(0).normal(0, 1, (64, 64, 1))
    dark, light = (
        np.clip(level + spread * rng, 0, 255).astype(np.uint8).repeat(3, 2) for level, spread in ((40, 5), (190, 30))
    )
    gap = abs(float(np.mean(even_out(Image.fromarray(dark)))) - float(np.mean(even_out(Image.fromarray(light)))))
    assert gap == pytest.approx(abs(dark.mean() - light.mean()) / 2, abs=2)
    flat = even_out(Image.new("RGB", (20, 20), (7, 7, 7)))
    assert np.ptp(np.asarray(flat)) == 0
