"""A line of one's own: which photographs are used, and the whole way from good photographs to a model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from dcr2ad.artifacts import read_manifest, read_records, write_records, write_text
from dcr2ad.config import load_recipe
from dcr2ad.datasets.drawn import write_drawn
from dcr2ad.datasets.folder import read_folder
from dcr2ad.datasets.good import FEWEST, MOST, forbid_bench, good_photographs, usable, write_index
from dcr2ad.datasets.layouts import Row
from dcr2ad.errors import InputError
from dcr2ad.limits import LEAST
from dcr2ad.models.adapters import MARKER, TrainedModel, read_trained
from dcr2ad.models.hf import HFModel
from dcr2ad.stages.adapt import BESIDE, HOUR, _settings, _strength, adapt
from dcr2ad.types import ExpertFindings, Question, Sample
from tests.tiny import tiny_internvl, tiny_photograph

SMALL = """
[instruct]
draw_defects = 3
[sft]
learning_rate = 3e-3
method = "lora"
lora_rank = 4
batch_size = 4
gradient_accumulation = 1
max_steps = 3
[mine]
threshold = 1.0
wanted = 6
[synthesize]
candidates = 3
length_ratio = 0.5
[krdpo]
learning_rate = 2e-3
method = "lora"
lora_rank = 4
batch_size = 2
gradient_accumulation = 1
max_steps = 2
[[evaluate.protocols]]
context = "none"
"""


@contextmanager
def bar(label: str) -> Iterator[Callable[[int, int], None]]:
    yield lambda done, total: None


@pytest.mark.parametrize(("from_on", "taken"), [(1.0, 1.0), (1.6, 1.6), (9.9, 2.4)])
def test_defects_are_drawn_as_strongly_as_the_expert_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, from_on: float, taken: float
) -> None:
    """The weakest strength of which the expert sees half, else the strongest; known to a run that goes on."""
    write_drawn(tmp_path / "drawn", 1, seed=0, size=112)
    line = [sample for sample in read_folder(tmp_path / "drawn") if not sample.is_anomalous]

    def inspect(sample: Sample, *_: object) -> tuple[Sample, None]:
        assert sample.references and sample.references[0] not in {sample.image}
        strong = float(Path(sample.image).parents[2].name) >= from_on
        found = ExpertFindings(
            score=5.0 if strong else 1.0, raw=0, threshold=3, cell=0, cells=(0.0,) * 9, extent=0, elongation=1, tone="same"
        )
        return sample.model_copy(update={"expert": found}), None

    monkeypatch.setattr("dcr2ad.stages.adapt.Expert", lambda: None)
    monkeypatch.setattr("dcr2ad.stages.adapt.inspect_sample", inspect)
    said: list[str] = []
    assert _strength(line, [], tmp_path / "out", 0, bar, said.append) == taken
    assert f"drawn at {taken:g}" in said[0] and not (tmp_path / "out" / "tried").exists()
    monkeypatch.delattr("dcr2ad.stages.adapt.inspect_sample")
    assert _strength(line, [], tmp_path / "out", 0, bar, said.append) == taken and len(said) == 1


def test_plain_photographs_an_index_and_good_folders_are_read(tmp_path: Path) -> None:
    for number in range(3):
        tiny_photograph(tmp_path / "gear_wheels", number)
    (tmp_path / "gear_wheels" / "notes.txt").write_text("no image")
    flat = good_photographs(tmp_path / "gear_wheels", None, ())
    assert len(flat) == 3 and {sample.object for sample in flat} == {"gear wheels"}
    assert {s.object for s in good_photographs(tmp_path / "gear_wheels", "cog", ())} == {"cog"}
    rows = [
        Row(image=flat[0].image, label="good", dataset="a", category="nut", split="train"),
        Row(image=flat[1].image, label="good", dataset="a", category="nut", split="dev"),
        Row(image=flat[2].image, label="defect", dataset="a", category="nut", split="train"),
    ]
    write_records(tmp_path / "index.jsonl", rows)
    assert [s.image for s in good_photographs(tmp_path / "index.jsonl", None, ())] == [flat[0].image], "dev is for measuring"
    with pytest.raises(InputError, match="no such folder"):
        good_photographs(tmp_path / "absent", None, ())


def test_what_is_measured_on_or_damaged_is_left_out_and_said(tmp_path: Path) -> None:
    for number in range(FEWEST + 1):
        tiny_photograph(tmp_path / "line", number)
    (tmp_path / "line" / "torn.png").write_bytes(b"\x89PNG")
    copy = tmp_path / "bench" / "good" / "copy.png"
    copy.parent.mkdir(parents=True)
    line = good_photographs(tmp_path / "line", None, ())
    Image.open(line[0].image).save(copy)
    kept, left_out = usable(line, forbid_bench(tmp_path / "bench", ()))
    assert len(kept) == FEWEST and left_out == {"in the benchmark": 1, "cannot be read": 1}
    with pytest.raises(InputError, match=r"can be used.*1 cannot be read"):
        usable([*kept[:2], line[-1]], None)
    many, said = usable([kept[0]] * (MOST + 5), None)
    assert len(many) == MOST and said == {f"more than {MOST}": 5}


def test_the_recipe_of_an_hour_is_the_method() -> None:
    assert [variant.train for variant in HOUR.variants] == ["nothing", "sft", "krdpo"]
    assert HOUR.krdpo.reasoning == "matched" and HOUR.mine.threshold == 0.1
    assert {cell.context for cell in HOUR.evaluate.cells} == {"none", "routed"}


def test_a_start_from_an_adapters_folder_keeps_its_shape(tmp_path: Path) -> None:
    trained = TrainedModel(
        base="nano:base",
        kind="adapter",
        stage="sft",
        seed=0,
        recipe={"lora_rank": 8, "lora_alpha": 24, "train_projector": True, "learning_rate": 1.0},
        digest="d",
        base_digest="b",
        train_images={},
    )
    write_text(tmp_path / MARKER, trained.model_dump_json())
    for stage in ("sft", "krdpo"):
        kept = getattr(_settings(HOUR, 20, str(tmp_path), 0), stage)
        assert (kept.lora_rank, kept.lora_alpha, kept.train_projector) == (8, 24, True)
        assert kept.learning_rate == getattr(HOUR, stage).learning_rate
        assert getattr(_settings(HOUR, 20, "nano:base", 0), stage) == getattr(HOUR, stage)


def test_photographs_that_others_are_compared_with_are_not_asked_about(tmp_path: Path) -> None:
    for number in range(8):
        tiny_photograph(tmp_path / "line", number)
    line = good_photographs(tmp_path / "line", None, ())
    write_index(line[:1], line[3:], tmp_path / "good", beside=line[1:3])
    asked = list(read_folder(tmp_path / "good", split="train", parts=("test",), references=2))
    assert [sample.image for sample in asked] == [sample.image for sample in line[3:]]
    assert all(set(sample.references) == {line[1].image, line[2].image} for sample in asked)
    write_index(line[:1], line[1:], tmp_path / "few")
    served = list(read_folder(tmp_path / "few", split="train", parts=("test",)))
    assert len(served) == 7 and all(len(s.references) == 1 and s.references[0] != s.image for s in served)
    assert _settings(HOUR, 20, "nano:base", 0, references=BESIDE).instruct.references == BESIDE >= LEAST


@pytest.mark.slow
def test_good_photographs_to_a_model_and_again_at_once(tmp_path: Path, nano_folder: Path) -> None:
    write_drawn(tmp_path / "all", 4, size=96)
    every = [sample for sample in read_folder(tmp_path / "all") if not sample.is_anomalous]
    (tmp_path / "parts").mkdir()
    for number, sample in enumerate(sample for sample in every if sample.object == every[0].object):
        shutil.copyfile(sample.image, tmp_path / "parts" / f"{number}.png")
    model = str(tiny_internvl(tmp_path / "tiny"))
    (tmp_path / "small.toml").write_text(SMALL)
    said: list[str] = []

    def run() -> object:
        return adapt(
            tmp_path / "parts",
            tmp_path / "run",
            load_recipe(tmp_path / "small.toml"),
            model=f"hf:{model}",
            bench=None,
            object_name=every[0].object,
            datasets=(),
            seed=0,
            bar=bar,
            say=said.append,
        )

    done = run()
    good = len(list((tmp_path / "parts").iterdir()))
    assert (done.photographs + done.held_out, done.left_out) == (good, {}) and done.held_out == good // 5  # type: ignore[attr-defined]
    trained_on = {q.sample.item for q in read_records(tmp_path / "run" / "instruct" / "questions.jsonl", Question)}
    asked = list(read_records(tmp_path / "run" / "bench" / "questions.jsonl", Question))
    assert asked and not trained_on & {q.sample.item for q in asked}
    assert any(q.sample.is_anomalous for q in asked) and not all(q.sample.is_anomalous for q in asked)
    stages = ("instruct", "bench", "sft", "mine", "synthesize", "krdpo")
    assert all(read_manifest(tmp_path / "run" / stage).done for stage in stages)
    names = {tag.partition("-1shot")[0] for tag in done.reports}  # type: ignore[attr-defined]
    assert names == {"before", "sft", "krdpo", "expert-alone", "blind-reader"}
    assert read_trained(tmp_path / "run" / "model").stage == done.chosen  # type: ignore[attr-defined]
    assert HFModel.open(str(tmp_path / "run" / "model")).info.can_score
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("log.jsonl")}
    assert before and run() == done
    assert before == {p: p.stat().st_mtime_ns for p in before}, "nothing is trained again"
