"""What an evaluation says of images that its model was trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from dcr2ad import leaks
from dcr2ad.images import content_digest, load_image
from dcr2ad.leaks import hash_file
from dcr2ad.models.adapters import MARKER, TrainedModel
from dcr2ad.stages.overlap import training_overlap
from dcr2ad.types import Question
from tests.tiny import tiny_photograph, tiny_questions


def trained(folder: Path, images: list[str], *, base: str = "nano:base") -> str:
    """A model's folder as far as the guard reads it."""
    about = TrainedModel(
        base=base,
        kind="adapter",
        stage="sft",
        seed=0,
        recipe={},
        digest="d",
        base_digest="b",
        train_images={content_digest(path): Path(path).name for path in images},
        train_hashes={content_digest(path): hash_file(path) for path in images},
    )
    folder.mkdir()
    (folder / MARKER).write_text(about.model_dump_json())
    return str(folder)


@pytest.fixture
def questions(tmp_path: Path) -> list[Question]:
    return tiny_questions(tmp_path / "photographs", 8)


def test_images_trained_on_are_found_by_content_and_look_each_read_once(
    questions: list[Question], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list(dict.fromkeys(question.sample.image for question in questions))
    larger = tmp_path / "larger.png"
    with Image.open(asked[1]) as image:
        image.resize((image.width * 3, image.height * 3), Image.Resampling.BICUBIC).save(larger)
    spec = trained(tmp_path / "model", [asked[0], str(larger)])
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    bad = questions[0].model_copy(update={"sample": questions[0].sample.model_copy(update={"image": str(broken)})})
    opened: list[str] = []
    monkeypatch.setattr(leaks, "load_image", lambda path, **how: (opened.append(str(path)), load_image(path, **how))[1])
    seen: list[tuple[int, int]] = []
    found = training_overlap(spec, [*questions, *questions, bad], lambda done, total: seen.append((done, total)))
    assert (found["recorded"], found["looked_at"], found["overlap"]) == (2, len(asked), 2)
    assert found["by"] == {"content": 1, "look": 1}
    assert found["matches"][0] == f"{asked[0]} is {Path(asked[0]).name} by content"
    assert sorted(opened) == sorted([*asked[1:], str(broken)])  # what its bytes tell is not decoded at all
    assert seen[-1] == (len(asked) + 1, len(asked) + 1)


def test_training_of_the_bases_below_counts_and_nothing_on_record_is_said(questions: list[Question], tmp_path: Path) -> None:
    below = trained(tmp_path / "sft", [questions[0].sample.image])
    above = trained(tmp_path / "krdpo", [tiny_photograph(tmp_path / "other", 900)], base=below)
    found = training_overlap(above, questions)
    assert (found["recorded"], found["overlap"]) == (2, 1)
    for spec in ("nano:base", "openai:model@http://127.0.0.1:1/v1"):
        assert training_overlap(spec, questions) == {
            "recorded": 0,
            "looked_at": 0,
            "overlap": 0,
            "by": {},
            "matches": [],
        }
