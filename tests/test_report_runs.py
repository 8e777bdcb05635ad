"""The report over several runs: breakdowns by hand arithmetic, and a page that keeps unlike figures apart."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dcr2ad.artifacts import write_records, write_text
from dcr2ad.errors import InputError
from dcr2ad.metrics import detection_rates, intervals, routing_accuracy
from dcr2ad.report import figures
from dcr2ad.report.breakdown import by_dataset, reliability, routing_confusion, shares
from dcr2ad.report.latex import escape
from dcr2ad.report.paper_tables import paper_tables
from dcr2ad.report.run_report import render_runs
from dcr2ad.types import EvalProtocol, EvalReport, Prediction, Question, RankedEntry, Sample, Subtask


def prediction(number: int, **how: object) -> Prediction:
    """A right answer about an anomalous bolt, but for what is given."""
    values: dict[str, object] = {
        "question_id": f"q{number}",
        "image": f"{number}.png",
        "dataset": "line",
        "object": "bolt",
        "is_anomalous": True,
        "subtask": Subtask.DETECTION,
        "n_options": 2,
        "gold": 0,
        "status": "answered",
        "answer": 0,
        "probabilities": (0.75, 0.25),
    }
    return Prediction.model_validate({**values, **how})


def entries(*keys: str) -> tuple[RankedEntry, ...]:
    return tuple(RankedEntry(key=key, title=key, probability=0.5) for key in keys)


def test_reliability_by_hand() -> None:
    rows = [
        prediction(1, probabilities=(0.92, 0.08)),
        prediction(2, probabilities=(0.98, 0.02), gold=1),
        prediction(3, probabilities=(1.0, 0.0)),
        prediction(4, probabilities=(0.55, 0.45)),
        prediction(5, status="unparsed", answer=None),
        prediction(6, probabilities=None),
    ]
    low, high = reliability(rows)
    assert (low.confidence, low.accuracy, low.n) == (0.55, 1.0, 1)
    assert high.n == 3 and high.accuracy == pytest.approx(2 / 3) and high.confidence == pytest.approx((0.92 + 0.98 + 1) / 3)


def test_seen_and_unseen_are_told_apart_by_object_or_data_set() -> None:
    rows = [prediction(1), prediction(2, object="nut", answer=1), prediction(3, object="nut", is_anomalous=False, answer=1)]
    everything, seen, unseen = shares(rows, {"bolt"})
    assert (everything.name, everything.questions) == ("all", 3)
    assert (seen.objects, seen.average and seen.average.value, seen.overkill, seen.miss) == (("bolt",), 100.0, None, 0.0)
    assert (unseen.objects, unseen.average and unseen.average.value) == (("nut",), 0.0)
    assert (unseen.overkill, unseen.miss) == (100.0, 100.0)
    assert [part.name for part in shares(rows, ())] == ["all"]


def test_routing_counts_an_image_once_and_says_what_it_was_taken_for() -> None:
    rows = [
        prediction(1, right_key="a.b.c", routed=entries("a.b.c", "d.e.f")),
        prediction(1, question_id="other", right_key="a.b.c", routed=entries("a.b.c")),
        prediction(2, right_key="a.b.c", routed=entries("d.e.f", "a.b.c")),
        prediction(3, right_key="d.e.f", routed=entries("d.e.f")),
        prediction(4, right_key="d.e.f"),
    ]
    first, second = routing_confusion(rows)
    assert (first.right, first.images, first.hits, first.taken_for) == ("a.b.c", 2, 1, (("d.e.f", 1),))
    assert (second.right, second.images, second.hits, second.taken_for) == ("d.e.f", 1, 1, ())


def test_data_sets_have_a_figure_or_none() -> None:
    rows = [prediction(1), prediction(2, dataset="other", subtask=Subtask.CLASSIFICATION, n_options=4, answer=3)]
    assert by_dataset(rows) == {"line": (100.0, *[None] * 6), "other": (None, 0.0, *[None] * 5)}


def fill(folder: Path, tag: str, context: str, rows: list[Prediction], **more: object) -> None:
    """An evaluation as the stage writes it."""
    found = intervals(rows)
    made_with: dict[str, Any] = {"model": {"name": "m"}, "knowledge_digest": "k", **more}
    report = EvalReport(
        protocol=EvalProtocol.model_validate({"context": context}),
        questions=len(rows),
        answered=len(rows),
        status_counts={"answered": len(rows)},
        subtasks={subtask.value: value for subtask, value in found.items() if subtask is not None},
        average=found.get(None),
        detection=detection_rates(rows),
        routing=routing_accuracy(rows),
        **made_with,
    )
    write_records(folder / "evaluate" / tag / "predictions.jsonl", rows)
    write_text(folder / "evaluate" / tag / "report.json", report.model_dump_json())


@pytest.fixture
def two_runs(tmp_path: Path) -> list[Path]:
    """Two runs with two contexts each, on two objects and four sub-tasks."""
    Image.new("RGB", (64, 48), "grey").save(tmp_path / "part.png")
    image = str(tmp_path / "part.png")
    sample = Sample(id="s", image=image, dataset="line", object="bolt", is_anomalous=True)
    question = Question(id="q0", sample=sample, subtask=Subtask.DETECTION, text="Broken?", options=("Yes", "No"), answer=0)
    runs = [tmp_path / "first", tmp_path / "second_run"]
    for number, run in enumerate(runs):
        rows = [prediction(0, image=image, answer=1, raw="<answer>B</answer>")]
        for index, subtask in enumerate(list(Subtask)[:4]):
            for item in range(4):
                name = ("bolt", "nut")[item % 2]
                right = (item + index + number) % 3 > 0
                rows.append(prediction(1 + 4 * index + item, subtask=subtask, object=name, answer=0 if right else 1))
        routed = [row.model_copy(update={"right_key": "a.b.c", "routed": entries("a.b.c")}) for row in rows]
        fill(run, "sft-none", "none", rows)
        fill(run, "sft-routed", "routed", routed)
        write_records(run / "bench" / "questions.jsonl", [question])
    return runs


def test_runs_side_by_side(two_runs: list[Path]) -> None:
    made = render_runs(two_runs, unseen=["nut"])
    html = made.html
    assert "http" not in html.replace("http-equiv", "") and "<script" not in html
    assert html.count("<svg") == 3, "averages, radar, calibration"
    text = " ".join(re.sub("<[^>]*>", " ", html).split())
    for words in ("Runs first, second_run", "4 evaluations", "unseen: nut", "Broken?", "Prompt", "Table 4", "a.b.c"):
        assert words in text, words
    assert "the mean of the seven printed cells is 68.62" in text, "rows of the paper that do not recompute are listed"
    for table in paper_tables().tables:
        assert all(row.model in text for row in table.rows)
    assert re.search(r"\[[\d.]+, [\d.]+\]", text) and "Overkill" in text
    contexts = re.search(r"Questions Model Setting (.*?) all ", text)
    assert contexts and contexts.group(1).split() == ["none", "routed"]
    assert {"SFT (first)", "SFT (second_run)"} <= set(re.findall(r"SFT \(\w+\)", text)), "runs are told apart everywhere"
    parsed = list(csv.DictReader(io.StringIO(made.csv)))
    assert len(parsed) == 4 and all(row["Miss"] for row in parsed)
    results, pairs = made.latex.split("\n\n")
    assert results.count("\\multicolumn") == 2 and results.count(r"\\") == 1 + 2 + 4
    assert pairs.count("\\multicolumn") == 2 and pairs.count(r"\\") == 1 + 2 + 2 * 3, "two protocols; all, seen, unseen"
    assert "&" in made.latex and made.latex.rstrip().endswith("\\end{tabular}")


def test_a_single_evaluation_is_a_run_of_its_own(two_runs: list[Path]) -> None:
    alone = render_runs([two_runs[0] / "evaluate" / "sft-routed"])
    assert "1 evaluation" in alone.html and "Broken?" in alone.html and "not told apart" in alone.html
    with pytest.raises(InputError, match="no such run folder"):
        render_runs([two_runs[0], two_runs[0] / "absent"])


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_the_tables_compile(two_runs: list[Path], tmp_path: Path) -> None:
    odd = tmp_path / "[50% of_DCR²~x & {a} #1^2 \\ü µ «中» Ω ≤ $x$ | 5 °C → <b>"
    shutil.copytree(two_runs[0], odd)
    tables = render_runs([two_runs[1], odd], unseen=["nut"]).latex
    head = "\\documentclass{article}\n\\usepackage{booktabs}\n\\usepackage[landscape]{geometry}\n\\begin{document}\\tiny\n"
    (tmp_path / "page.tex").write_text(f"{head}{tables}\\end{{document}}\n", encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "page.pdf").stat().st_size > 10_000 and "Missing character" not in done.stdout


def test_latex_text_is_escaped() -> None:
    assert escape("50% of DCR²_x & {a}\n#1") == r"50\% of DCR\textsuperscript{2}\_x \& \{a\} \#1"
    assert (
        escape("[a] «Ω» ş <b> ≤ 5 °C")
        == r"{}[a] \texttt{U+00AB}\texttt{U+03A9}\texttt{U+00BB} s \textless{}b\textgreater{} $\le$ 5 °C"
    )
    assert escape("*") == "{}*"


def test_calibration_joins_no_points_of_a_few_answers() -> None:
    def lines(*counts: int) -> int:
        points = [(0.2 + 0.2 * place, (0.5, 0.9, 0.2)[place], n) for place, n in enumerate(counts)]
        svg = figures.reliability("Calibration", {"one": points})
        drawn = re.findall(r'<path d="([^"]*)"[^>]*clip-path[^>]*stroke: var\(--model\)', svg)
        return sum(path.count("L") for path in drawn)

    assert lines(9, 9, 9) == 2 and lines(9, 4, 9) == 1 and lines(4, 9, 4) == 0


def test_new_figures_take_the_colours_of_the_page() -> None:
    radar = figures.radar("Radar", ["a", "b", "c"], {"one": [50.0, None, 70.0], "two": [20.0, 30.0, 40.0]})
    plot = figures.reliability("Calibration", {"one": [(0.5, 0.4, 3), (0.9, 0.7, 9)]})
    for svg in (radar, plot):
        assert svg.startswith("<svg") and "http" not in svg and "var(--model)" in svg
        assert not re.search(r"#0[1-8]0[1-8]0[1-8]", svg)


def test_the_command_writes_page_and_tables(two_runs: list[Path], tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from dcr2ad.cli import app

    page = tmp_path / "out" / "both.html"
    done = CliRunner().invoke(app, ["report", *map(str, two_runs), "-o", str(page), "--unseen", "nut"])
    assert done.exit_code == 0 and str(page) in done.output
    assert "unseen objects, 1-shot" in done.output and "SFT (second_run)" in done.output, "the ablation is printed"
    assert {path.name for path in page.parent.iterdir()} == {
        "both.html",
        "both.csv",
        "both.tex",
        "both-ablation.csv",
        "both-paired.csv",
    }


def differing(right: set[int], count: int = 12) -> list[Prediction]:
    """Answers about bolts and nuts in turn, the given ones right."""
    return [
        prediction(n, object=("bolt", "nut")[n % 2], dataset="lines", answer=0 if n in right else 1, image=f"{n // 2}.png")
        for n in range(count)
    ]


def test_models_under_one_protocol_are_paired_by_hand_and_by_what_was_trained_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fill(run, "sft-x", "none", differing({0, 2, 4, 6, 1, 3}))
    fill(run, "krdpo-x", "none", differing({0, 2, 4, 6, 8, 10, 1, 5}), trained_on=("lines/bolt",))
    fill(run, "krdpo-y", "oracle", differing({0}), trained_on=("lines/bolt",))
    made = render_runs([run])
    lines = {(row["questions on"], row["sub-task"]): row for row in csv.DictReader(io.StringIO(made.paired_csv))}
    assert {(row["first"], row["second"]) for row in lines.values()} == {("SFT", "SFT + KR-DPO")}
    assert {part for part, _ in lines} == {"all", "seen", "unseen"}
    whole, seen, unseen = (lines[part, "Average"] for part in ("all", "seen", "unseen"))
    assert [float(row["difference"]) for row in (whole, seen, unseen)] == pytest.approx(
        [100 * 2 / 12, 100 * 2 / 6, 0], abs=0.01
    )
    assert (whole["only first right"], whole["only second right"], whole["McNemar p"]) == ("1", "3", "0.625")
    assert (seen["only first right"], seen["only second right"]) == ("0", "2")
    assert float(whole["Miss"]) == pytest.approx(-100 * 2 / 12, abs=0.01) and whole["Overkill"] == ""
    assert float(seen["low"]) <= 100 * 2 / 6 <= float(seen["high"])
    assert "Paired differences" in made.html and "SFT + KR-DPO minus SFT" in made.html
    assert "Unseen: objects that none of the models was trained on" in made.html
    assert made.latex.count("begin{tabular}") == 2 and "SFT + KR-DPO minus SFT" in made.latex


def test_what_is_not_alike_is_not_paired_and_said(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fill(run, "base-x", "none", differing({0}))
    fill(run, "sft-x", "none", differing({0}, 10))
    made = render_runs([run])
    assert (
        made.paired_csv == ""
        and "Not paired: SFT and base" in made.html
        and "the questions are not the same (12 and 10" in made.html
    )
    alone = tmp_path / "alone"
    fill(alone, "base-x", "none", differing({0}))
    assert "Paired differences" not in render_runs([alone]).html


def test_notes_and_leaks_of_an_evaluation_stand_on_the_page(tmp_path: Path) -> None:
    note = "mmad.json (sha256 0123) is no known version of MMAD's file"
    fill(tmp_path / "run", "sft-x", "none", differing({0}), notes=(note,), leaks={"overlap": 3, "looked_at": 6, "recorded": 9})
    page = render_runs([tmp_path / "run"]).html
    assert "mmad.json (sha256 0123) is no known version of MMAD&#39;s file (sft-x)" in page
    assert "3 of 6 images of the benchmark were trained on (sft-x)" in page


def test_page_and_csv_say_what_each_evaluation_was_made_with(tmp_path: Path) -> None:
    model = {"name": "nano", "digest": "ab" * 32, "backend": "transformers", "pixels": "height 224, width 224", "torch": "9.9"}
    clean = {"recorded": 797, "looked_at": 16, "overlap": 0}
    found = {"recorded": 797, "looked_at": 16, "overlap": 3}
    for name, leaks in (("one", {"recorded": 0}), ("two", clean), ("three", found)):
        fill(tmp_path, name, "none", differing({0}), leaks=leaks, model=model, benchmark="cd" * 32, knowledge_digest="ef" * 32)
    made = render_runs([tmp_path / "evaluate" / name for name in ("one", "two", "three")])
    text = " ".join(re.sub("<[^>]*>", " ", made.html).split())
    said = text[text.index("What was measured with what") : text.index("Questions that went worst")]
    assert said.count("nano abababababab transformers; torch 9.9") == 3 and "height 224, width 224" in said
    assert said.count(" cdcdcdcdcdcd ") == 3 and said.count(" efefefefefef ") == 3
    assert "the model records no training images" in said and "none of 16 is among the 797 trained on" in said
    assert "3 of 16 are among the 797 trained on" in said
    rows = {row["Model"]: row for row in csv.DictReader(io.StringIO(made.csv))}
    assert set(rows) == {"one", "two", "three"}, "the name of a single evaluation is not said twice"
    assert {(r["Opened as"], r["Model digest"], r["Backend"], r["Pixels"], r["Versions"]) for r in rows.values()} == {
        ("nano", "ab" * 32, "transformers", "height 224, width 224", "torch 9.9")
    }
    assert {(r["Knowledge"], r["Benchmark"]) for r in rows.values()} == {("ef" * 32, "cd" * 32)}
