"""Findings kept between runs: the expert's own, looked for once, and never those of other circumstances."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcr2ad.errors import ImageError, InputError
from dcr2ad.expert import Expert
from dcr2ad.stages import kept_findings as module
from dcr2ad.stages.findings import SetsLimits
from dcr2ad.stages.kept_findings import KeptFindings
from dcr2ad.types import ExpertFindings, KindGuess

GUESS = KindGuess(key="General.surface.scratch", title="Scratch", probability=0.25)


@pytest.fixture(scope="module")
def expert(nano_folder: Path) -> Expert:
    return Expert(nano_folder)


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, str]:
    """Three plates of noise, the second with a dark bar, and a file that is no image."""
    names = {}
    for number, name in enumerate(("good", "bad", "other")):
        pixels = np.random.default_rng(number).normal(140, 9, (96, 96)).clip(0, 255).astype(np.uint8)
        if name == "bad":
            pixels[20:40, 10:80] = 10
        Image.fromarray(pixels).convert("RGB").save(tmp_path / f"{name}.png")
        names[name] = str(tmp_path / f"{name}.png")
    (tmp_path / "text.png").write_text("no image")
    return names | {"text": str(tmp_path / "text.png")}


@pytest.fixture
def looks(expert: Expert, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that the expert was made to look at."""
    seen: list[str] = []
    inspect = Expert.inspect

    def counted(self: Expert, image: str, references: Sequence[str]) -> tuple[ExpertFindings, np.ndarray]:
        seen.append(Path(image).name)
        return inspect(self, image, references)

    monkeypatch.setattr(Expert, "inspect", counted)
    return seen


def test_the_experts_own_findings_looked_for_once(
    expert: Expert, parts: dict[str, str], looks: list[str], tmp_path: Path
) -> None:
    right, _ = expert.inspect(parts["bad"], [parts["good"]])
    assert right.is_anomalous
    looks.clear()
    for _ in range(2):
        kept = KeptFindings(expert, tmp_path / "kept")  # as a new process has it
        assert kept.inspect(parts["bad"], [parts["good"]]) == (right, None), "equal to the last bit"
    shutil.copy(parts["bad"], tmp_path / "renamed.png")
    assert kept.inspect(tmp_path / "renamed.png", [parts["good"]])[0] == right
    assert looks == ["bad.png"]
    assert isinstance(kept, SetsLimits), "a line's own limit goes through it"


def test_other_circumstances_are_looked_at_anew(
    expert: Expert, parts: dict[str, str], looks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = KeptFindings(expert, tmp_path / "kept")
    first, _ = kept.inspect(parts["bad"], [parts["good"]])
    assert kept.inspect(parts["bad"], [parts["other"]])[0] != first
    assert kept.inspect(parts["bad"], [parts["good"], parts["other"]])[0] != first
    assert kept.with_limit(99.0).inspect(parts["bad"], [parts["good"]])[0].threshold == 99.0
    assert len(looks) == 4
    digest = module.content_digest(parts["bad"])
    monkeypatch.setattr(expert, "held_out", {digest: (GUESS,)})
    kept.inspect(parts["bad"], [parts["good"]])
    monkeypatch.setattr(module, "_code", lambda: "another version of the expert")
    kept.inspect(parts["bad"], [parts["good"]])
    assert len(looks) == 6


def test_nothing_wrong_is_kept_and_nothing_torn_is_believed(
    expert: Expert, parts: dict[str, str], looks: list[str], tmp_path: Path
) -> None:
    kept = KeptFindings(expert, tmp_path / "kept")
    for _ in range(2):
        with pytest.raises(ImageError):
            kept.inspect(parts["text"], [parts["good"]])
        with pytest.raises(ImageError, match="no such image"):
            kept.inspect(tmp_path / "absent.png", [parts["good"]])
        with pytest.raises(InputError, match="no reference"):
            kept.inspect(parts["good"], [])
    assert not list((tmp_path / "kept").rglob("*.json"))
    right, _ = kept.inspect(parts["bad"], [parts["good"]])
    (file,) = (tmp_path / "kept").rglob("*.json")
    file.write_text(file.read_text()[:40])
    assert kept.inspect(parts["bad"], [parts["good"]])[0] == right
    assert ExpertFindings.model_validate_json(file.read_text()) == right


def test_a_folder_that_cannot_be_written_costs_the_keeping_alone(
    expert: Expert, parts: dict[str, str], looks: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("stands in the way")
    kept = KeptFindings(expert, tmp_path / "file" / "kept")
    found = [kept.inspect(parts["bad"], [parts["good"]])[0] for _ in range(2)]
    assert found[0] == found[1] and looks == ["bad.png"] * 2


def test_what_decides_the_findings_is_in_the_fingerprint(expert: Expert, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data told by different experts never mix, so neither with and without held-out guesses, nor of two precisions."""
    seen = [expert.fingerprint, expert.with_limit(99.0).fingerprint]
    monkeypatch.setattr(expert, "half", not expert.half)
    seen.append(expert.fingerprint)
    monkeypatch.setattr(expert, "held_out", {"0" * 64: (GUESS,)})
    seen.append(expert.fingerprint)
    monkeypatch.setattr(expert, "held_out", {"0" * 64: (GUESS.model_copy(update={"probability": 0.5}),)})
    seen.append(expert.fingerprint)
    assert len(set(seen)) == 5
