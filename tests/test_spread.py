"""An evaluation over several workers: the report of one process."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from dcr2ad.errors import InputError, RunError
from dcr2ad.models.hf import HFModel
from dcr2ad.prompts import DEFAULT_WORDING
from dcr2ad.stages.evaluate import evaluate
from dcr2ad.stages.spread import Work, evaluate_on_workers, shards_for
from dcr2ad.types import EvalProtocol
from tests.tiny import tiny_base, tiny_internvl, tiny_questions

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (the extra ray)")


def work(folder: Path, spec: str, shards: int) -> Work:
    rows = tiny_questions(folder / "photographs", 12)
    notes = ("a note",)
    return Work(
        spec, rows, tiny_base(), EvalProtocol(), DEFAULT_WORDING, False, {"recorded": 0}, notes, folder / "many", shards
    )


def test_shards_are_never_more_than_images() -> None:
    assert [shards_for(*given) for given in ((2, 1000), (2, 6), (3, 1))] == [8, 6, 1]


def test_without_ray_and_without_enough_images_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"Ray, which is not installed.*dcr2ad\[ray\]"):
        evaluate_on_workers(work(tmp_path, "nano:base", 2), 2)


@needs_ray
def test_two_workers_give_the_report_of_one_process(tmp_path: Path) -> None:
    spec = f"hf:{tiny_internvl(tmp_path / 'model')}"
    asked = work(tmp_path, spec, 4)
    alone = evaluate(
        HFModel.open(spec),
        asked.questions,
        asked.knowledge,
        asked.protocol,
        tmp_path / "one",
        leaks=asked.leaks,
        notes=asked.notes,
    )
    seen: list[tuple[int, int]] = []
    spread = evaluate_on_workers(asked, 2, progress=lambda done, total: seen.append((done, total)))
    assert spread.model_dump(exclude={"calibration_error"}) == alone.model_dump(exclude={"calibration_error"})
    assert spread.calibration_error == pytest.approx(alone.calibration_error, abs=1e-3)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    again = evaluate_on_workers(asked, 2)
    assert again == spread
    with pytest.raises(RunError, match=r"shard .*no such folder|shard .*no transformers model"):
        evaluate_on_workers(asked._replace(spec="hf:nowhere", out=tmp_path / "bad"), 2)
    with pytest.raises(InputError, match="6 images cannot be parted among 9 shards"):
        evaluate_on_workers(asked._replace(shards=9), 2)
