"""A benchmark of one's own: MMAD's schema, kinds of defect that the object can have, nothing told by the options alone."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from dcr2ad.artifacts import read_records
from dcr2ad.datasets.drawn import write_drawn
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.knowledge.objects import GENERAL_DOMAINS, domains
from dcr2ad.parsing import LETTERS
from dcr2ad.questions import KINDLESS_LABELS
from dcr2ad.stages.bench import build_bench
from dcr2ad.types import Question, Subtask

REAL_MINI = Path(__file__).parents[2] / "shared" / "data" / "real-mini"
BASE = KnowledgeBase.builtin()
ABOUT_KIND = (Subtask.CLASSIFICATION, Subtask.DESCRIPTION, Subtask.ANALYSIS)


def _hits_of_a_blind_reader(questions: list[Question]) -> float:
    """Share of right answers of a reader that knows from other images how often each option's text is right, five-fold."""
    images = {image: number for number, image in enumerate(dict.fromkeys(q.sample.image for q in questions))}
    hits = 0.0
    for fold in range(5):
        right, wrong = Counter[str](), Counter[str]()
        for question in questions:
            if images[question.sample.image] % 5 != fold:
                for index, option in enumerate(question.options):
                    (right if index == question.answer else wrong)[option] += 1
        for question in questions:
            if images[question.sample.image] % 5 == fold:
                odds = [(right[o] + 0.3) / (right[o] + wrong[o] + 1) for o in question.options]
                best = [i for i, value in enumerate(odds) if value == max(odds)]
                hits += (question.answer in best) / len(best)
    return hits / len(questions)


def test_mmad_json_says_what_the_questions_say_and_its_paths_exist(tmp_path: Path) -> None:
    write_drawn(tmp_path / "parts", 3, seed=1, size=64)
    build_bench(tmp_path / "parts", tmp_path / "bench", BASE, split="", seed=2)
    questions = list(read_records(tmp_path / "bench" / "questions.jsonl", Question))
    entries = json.loads((tmp_path / "bench" / "mmad.json").read_text())
    assert sum(len(entry["conversation"]) for entry in entries.values()) == len(questions)
    asked = defaultdict(list)
    for question in questions:
        asked[Path(question.sample.image).resolve()].append(question)
    root = tmp_path / "bench" / "images"
    for key, entry in entries.items():
        dataset, name, part, label, _ = key.split("/")
        assert key == f"{dataset}/{name}/{entry['image_path']}" and part == "test"
        of_image = asked[(root / key).resolve()]
        assert (label == "good") == (not of_image[0].sample.is_anomalous)
        for path in (*entry["random_templates"], *entry["similar_templates"]):
            assert (root / path).is_file() and "/train/good/" in path
        if entry["mask_path"]:
            assert (root / dataset / name / entry["mask_path"]).resolve() == Path(of_image[0].sample.masks[0]).resolve()
        rows = {(row["type"], row["Options"][row["Answer"]]) for row in entry["conversation"]}
        assert rows == {(q.subtask.value, q.options[q.answer]) for q in of_image}
        assert all("".join(row["Options"]) == LETTERS[: len(row["Options"])] for row in entry["conversation"])


def test_a_plain_folder_becomes_mmads_layout(tmp_path: Path) -> None:
    write_drawn(tmp_path / "parts", 2, seed=1, size=64)
    plain = tmp_path / "my line"
    for label, source in (("good", "test/good"), ("bad/scratch", "test/scratch")):
        (plain / label).mkdir(parents=True)
        for number, file in enumerate(sorted((tmp_path / "parts" / "metal_nut" / source).iterdir())):
            (plain / label / f"{number}.png").write_bytes(file.read_bytes())
    build_bench(plain, tmp_path / "bench", BASE, split="", seed=0)
    keys = json.loads((tmp_path / "bench" / "mmad.json").read_text())
    assert set(keys) >= {"my_line/my_line/test/good/0.png", "my_line/my_line/test/scratch/0.png"}
    assert all((tmp_path / "bench" / "images" / key).is_file() for key in keys)


@pytest.mark.skipif(not REAL_MINI.is_dir(), reason=f"the shared photographs are not at {REAL_MINI}")
def test_real_mini(tmp_path: Path) -> None:
    """All seven sub-tasks wherever labels and masks allow; distractors the object can have; a blind reader learns nothing."""
    build_bench(REAL_MINI, tmp_path, BASE, split="dev", seed=0)
    questions = list(read_records(tmp_path / "questions.jsonl", Question))
    asked = defaultdict(set)
    kinds = defaultdict(set)
    for question in questions:
        asked[question.sample.object].add(question.subtask)
        assert 2 <= len(question.options) <= 5
        if question.subtask is Subtask.CLASSIFICATION:
            kinds[question.sample.object].add(question.sample.right_key)
            fitting = {*domains(question.sample.object), *GENERAL_DOMAINS}
            assert {BASE.get(key).category for key in question.provenance["keys"].split()} <= fitting
        if question.subtask in ABOUT_KIND:
            assert question.sample.defect not in KINDLESS_LABELS
    unlabelled = {Subtask.LOCALIZATION, *ABOUT_KIND}
    assert asked.pop("solar cell") == set(Subtask) - unlabelled
    assert len(asked) == 5 and all(subtasks == set(Subtask) for subtasks in asked.values())
    many = {name: len(keys) for name, keys in kinds.items() if len(keys) > 3}
    assert many == {"magnetic tile": 5, "printed circuit board": 6}
    for subtask in ABOUT_KIND:
        several = [q for q in questions if q.subtask is subtask and len(kinds[q.sample.object]) > 3]
        assert _hits_of_a_blind_reader(several) < 0.25 + 0.08
        if subtask is Subtask.CLASSIFICATION:
            assert all(set(q.provenance["keys"].split()) <= kinds[q.sample.object] for q in several)
    for subtask, chance in ((Subtask.LOCALIZATION, 0.25), (Subtask.OBJECT_CLASSIFICATION, 0.25)):
        assert _hits_of_a_blind_reader([q for q in questions if q.subtask is subtask]) < chance + 0.1


@pytest.mark.skipif(not REAL_MINI.is_dir(), reason=f"the shared photographs are not at {REAL_MINI}")
def test_a_small_benchmark_offers_the_kinds_of_the_whole_data(tmp_path: Path) -> None:
    build_bench(REAL_MINI, tmp_path, BASE, split="dev", seed=0, max_images=10, datasets=("mtd",))
    asked = [q for q in read_records(tmp_path / "questions.jsonl", Question) if q.subtask is Subtask.CLASSIFICATION]
    assert asked and all({BASE.get(key).category for key in q.provenance["keys"].split()} == {"ceramic"} for q in asked)
