"""An evaluation over several workers: the report of one process."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path

import pytest

from dcr2ad.artifacts import write_records
from dcr2ad.errors import InputError, RunError
from dcr2ad.models.hf import HFModel
from dcr2ad.prompts import DEFAULT_WORDING
from dcr2ad.record_file import RecordFile
from dcr2ad.stages.evaluate import evaluate, merge
from dcr2ad.stages.spread import QUESTIONS, SHARDS, Work, Worker, evaluate_on_workers, shards_for
from dcr2ad.types import EvalProtocol, EvalReport, Question
from tests.tiny import tiny_base, tiny_internvl, tiny_questions

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (the extra ray)")


def questions(folder: Path, count: int = 12) -> list[Question]:
    return tiny_questions(folder / "photographs", count)


def work(folder: Path, spec: str, shards: int) -> Work:
    notes = ("a note",)
    return Work(spec, tiny_base(), EvalProtocol(), DEFAULT_WORDING, False, {"recorded": 0}, notes, folder / "many", shards)


def alone(asked: list[Question], how: Work, out: Path) -> EvalReport:
    model = HFModel.open(how.spec)
    return evaluate(model, asked, how.knowledge, how.protocol, out, leaks=how.leaks, notes=how.notes)


def same(one: EvalReport, other: EvalReport) -> bool:
    """Equal but for what batches of another make-up round differently."""
    near = one.calibration_error == pytest.approx(other.calibration_error, abs=1e-3)
    left_out = {"calibration_error"}
    return near and one.model_dump(exclude=left_out) == other.model_dump(exclude=left_out)


def test_shards_are_never_more_than_images() -> None:
    assert [shards_for(*given) for given in ((2, 1000), (2, 6), (3, 1))] == [8, 6, 1]


def test_without_ray_and_without_enough_images_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"Ray, which is not installed.*dcr2ad\[ray\]"):
        evaluate_on_workers(questions(tmp_path), work(tmp_path, "nano:base", 2), 2)


def test_what_workers_are_given_is_merged_to_the_report_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked, how = questions(Path()), work(Path(), f"hf:{tiny_internvl(tmp_path / 'model')}", 4)
    write_records(how.out / SHARDS / QUESTIONS, asked)
    monkeypatch.chdir("/")  # where a worker starts is not where the command was given
    workers = [Worker(pickle.loads(pickle.dumps(how)), False, str(tmp_path)) for _ in range(2)]
    ended = [workers[number % 2]({"shard": number}) for number in range(1, 5)]
    assert ended == [{"shard": number, "error": ""} for number in range(1, 5)]
    assert all(isinstance(worker._questions, RecordFile) for worker in workers)
    merged = merge([how.out / SHARDS / f"{number:03d}" for number in range(1, 5)], how.out)
    assert merged.questions == 12 and same(merged, alone(asked, how, tmp_path / "one"))
    assert "no transformers model" in Worker(how._replace(spec="hf:nowhere"), False, str(tmp_path))({"shard": 1})["error"]
    (how.out / SHARDS / QUESTIONS).unlink()
    assert "no such file" in Worker(how, False, str(tmp_path))({"shard": 1})["error"]


@needs_ray
def test_two_workers_give_the_report_of_one_process(tmp_path: Path) -> None:
    asked, how = questions(tmp_path, 40), work(tmp_path, f"hf:{tiny_internvl(tmp_path / 'model')}", 4)
    single = alone(asked, how, tmp_path / "one")
    seen: list[tuple[int, int]] = []
    spread = evaluate_on_workers(asked, how, 2, progress=lambda done, total: seen.append((done, total)))
    assert spread.questions == 40 and same(spread, single)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    again = evaluate_on_workers(asked, how, 2)
    assert again == spread
    with pytest.raises(RunError, match=r"shard .*no such folder|shard .*no transformers model"):
        evaluate_on_workers(asked, how._replace(spec="hf:nowhere", out=tmp_path / "bad"), 2)
    with pytest.raises(InputError, match="20 images cannot be parted among 21 shards"):
        evaluate_on_workers(asked, how._replace(shards=21), 2)
