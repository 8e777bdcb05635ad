"""The router measured: a router that knows, one that guesses, what is stored, and a stop in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dcr2ad.errors import InputError, ModelError
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.adapters import MARKER, TrainedModel, read_trained, store_calibration
from dcr2ad.models.scripted import ScriptedModel
from dcr2ad.prompts import detection_question
from dcr2ad.stages.routing import FREQUENT, SEARCH, evaluate_routing
from dcr2ad.stages.routing_figures import RoutedPhotograph, calibrate
from dcr2ad.types import Prompt, Question, Sample
from tests.tiny import tiny_photograph

BASE = KnowledgeBase.builtin()
RIGHT = ("General.structural.crack", "General.surface.scratch", "General.surface.dent")


def questions(folder: Path, count: int = 9) -> list[Question]:
    made = []
    for number in range(count):
        sample = Sample(
            id=f"s{number}",
            image=tiny_photograph(folder, number),
            dataset="d",
            object="plate",
            is_anomalous=True,
            right_key=RIGHT[number % 3],
        )
        made += [detection_question(f"{number}a", sample), detection_question(f"{number}b", sample)]
    return made


def knowing(asked: list[Question], *, right: bool) -> ScriptedModel:
    titles = {q.sample.image: BASE.get(q.sample.right_key or "").title for q in asked}

    def logprob(prompt: Prompt, option: str) -> float:
        image = next(part.path for part in prompt.parts if part.kind == "image")
        wanted = titles[image] if right else BASE.entries[0].title
        return 0.0 if option == f"{wanted}:" else -8.0

    return ScriptedModel(lambda prompt: "", logprob)


def test_a_router_that_knows_and_one_that_never_looks(tmp_path: Path) -> None:
    asked = questions(tmp_path)
    report = evaluate_routing(knowing(asked, right=True), asked, BASE, tmp_path / "good", modes=["recall", "hybrid"])
    assert report.photographs == 9 and report.left_out == 0 and set(report.ways) == {"recall", "hybrid", SEARCH, FREQUENT}
    for way in ("recall", "hybrid"):
        found = report.ways[way]
        assert found.top1.value == found.top3.value == found.mrr.value == 100.0
        assert found.chance[0] == pytest.approx(100 / len(BASE))
    assert report.ways["hybrid"].place_bias == pytest.approx(0.0, abs=1e-6) and report.ways["hybrid"].steady == 100.0
    assert report.ways[FREQUENT].top1.value < 50.0
    blind = evaluate_routing(knowing(asked, right=False), asked, BASE, tmp_path / "blind", modes=["recall"])
    found = blind.ways["recall"]
    assert found.top1.value == 0.0 and (found.error_raw or 0) > 50.0
    assert (found.temperature or 0) > 1.0 and (found.error or 100) < (found.error_raw or 0)


def test_the_folder_holds_figures_tables_and_pictures_and_continues(tmp_path: Path) -> None:
    asked, out = questions(tmp_path), tmp_path / "out"

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise Stop

    model = knowing(asked, right=True)
    with pytest.raises(Stop):
        evaluate_routing(model, asked, BASE, out, modes=["recall"], progress=stop)
    assert len((out / "rankings.jsonl").read_text().splitlines()) == 4
    evaluate_routing(model, asked, BASE, out, modes=["recall"])
    assert len((out / "rankings.jsonl").read_text().splitlines()) == 9
    assert json.loads((out / "routing.json").read_text())["ways"]["recall"]["top1"]["value"] == 100.0
    lines = (out / "routing.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["way", "recall", SEARCH, FREQUENT]
    assert all(line.count(",") == lines[0].count(",") for line in lines)
    for name in ("confusion-recall.png", "confusion-text-search.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_photographs_without_a_known_entry_are_counted_and_refused_alone(tmp_path: Path) -> None:
    asked = questions(tmp_path)
    unknown = asked[0].sample.model_copy(update={"right_key": None, "image": tiny_photograph(tmp_path, 77)})
    more = [*asked, detection_question("u", unknown)]
    assert evaluate_routing(knowing(asked, right=True), more, BASE, tmp_path / "a", modes=["recall"]).left_out == 1
    with pytest.raises(InputError, match="no photograph"):
        evaluate_routing(knowing(asked, right=True), more[-1:], BASE, tmp_path / "b", modes=["recall"])


def test_a_fit_is_stored_with_the_model_and_read_back(tmp_path: Path) -> None:
    rows = [
        RoutedPhotograph(
            image=str(i), group=str(i), mode="recall", right_key="a" if i % 2 else "b", probabilities={"a": 0.99, "b": 0.01}
        )
        for i in range(20)
    ]
    fitted = calibrate(rows, "q", "k")
    assert fitted.nll[1] < fitted.nll[0] and fitted.ranked == fitted.photographs == 20
    about = {"base": "nano", "kind": "adapter", "stage": "sft", "seed": 0, "recipe": {}, "digest": "d", "base_digest": "b"}
    (tmp_path / MARKER).write_text(TrainedModel.model_validate({**about, "train_images": {}}).model_dump_json())
    store_calibration(tmp_path, {"recall": fitted})
    store_calibration(tmp_path, {"hybrid": fitted})
    assert read_trained(tmp_path).routing == {"recall": fitted, "hybrid": fitted}
    with pytest.raises(ModelError, match="no trained model"):
        store_calibration(tmp_path / "none", {"recall": fitted})
