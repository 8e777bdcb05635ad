"""MMAD's files, its scorer with its faults, and the strict count beside it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcr2ad.artifacts import digest_file
from dcr2ad.commands.evaluation import run_evaluate
from dcr2ad.datasets.mmad import (
    KNOWN_FILES,
    SUBTASKS,
    answers_to_predictions,
    predictions_to_answers,
    read_answers,
    read_mmad,
    unknown_version,
)
from dcr2ad.errors import RecordError
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.mmad_scorer import official_table
from dcr2ad.stages.evaluate import read_report
from dcr2ad.stages.score import score_answers, strict_table
from dcr2ad.types import Subtask
from tests.tiny import tiny_internvl, tiny_photograph

SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "mmad-sample" / "mmad.json"


def entry(*types: str, conversation: str = "conversation", **more: Any) -> dict[str, Any]:
    asked = [
        {"Question": f"Our own {kind}?", "Answer": "B", "Options": {"A": "No.", "B": "Yes."}, "type": kind, "annotation": True}
        for kind in types
    ]
    return {conversation: asked, "similar_templates": ["s.png"], "random_templates": ["r.png", "q.png"], **more}


def write(folder: Path, data: dict[str, Any]) -> Path:
    path = folder / "mmad.json"
    path.write_text(json.dumps(data))
    return path


def official(answers: list[dict[str, str]]) -> dict[str, dict[str, float]]:
    """The official loop as it is written down, list surgery included, for one data set's accuracies and rates."""
    rows = list(answers)
    stats: dict[str, dict[str, list[int]]] = {}
    for a in rows:
        stats.setdefault(a["image"].split("/")[0], {})
    for a in rows:
        if a["correct_answer"] not in list("ABCDE") or a["gpt_answer"] not in list("ABCDE"):
            rows.remove(a)
            continue
        kind = "Object Analysis" if a["question_type"] in ("Object Structure", "Object Details") else a["question_type"]
        if kind == "Anomaly Detection":
            kind += " normal" if "good" in a["image"] else " abnormal"
        cell = stats[a["image"].split("/")[0]].setdefault(kind, [0, 0])
        cell[0] += a["correct_answer"] == a["gpt_answer"]
        cell[1] += 1
    return {d: {k: 100 * right / n for k, (right, n) in cells.items()} for d, cells in stats.items()}


KINDS = ["Anomaly Detection", "Object Structure", "Object Details", "Object Analysis", "Defect Analysis"]
PATHS = [
    "GoodsAD/can/test/good/1.jpg",
    "GoodsAD/can/test/dent/2.jpg",
    "MVTec-AD/nut/test/bent/3.png",
    "DS-MVTec/nut/image/good/4.png",
]
SAID = st.sampled_from(["A", "B", "", "F"])
ROWS = st.lists(st.tuples(st.sampled_from(PATHS), st.sampled_from(KINDS), st.sampled_from("AB"), SAID), min_size=1)


@settings(max_examples=150, deadline=None)
@given(ROWS)
def test_the_official_table_counts_as_the_official_loop_does(rows: list[tuple[str, str, str, str]]) -> None:
    # Rows of one question each: list.remove takes the first equal row, so equal rows would be another fault again.
    answers = [
        {"image": image, "question": str(i), "question_type": kind, "correct_answer": right, "gpt_answer": said}
        for i, (image, kind, right, said) in enumerate(rows)
    ]
    table, expected = official_table(answers), official(answers)
    assert list(table) == [*expected, "Average"]
    for dataset, cells in expected.items():
        for kind in {"Object Analysis", "Defect Analysis"} & table[dataset].keys():
            assert table[dataset][kind] == pytest.approx(cells.get(kind, 0))
        if "Anomaly Detection" in table[dataset]:
            normal, abnormal = cells.get("Anomaly Detection normal", 0), cells.get("Anomaly Detection abnormal", 0)
            assert table[dataset]["Anomaly Detection"] == pytest.approx((normal + abnormal) / 2)
            assert table[dataset]["Overkill"] == pytest.approx(100 - normal)
            assert table[dataset]["Miss"] == pytest.approx(100 - abnormal)


def test_on_valid_answers_strict_and_official_agree_by_hand() -> None:
    def answer(image: str, kind: str, said: str) -> dict[str, str]:
        return {"image": image, "question_type": kind, "correct_answer": "A", "gpt_answer": said}

    answers = [answer(f"VisA/candle/test/good/{i}.JPG", "Anomaly Detection", "A" if i else "B") for i in range(4)]
    answers += [answer(f"VisA/candle/test/bad/{i}.JPG", "Anomaly Detection", "B" if i else "A") for i in range(2)]
    answers += [answer("VisA/candle/test/bad/0.JPG", "Defect Analysis", "A")]
    for table in (official_table(answers), strict_table(answers_to_predictions(answers))):
        row = table["VisA"]
        assert row["Anomaly Detection"] == pytest.approx((75 + 50) / 2)
        assert row["Average"] == pytest.approx((62.5 + 100) / 2)
        assert (row["Overkill"], row["Miss"]) == (pytest.approx(25), pytest.approx(50))
        assert row["Precision"] == pytest.approx(50) and row["Recall"] == pytest.approx(50) and row["F1"] == pytest.approx(50)


def test_faults_are_only_under_their_name(tmp_path: Path) -> None:
    def answer(image: str, said: str) -> dict[str, str]:
        return {"image": image, "question_type": "Defect Analysis", "correct_answer": "A", "gpt_answer": said}

    answers = [answer("DS-MVTec/nut/image/bent/1.png", "I cannot see it"), answer("DS-MVTec/nut/image/bent/2.png", "A")]
    answers += [answer("DS-MVTec/nut/image/bent/3.png", "B"), answer("MVTec-AD/nut/test/bent/4.png", "A")]
    file = tmp_path / "answers.json"
    file.write_text(json.dumps(answers))
    table, report = score_answers(file, tmp_path / "o", "mmad-official")
    # The first leaves the denominator and hides the second; MVTec-AD is a data set of its own.
    assert table["DS-MVTec"]["Defect Analysis"] == 0 and table["MVTec-AD"]["Defect Analysis"] == 100
    strict, _ = score_answers(file, tmp_path / "s", "strict")
    assert set(strict) == {"DS-MVTec", "Average"} and strict["DS-MVTec"]["Defect Analysis"] == 50
    assert report.questions == 4 and report.answered == 3
    rows = list(csv.reader((tmp_path / "s" / "not_answered.csv").open()))
    assert rows[1][1] == "unparsed" and rows[1][3] == "I cannot see it" and len(rows) == 2
    head = (tmp_path / "o" / "accuracy.csv").read_text().splitlines()[0]
    assert head == ",Defect Analysis,Average,Overkill,Miss,Recall,Precision,F1"


def test_answer_files_that_are_none_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for text, words in (("[]", "no answer"), ("nonsense", "no answer file"), ('[{"image": "a"}]', "has no 'question_type'")):
        file.write_text(text)
        with pytest.raises(RecordError, match=words):
            read_answers(file)


def test_every_version_is_read(tmp_path: Path) -> None:
    data = {
        "DS-MVTec/bottle/image/broken_large/000.png": entry(
            "Anomaly Detection", "Object Details", conversation="conversation_v2"
        ),
        "GoodsAD/drink_can/test/good/000_001.jpg": entry("Object Structure", mask_path=None),
        "MVTec-AD/bottle/test/good/001.png": entry("Anomaly Detection", "Unheard Of", mask_path=""),
    }
    reading = read_mmad(write(tmp_path / "", data), tmp_path / "nowhere", knowledge_base=KnowledgeBase.builtin())
    one, two, three, four = reading.questions
    assert [q.subtask for q in (one, two, three)] == [Subtask.DETECTION, Subtask.OBJECT_ANALYSIS, Subtask.OBJECT_ANALYSIS]
    assert one.sample.is_anomalous and one.sample.defect == "broken_large" and one.sample.right_key
    assert not three.sample.is_anomalous, "GoodsAD holds the word good; its folder decides"
    assert four.sample.dataset == "DS-MVTec", "MVTec-AD is no fifth data set"
    assert one.answer == 1 and one.options == ("No.", "Yes.")
    assert Path(one.sample.references[0]).name == "r.png"
    assert any("Unheard Of" in fault.why for fault in reading.faults)
    similar = read_mmad(tmp_path / "mmad.json", tmp_path / "nowhere", templates="similar")
    assert Path(similar.questions[0].sample.references[0]).name == "s.png"


def test_known_faults_of_a_copy_are_named(tmp_path: Path) -> None:
    key = "DS-MVTec/pill/image/good/000.png"
    image = Path(tiny_photograph(tmp_path, 1))
    (tmp_path / key).parent.mkdir(parents=True)
    image.rename(tmp_path / key)
    (tmp_path / "q.png").write_bytes((tmp_path / key).read_bytes())
    asked = entry("Object Classification")
    asked["conversation"][0]["Options"]["B"] = "Metal nut."
    bad = "DS-MVTec/bottle/image/broken_large/016.png"
    reading = read_mmad(write(tmp_path, {key: asked, bad: entry("Defect Localization", mask_path="rbg_mask/x.png")}))
    whys = " | ".join(fault.why for fault in reading.faults)
    for words in ("metal nut", "references are missing", "localisation label", "no such image", "no such mask"):
        assert words in whys
    assert [Path(name).name for name in reading.questions[0].sample.references] == ["q.png"]


def test_metadata_csv_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metadata.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["query_image", "template_image", "mask", "question", "options", "answer", "question_type"])
        for kind in ("Anomaly Detection", "Defect Analysis"):
            row = [
                "VisA/candle/test/bad/0.JPG",
                "VisA/candle/train/good/1.JPG",
                "x/y.png",
                "What?",
                "A: Yes.\nB: No.",
                "B",
                kind,
            ]
            writer.writerow(row)
    one, two = read_mmad(path).questions
    assert one.options == ("Yes.", "No.") and one.answer == 1 and one.sample == two.sample
    path.write_text("a,b\n1,2\n")
    with pytest.raises(RecordError, match="no column for image"):
        read_mmad(path)


def test_a_file_of_no_known_version_is_said_in_the_report(tmp_path: Path) -> None:
    image = "VisA/candle/test/bad/000.png"
    for name in (image, "r.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Path(tiny_photograph(tmp_path / "drawn", len(name))).rename(tmp_path / name)
    path = write(tmp_path, {image: entry("Anomaly Detection")})
    assert unknown_version(path, next(iter(KNOWN_FILES))) == "" == unknown_version(tmp_path / "other.json", "0" * 64)
    protocol = {"context": "none", "expert": False, "routing": "hybrid"}
    run_evaluate(
        path,
        tmp_path / "out",
        model=f"hf:{tiny_internvl(tmp_path / 'm')}",
        protocol=protocol,
        prompts=None,
        images=None,
        templates="random",
        shard="1/1",
        workers=1,
        knowledge=None,
        fresh=False,
    )
    (note,) = read_report(tmp_path / "out").notes
    assert "no known version of MMAD's file" in note and digest_file(path)[:12] in note


@pytest.mark.parametrize("text", ["[]", "{", '{"a": 1}', '{"a/b/c": {"x": 1}}', "{}"])
def test_what_is_not_mmad_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mmad.json"
    path.write_text(text)
    with pytest.raises(RecordError):
        read_mmad(path)


@pytest.mark.skipif(not SAMPLE.exists(), reason="needs the shared sample of MMAD")
def test_the_real_sample() -> None:
    reading = read_mmad(SAMPLE, SAMPLE.parent / "no-images", knowledge_base=KnowledgeBase.builtin())
    raw = json.loads(SAMPLE.read_text())
    assert len(reading.questions) == sum(len(value["conversation"]) for value in raw.values()) == 1439
    assert len({q.id for q in reading.questions}) == 1439 and not [f for f in reading.faults if "left out" in f.why]
    for question in reading.questions:
        key, _, number = question.id.rpartition("#")
        row = raw[key]["conversation"][int(number)]
        assert question.options[question.answer] == row["Options"][row["Answer"]].strip()
        assert question.subtask is SUBTASKS[row["type"]]
        assert question.sample.is_anomalous == ("/good/" not in key)


def test_predictions_come_back_from_the_fields_format() -> None:
    answers = [
        {"image": "VisA/candle/test/bad/0.JPG", "question_type": "Anomaly Detection", "correct_answer": "B", "gpt_answer": said}
        for said in ("B", "A", "")
    ]
    again = predictions_to_answers(answers_to_predictions(answers))
    assert [row["gpt_answer"] for row in again] == ["B", "A", ""] and {row["image"] for row in again} == {answers[0]["image"]}
