"""What an evaluation holds does not grow with the number of questions, and nothing is decoded or encoded twice for it."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image

from dcr2ad import images
from dcr2ad.artifacts import read_records, write_records
from dcr2ad.images import forget_images, load_image
from dcr2ad.models.hf import HFModel
from dcr2ad.models.kept import KeptPrefixes
from dcr2ad.record_file import RecordFile
from dcr2ad.stages.evaluate import evaluate
from dcr2ad.types import EvalProtocol, Prediction, Question, Sample
from tests.tiny import tiny_base, tiny_internvl, tiny_photograph, tiny_questions


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("m")


@pytest.fixture
def model(folder: Path) -> HFModel:
    return HFModel.open(f"hf:{folder if (folder / 'config.json').exists() else tiny_internvl(folder)}")


class Live(NamedTuple):
    """What lives in this process, by the garbage collector's own list."""

    records: int
    """Questions, samples and predictions."""
    pictures: int
    """Bytes of decoded pictures."""
    tensors: int
    """Bytes of tensors."""

    @classmethod
    def now(cls) -> Live:
        gc.collect()
        found: Counter[str] = Counter()
        for thing in gc.get_objects():
            kind = type(thing)
            if kind in (Question, Sample, Prediction):
                found["records"] += 1
            elif kind is Image.Image:
                found["pictures"] += 4 * thing.width * thing.height
            elif kind is torch.Tensor:
                found["tensors"] += thing.nbytes
        return cls(found["records"], found["pictures"], found["tensors"])

    def above(self, other: Live) -> Live:
        return Live(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))


def asked(folder: Path, count: int) -> list[Question]:
    """Two questions an image, a reference for every two images."""
    made = tiny_questions(folder / "photographs", count)
    return [
        q.model_copy(
            update={
                "sample": q.sample.model_copy(
                    update={
                        "references": (tiny_photograph(folder / "photographs", 2000 + i // 4, (84, 84)),),
                        "object": f"part {i // 4:03d}",
                    }
                ),
                "candidates": (),
                "response": None,
            }
        )
        for i, q in enumerate(made)
    ]


def most_held(model: HFModel, questions: RecordFile[Question], out: Path, protocol: EvalProtocol) -> Live:
    """The most that lives between two calls of the model near the end, beyond what lived before."""
    before, seen = Live.now(), []

    def look(done: int, total: int) -> None:
        if done in (total - 4, total - 2):
            seen.append(Live.now().above(before))

    evaluate(model, questions, tiny_base(), protocol, out, progress=look)
    assert len(seen) == 2
    return Live(*map(max, zip(*seen, strict=True)))


@pytest.mark.parametrize(
    "protocol", [EvalProtocol(), EvalProtocol(context="routed", routing="hybrid")], ids=["plain", "routed"]
)
def test_three_times_the_questions_hold_no_more(
    model: HFModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: EvalProtocol
) -> None:
    monkeypatch.setattr("dcr2ad.stages.asking.ASKED_TOGETHER", 4)
    held = []
    for count in (16, 48):
        file = tmp_path / f"{count}.jsonl"
        write_records(file, asked(tmp_path, count))
        held.append(most_held(model, RecordFile(file, Question), tmp_path / f"out-{count}", protocol))
        model.runner.reset()
        model.vlm.forget_features()
    few, many = held
    assert many.records <= few.records <= 24  # questions and samples of two calls and one image, predictions of one call
    assert 0 < many.pictures <= few.pictures  # those of the call before: it has just been answered
    assert many.tensors <= 1.05 * few.tensors


def test_no_image_is_decoded_or_encoded_twice_though_memory_is_freed(
    model: HFModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = asked(tmp_path, 24)
    whole, read = tmp_path / "whole", tmp_path / "small calls"
    evaluate(model, questions, tiny_base(), EvalProtocol(), whole)
    model.runner.reset()
    decoded: Counter[str] = Counter()
    encoded = 0
    decode, encode = images._decode, model.vlm.model.get_image_features

    def counting_decode(path: Path, min_side: int) -> Image.Image:
        decoded[str(path)] += 1
        return decode(path, min_side)

    def counting_encode(**inputs: Any) -> Any:
        nonlocal encoded
        encoded += len(inputs["pixel_values"])
        return encode(**inputs)

    monkeypatch.setattr("dcr2ad.images._decode", counting_decode)
    monkeypatch.setattr(model.vlm.model, "get_image_features", counting_encode)
    monkeypatch.setattr("dcr2ad.stages.asking.ASKED_TOGETHER", 2)  # an image a call: neighbours share a reference over calls
    evaluate(model, questions, tiny_base(), EvalProtocol(), read)
    distinct = {path for q in questions for path in (q.sample.image, *q.sample.references)}
    assert decoded == dict.fromkeys(distinct, 1) and encoded == len(distinct) == 12 + 6
    rows = [list(read_records(out / "predictions.jsonl", Prediction)) for out in (whole, read)]
    for one, two in zip(*rows, strict=True):
        assert one.question_id == two.question_id and one.answer == two.answer
        assert one.probabilities == pytest.approx(two.probabilities, abs=2e-6)


def test_decoded_pictures_take_no_more_room_than_they_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tiny_photograph(tmp_path, number, (100, 100)) for number in range(12)]
    monkeypatch.setattr(images._decoded, "limit", 5 * 40_000)
    images._decoded.clear()
    before = Live.now().pictures
    for path in paths:
        load_image(path)
    assert Live.now().pictures - before == 5 * 40_000
    load_image(tiny_photograph(tmp_path, 99, (100, 100)), keep=False)
    assert Live.now().pictures - before == 5 * 40_000
    forget_images([*paths[-2:], tmp_path / "gone.png"])
    assert Live.now().pictures - before == 3 * 40_000
    images._decoded.clear()


def test_what_was_read_before_a_forgotten_image_is_kept_and_only_that() -> None:
    from transformers.cache_utils import DynamicCache

    def cache(count: int, first: float) -> DynamicCache:
        made, values = DynamicCache(), first + torch.arange(count, dtype=torch.float32)[None, None, :, None].expand(1, 1, -1, 2)
        made.update(values, -values, 0)
        return made

    text, reference, query = [(1, ""), (2, "")], [(9, "r"), (9, "r")], [(3, ""), (9, "q"), (4, "")]
    kept = KeptPrefixes()
    kept.keep((*text, *reference, *query), cache(7, 0.0))
    kept.keep((*text, (9, "s"), (9, "s"), (3, "")), cache(5, 0.0))
    kept.keep(((5, ""), (9, "s"), (3, "")), cache(3, 50.0))
    kept.forget({"q", "s"})
    have, found = kept.longest((*text, *reference, (3, ""), (9, "z")), [(2, 4), (5, 6)])
    assert have == 5
    assert found.layers[0].keys[0, 0, :, 0].tolist() == [0, 1, 2, 3, 4] and found.layers[0].values[0, 0, 4, 0] == -4
    assert found.layers[0].keys.untyped_storage().nbytes() == 5 * 2 * 4, "what follows is gone, not only hidden"
    # Of beginnings without an image the last one is left.
    assert kept.longest(((5, ""), (9, "t")), [(1, 2)])[0] == 1
    assert kept.shared((*text, (9, "s"))) == 2, "the reference's own beginning"
    kept.forget({"r"})
    assert kept.shared((*text, (9, "s"))) == 0 and kept.shared(((5, ""),)) == 1
