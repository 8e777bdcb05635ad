"""The ablation: baselines by hand, seeds taken together, parts of it chosen, what is given in place of a stage."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from dcr2ad import metrics
from dcr2ad.artifacts import read_manifest, read_records, write_records
from dcr2ad.baselines import NO_MODEL, blind_reader, expert_alone
from dcr2ad.config import EvaluateSettings, Grid, Recipe
from dcr2ad.datasets.layouts import Row
from dcr2ad.errors import InputError, UnknownNameError
from dcr2ad.report.ablation import ANY, ablation, cell_text, to_csv
from dcr2ad.report.paired import paired_differences
from dcr2ad.report.paired import to_csv as paired_csv
from dcr2ad.report.paired import to_latex as paired_latex
from dcr2ad.report.tables import protocol_label, result_rows
from dcr2ad.stages.evaluate import summarise
from dcr2ad.stages.run import Given, Subset, _chosen, _keep_given, _seen, evaluate_baselines, run_recipe, tag_of
from dcr2ad.types import EvalProtocol, ExpertFindings, KindGuess, Prediction, Question, Sample, Subtask
from tests.tiny import tiny_base


def findings(score: float, hot: int, kinds: tuple[str, ...] = ()) -> ExpertFindings:
    cells = tuple(9.0 if cell == hot else float(cell) / 10 for cell in range(9))
    guesses = tuple(KindGuess(key=key, title=key, probability=0.5) for key in kinds)
    return ExpertFindings(
        score=score, raw=0, threshold=3, cell=hot, cells=cells, extent=0, elongation=1, tone="same", kinds=guesses
    )


def question(
    number: int, subtask: Subtask, options: tuple[str, ...], answer: int, expert: ExpertFindings | None, keys: str = ""
) -> Question:
    anomalous = subtask is not Subtask.DETECTION or number % 2 == 0
    sample = Sample(id=f"s{number}", image=f"{number}.png", dataset="d", object="nut", is_anomalous=anomalous, expert=expert)
    provenance = {"keys": keys} if keys else {}
    return Question(
        id=f"q{number}{subtask}",
        sample=sample,
        subtask=subtask,
        text="?",
        options=options,
        answer=answer,
        provenance=provenance,
    )


def test_the_expert_alone_answers_by_threshold_hottest_cell_and_first_kind() -> None:
    asked = [
        question(0, Subtask.DETECTION, ("Yes", "No"), 0, findings(5, 0)),  # anomalous, found
        question(2, Subtask.DETECTION, ("No", "Yes"), 1, findings(1, 0)),  # anomalous, missed
        question(3, Subtask.DETECTION, ("Yes", "No"), 1, findings(5, 0)),  # good, called anomalous
        question(4, Subtask.LOCALIZATION, ("Top left", "bottom right", "centre"), 1, findings(5, 8)),
        question(6, Subtask.LOCALIZATION, ("Top left", "middle left", "centre"), 0, findings(5, 8)),  # hottest of those offered
        question(8, Subtask.CLASSIFICATION, ("Dent", "Pit"), 1, findings(5, 0, ("a.b.crack", "a.b.pit")), "a.b.dent a.b.pit"),
    ]
    answers = [p.answer for p in expert_alone(asked)]
    assert answers == [0, 0, 0, 1, 2, 1]
    assert metrics.detection_rates(expert_alone(asked)) == pytest.approx(
        {"Overkill": 100, "Miss": 50, "Recall": 50, "Precision": 50, "F1": 50}
    )


def test_what_the_expert_cannot_say_is_a_lot() -> None:
    asked = [question(2 * n, Subtask.CLASSIFICATION, ("a", "b", "c", "d"), 0, None) for n in range(400)]
    first = expert_alone(asked)
    assert first == expert_alone(asked)
    assert abs(sum(p.is_correct for p in first) / 400 - 0.25) < 0.07


def test_the_blind_reader_learns_the_prior_and_never_from_the_image_asked_about() -> None:
    prior = [question(2 * n, Subtask.CLASSIFICATION, ("dent", "pit"), 0, None) for n in range(60)]
    assert all(p.is_correct for p in blind_reader(prior))
    alone = [question(0, Subtask.CLASSIFICATION, ("dent", "pit"), 0, None)]
    assert blind_reader(alone)[0].status == "answered", "one group teaches nothing: a lot"


def answers(right: list[bool], objects: list[str]) -> list[Prediction]:
    return [
        Prediction(
            question_id=f"q{n}",
            image=f"{n}.png",
            dataset="d",
            object=name,
            is_anomalous=n % 2 == 0,
            subtask=Subtask.DETECTION,
            n_options=2,
            gold=0,
            status="answered",
            answer=0 if good else 1,
        )
        for n, (good, name) in enumerate(zip(right, objects, strict=True))
    ]


def test_seeds_are_taken_together_by_hand() -> None:
    objects = ["nut", "nut", "bolt", "bolt"]
    told = {
        "krdpo-1shot-none": answers([True, True, True, False], objects),
        "krdpo-seed1-1shot-none": answers([True, False, False, False], objects),
        "expert-alone": answers([True, False, True, False], objects),
    }
    seeds = {"krdpo-1shot-none": 0, "krdpo-seed1-1shot-none": 1}
    reports = {
        tag: summarise(rows, EvalProtocol(), {"name": "m", "backend": "x" if tag in seeds else NO_MODEL}, "").model_copy(
            update={"variant": "SFT + KR-DPO" if tag in seeds else "visual expert alone", "seed": seeds.get(tag)}
        )
        for tag, rows in told.items()
    }
    found = ablation(result_rows(reports), told, {"nut"})
    assert [(part, setting, [line.model for line in lines]) for part, setting, lines in found.blocks()] == [
        (part, "1-shot, expert, score", ["SFT + KR-DPO", "visual expert alone"]) for part in ("all", "seen", "unseen")
    ]
    every, seen, unseen = (line.cells[0] for line in found.lines if line.setting != ANY)
    assert every and seen and unseen and every.average and seen.average and unseen.average
    assert (every.average.value, every.seeds, every.questions) == (50.0, (75.0, 25.0), 4)
    assert (every.overkill, every.miss) == (75.0, 25.0)
    assert (seen.average.value, seen.seeds, unseen.average.value, unseen.seeds) == (75.0, (100.0, 50.0), 25.0, (50.0, 0.0))
    assert "50.0 [" in cell_text(every) and cell_text(every).endswith("75.0/25.0") and cell_text(None) == ""
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert len(rows) == 6 and rows[0]["Seeds"] == "2" and rows[0]["Average of each seed"] == "75.0 25.0" and rows[0]["Miss"]


def test_differences_of_seeds_stand_before_each_by_hand() -> None:
    objects = ["nut", "nut", "bolt", "bolt"]
    told = {
        "sft-1shot-none": answers([True, False, True, False], objects),
        "sft-seed1-1shot-none": answers([True, False, False, False], objects),
        "krdpo-1shot-none": answers([True, True, True, True], objects),
        "krdpo-seed1-1shot-none": answers([False, False, True, False], objects),
    }
    reports = {
        tag: summarise(rows, EvalProtocol(), {"name": tag, "digest": tag, "backend": "x"}, "").model_copy(
            update={"variant": "SFT" if tag.startswith("sft") else "SFT + KR-DPO", "seed": int("seed1" in tag)}
        )
        for tag, rows in told.items()
    }
    found = paired_differences(result_rows(reports), reports, told, set())
    assert [line.models for line in found.lines] == [
        "SFT + KR-DPO minus SFT, 2 seeds",
        "SFT + KR-DPO, seed 0 minus SFT, seed 0",
        "SFT + KR-DPO, seed 1 minus SFT, seed 1",
    ] and not found.refused
    whole = found.lines[0].result
    assert (whole.average.value, whole.trainings) == (25.0, (50.0, 0.0))
    assert (whole.questions, whole.only_second, whole.only_first, whole.p_value) == (4, 3, 1, None)
    averages = [row for row in csv.DictReader(io.StringIO(paired_csv(found.lines))) if row["sub-task"] == "Average"]
    assert [(row["difference"], row["difference of each seed"], bool(row["McNemar p"])) for row in averages] == [
        ("25.00", "50.00 0.00", False), ("50.00", "", True), ("0.00", "", True),
    ]  # fmt: skip
    assert "2 seeds" in paired_latex(found.lines)


def test_the_grid_is_a_product_and_a_cell_stands_once() -> None:
    grid = Grid(contexts=("none", "oracle"), expert=(True,), shots=(1, 0))
    settings = EvaluateSettings(protocols=(EvalProtocol(),), grid=grid)
    assert [tag_of(cell) for cell in settings.cells] == [
        "1shot-none-expert-score", "1shot-oracle-expert-score", "0shot-none-expert-score", "0shot-oracle-expert-score",
    ]  # fmt: skip
    assert EvaluateSettings().cells == (EvalProtocol(),)
    (half,) = Grid(contexts=("routed",), expert=(True,), shots=(1,), precision="bf16").protocols
    assert tag_of(half) == "1shot-routed-expert-score-bf16" and protocol_label(half).endswith("scoring strict, in bf16")


def test_a_subset_is_chosen_in_the_recipes_order_and_what_is_unknown_is_named() -> None:
    recipe = Recipe(name="r", seeds=(0, 1), evaluate=EvaluateSettings(grid=Grid()))
    variants, cells, seeds = _chosen(recipe, Subset(("krdpo", "base"), ("1shot-*-expert-*",), (1,)))
    assert [variant.name for variant in variants] == ["base", "krdpo"] and seeds == [1]
    assert [cell.context for cell in cells] == ["none", "category", "routed", "oracle"] and all(cell.expert for cell in cells)
    assert len(_chosen(recipe, Subset())[1]) == 16
    for subset, told in [
        (Subset(("dpo",)), "no variant 'dpo'. Use base, sft, krdpo"),
        (Subset(cells=("2shot-*",)), "no cell '2shot"),
        (Subset(seeds=(7,)), "no seed 7"),
    ]:
        with pytest.raises(UnknownNameError, match=told):
            _chosen(recipe, subset)


def test_what_is_trained_on_is_the_recipes_and_never_nothing(tmp_path: Path) -> None:
    rows = [Row(image=f"{name}.png", label="good", dataset=name, category="nut") for name in ("a", "b", "c")]
    write_records(tmp_path / "index.jsonl", rows)
    recipe = Recipe(name="r", seen=("a", "b"))
    assert _seen(recipe, tmp_path, ()) == ["a", "b"] and _seen(recipe, tmp_path, ("b", "c")) == ["b"]
    assert _seen(Recipe(name="r"), tmp_path, ("c",)) == ("c",)
    for asked, told in ((recipe, ("c",)), (Recipe(name="r", seen=("x",)), ())):
        with pytest.raises(InputError, match="trains on"):
            _seen(asked, tmp_path, told)


def test_given_questions_are_the_runs_own_and_another_file_does_not_mix(tmp_path: Path) -> None:
    rows = [question(n, Subtask.DETECTION, ("Yes", "No"), n % 2, None) for n in range(4)]
    write_records(tmp_path / "a.jsonl", rows)
    write_records(tmp_path / "b.jsonl", rows[:1])
    said: list[str] = []
    _keep_given([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tmp_path / "instruct", said.append)
    kept = list(read_records(tmp_path / "instruct" / "questions.jsonl", Question))
    assert len(kept) == len({row.id for row in kept}) == 5
    assert read_manifest(tmp_path / "instruct").summary["objects"] == {"nut": 5}, "the report tells seen objects by it"
    with pytest.raises(InputError, match="--data"):
        run_recipe(Recipe(name="r"), None, tmp_path / "out", bar=None, say=said.append, given=Given())  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_baselines_are_evaluations_like_any(tmp_path: Path) -> None:
    rows = [question(n, Subtask.DETECTION, ("Yes", "No"), n % 2, findings(5 if n % 4 else 1, 0)) for n in range(8)]
    reports = dict(evaluate_baselines(rows, tiny_base(), tmp_path))
    assert set(reports) == {"expert-alone", "blind-reader"} and reports["expert-alone"].detection["Overkill"] == 100
    assert reports["expert-alone"].model["backend"] == NO_MODEL and reports["blind-reader"].protocol.shots == 0
    assert len(list(read_records(tmp_path / "expert-alone" / "predictions.jsonl", Prediction))) == 8
    assert dict(evaluate_baselines(rows, tiny_base(), tmp_path)) == reports
