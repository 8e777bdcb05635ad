"""The pages: self-contained, escaped, tolerant of what is missing; the map's round trip; the tables."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from dcr2ad.artifacts import StageFolder, write_records, write_text
from dcr2ad.errors import ImageError, InputError
from dcr2ad.report import figures
from dcr2ad.report.diagnosis import display_names, look_twice, render_diagnoses, speakers
from dcr2ad.report.origins import to_csv
from dcr2ad.report.overlay import colour_scale, decode_map, encode_map, heat_colours, overlay
from dcr2ad.report.page import probability_text, shrink
from dcr2ad.report.run_folder import Log, read_log
from dcr2ad.report.run_report import render_run, training_curves
from dcr2ad.report.tables import HEAD, cells, result_rows, stage_of, to_markdown
from dcr2ad.types import (
    Diagnosis,
    EvalProtocol,
    EvalReport,
    ExpertFindings,
    Interval,
    KnowledgeEntry,
    LookAlike,
    Prediction,
    Question,
    RankedEntry,
    RoutingNote,
    Sample,
    Subtask,
)

HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.example/x onerror=alert(1)>"

CRACK = KnowledgeEntry(
    key="General.structural.crack",
    title="Crack",
    text="A dark line runs through the [object].",
    look_alikes=(LookAlike(key="General.surface.scratch", difference="A scratch lies on the skin."),),
    effect="may break in use",
)
NORMAL = KnowledgeEntry(key="General.general.normal", title="Normal part", text="The [object] agrees.", is_normal=True)
KNOWLEDGE = {entry.key: entry for entry in (CRACK, NORMAL)}

FINDINGS = ExpertFindings(
    score=6.5,
    raw=0.3,
    threshold=3.0,
    cell=2,
    cells=(1.0, 1.0, 6.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
    extent=0.04,
    elongation=2.0,
    tone="darker",
    box=(0.7, 0.05, 0.95, 0.3),
)


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def assert_self_contained(html: str) -> None:
    """No script, no event handler, no reference to anything but data URIs and places on the page itself."""
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:image/")), f"{tag} {name}={target!r}"
        assert "url(http" not in (attributes.get("style") or "")
    styles = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert styles and not any("@import" in style or "url(" in style for style in styles)
    policy = [a.get("content") for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


@pytest.fixture
def photographs(tmp_path: Path) -> tuple[str, str]:
    rng = np.random.default_rng(0)
    paths = []
    for name in ("query.png", "reference.png"):
        path = tmp_path / name
        Image.fromarray(rng.integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(path)
        paths.append(str(path))
    return paths[0], paths[1]


def diagnosis(image: str, reference: str | None, **changes: Any) -> Diagnosis:
    heat = np.ones((12, 18), dtype=np.float32)
    heat[1:3, 13:16] = 7.0
    given: dict[str, Any] = {
        "image": image,
        "references": (reference,) if reference else (),
        "object": "bolt",
        "verdict": "anomalous",
        "probability": 0.93,
        "knowledge": RankedEntry(key=CRACK.key, title=CRACK.title, probability=0.7),
        "runners_up": (RankedEntry(key=NORMAL.key, title=NORMAL.title, probability=0.2),),
        "reasoning": "A dark line that the reference does not show.",
        "location": "top right",
        "defect_type": "crack",
        "description": "A narrow dark line.",
        "effect": "may break in use",
        "expert": FINDINGS,
        "expert_map": encode_map(heat),
        "context": "routed",
        "model": "nano 0123",
        "response": "<knowledge>Crack: a line</knowledge><answer>A</answer>",
        "sources": {"location": "visual expert", "description": "visual expert and knowledge base", "effect": "knowledge base"},
    }
    return Diagnosis(**{**given, **changes})


# The diagnosis page.


def test_one_part_says_everything_and_who_says_it(photographs: tuple[str, str]) -> None:
    html = render_diagnoses([diagnosis(*photographs)], knowledge=KNOWLEDGE, title="Lot 7")
    assert_self_contained(html)
    page = Page(html)
    for words in ("Lot 7", "Anomalous", "0.93", "A dark line that the reference does not show.", "Top right", "Crack"):
        assert words in page.text
    assert "A dark line runs through the bolt." in page.text and "[object]" not in page.text
    assert "A scratch lies on the skin." in page.text
    assert "General.surface.scratch" in page.text, "a look-alike that is not at hand is named by its key"
    assert "May break in use knowledge base" in page.text
    assert "Top right visual expert" in page.text
    assert "Box: hot region. Corners: hottest cell, top right." in page.text
    assert len(page.named("img")) == 3, "query, reference and overlay; no overview for one part"
    assert all(image["alt"] for image in page.named("img"))
    assert "Overview" not in page.text


def test_many_parts_have_an_overview_with_links(photographs: tuple[str, str]) -> None:
    image, reference = photographs
    calm = FINDINGS.model_copy(update={"score": 1.0, "box": None})
    parts = [
        diagnosis(image, reference, verdict="normal", probability=0.02, location=None, defect_type=None, expert=calm),
        diagnosis(image, reference, probability=0.61),
        diagnosis(image, reference, probability=0.97),
    ]
    html = render_diagnoses(parts, knowledge=KNOWLEDGE)
    assert_self_contained(html)
    page = Page(html)
    assert "3 parts: 2 anomalous , 1 normal" in page.text
    targets = {attributes.get("href") for attributes in page.named("a")}
    ids = {f"#{attributes['id']}" for _, attributes in page.tags if attributes.get("id")}
    assert {"#part-1", "#part-2", "#part-3", "#overview"} <= targets <= ids
    assert page.text.index("0.97") < page.text.index("0.61") < page.text.index("0.02"), "the most suspicious first"


@pytest.mark.parametrize(
    "field",
    [
        "object",
        "reasoning",
        "location",
        "defect_type",
        "description",
        "effect",
        "model",
        "response",
        "context",
        "question",
    ],
)
def test_hostile_text_is_shown_and_never_run(photographs: tuple[str, str], field: str) -> None:
    html = render_diagnoses([diagnosis(*photographs, **{field: HOSTILE})] * 2, knowledge=KNOWLEDGE, title=HOSTILE)
    assert_self_contained(html)
    assert "<script" not in html and "alert('x')" not in html
    assert "alert(&#39;x&#39;)" in html


def test_hostile_file_names_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "<img src=x onerror=alert(1)>.png"
    Image.new("RGB", (40, 40)).save(path)
    gone = f"{HOSTILE}.png"
    html = render_diagnoses([diagnosis(str(path), str(path)), diagnosis(gone, gone)], knowledge=KNOWLEDGE)
    assert_self_contained(html)
    assert "<script" not in html and "&lt;img src=x onerror=alert(1)&gt;.png" in html


def test_hostile_entries_notes_and_sources_are_escaped(photographs: tuple[str, str]) -> None:
    entry = CRACK.model_copy(update={"text": HOSTILE, "look_alikes": (LookAlike(key=HOSTILE, difference=HOSTILE),)})
    part = diagnosis(
        *photographs,
        knowledge=RankedEntry(key=CRACK.key, title=HOSTILE, probability=0.5),
        notes=(HOSTILE,),
        sources={"location": HOSTILE},
        question="Which?",
        options=(HOSTILE, "other"),
        answer=HOSTILE,
        answer_probabilities=(0.6, 0.4),
        expert_map="data:image/png;base64," + HOSTILE,
    )
    html = render_diagnoses([part], knowledge={entry.key: entry})
    assert_self_contained(html)
    assert "<script" not in html


def test_missing_pieces_are_said_in_their_place(tmp_path: Path) -> None:
    part = diagnosis(
        str(tmp_path / "gone.png"),
        None,
        knowledge=None,
        runners_up=(),
        expert=None,
        expert_map=None,
        reasoning="",
        response="",
        location=None,
        defect_type=None,
        description="",
        effect="",
        context="none",
    )
    html = render_diagnoses([part, part], knowledge={})
    assert_self_contained(html)
    text = Page(html).text
    assert "no such image" in text and "No reference was given." in text
    assert "The model gave none." in text and "None: no knowledge in the prompt." in text


def test_a_router_that_abstains_says_what_would_have_been_next(photographs: tuple[str, str]) -> None:
    note = RoutingNote(mode="hybrid", temperature=1.6, threshold=0.54, calibrated=True, abstained=True)
    text = Page(render_diagnoses([diagnosis(*photographs, knowledge=None, routing=note)], knowledge={})).text
    first = diagnosis(*photographs).runners_up[0]
    assert "None is probable enough to reason under (at least 0.54)" in text
    assert f"The likeliest: {first.title} {first.probability:.2f}" in text


def test_an_unreadable_map_leaves_photograph_and_marks(photographs: tuple[str, str]) -> None:
    html = render_diagnoses([diagnosis(*photographs, expert_map="data:image/png;base64,AAAA")], knowledge=KNOWLEDGE)
    page = Page(html)
    assert "an anomaly map cannot be read" in page.text
    assert len(page.named("img")) == 3


def test_an_entry_that_is_not_at_hand_is_named(photographs: tuple[str, str]) -> None:
    html = render_diagnoses([diagnosis(*photographs)], knowledge={})
    assert "The text of General.structural.crack is not in the knowledge base given to this page." in Page(html).text


def test_the_users_question(photographs: tuple[str, str]) -> None:
    asked = {"question": "Which fault?", "options": ("Crack", "Dent"), "answer": "Dent", "answer_probabilities": (0.3, 0.7)}
    text = Page(render_diagnoses([diagnosis(*photographs, **asked)], knowledge=KNOWLEDGE)).text
    assert "Which fault?" in text and "Dent 0.70" in text
    free = {"question": "What now?", "answer": "Sort it out."}
    assert "Sort it out." in Page(render_diagnoses([diagnosis(*photographs, **free)], knowledge=KNOWLEDGE)).text
    none = {"question": "What now?", "answer": None}
    assert "No answer could be read." in Page(render_diagnoses([diagnosis(*photographs, **none)], knowledge=KNOWLEDGE)).text


def test_no_part_at_all() -> None:
    assert "No part was diagnosed." in Page(render_diagnoses([], knowledge={})).text


def test_speakers() -> None:
    part = diagnosis("a.png", None, sources={"description": "visual expert and knowledge base", "effect": "nobody"})
    assert [s.name for s in speakers(part, "description")] == ["visual expert", "knowledge base"]
    assert [s.name for s in speakers(part, "reasoning")] == ["model"], "what is not named is the model's own"
    assert [s.name for s in speakers(part, "effect")] == ["nobody"]


def test_look_twice_names_what_does_not_fit() -> None:
    assert look_twice(diagnosis("a.png", None), CRACK) == ()
    (even,) = look_twice(diagnosis("a.png", None, probability=0.55), CRACK)
    assert "close to even" in even
    (disagree,) = look_twice(diagnosis("a.png", None, verdict="normal", probability=0.1, location=None), NORMAL)
    assert "disagree" in disagree
    (entry,) = look_twice(diagnosis("a.png", None), NORMAL)
    assert "describes a good part" in entry
    (place,) = look_twice(diagnosis("a.png", None, location="bottom left"), CRACK)
    assert "bottom left" in place and "top right" in place
    faint = FINDINGS.model_copy(update={"cells": tuple(min(cell, FINDINGS.threshold - 0.1) for cell in FINDINGS.cells)})
    assert look_twice(diagnosis("a.png", None, expert=faint), CRACK) == (), "the hottest cell is where the expert sees it"


def test_display_names() -> None:
    assert display_names(["a/b/1.png", "a/b/2.png"]) == ["1.png", "2.png"]
    assert display_names(["a/good/1.png", "a/bad/1.png"]) == ["good/1.png", "bad/1.png"]
    assert display_names(["1.png", "1.png"]) == ["1.png", "1.png"]
    assert display_names([]) == []


@pytest.mark.parametrize(("value", "text"), [(0.0, "0.00"), (0.001, "< 0.01"), (0.5, "0.50"), (0.999, "> 0.99"), (1.0, "1.00")])
def test_probability_text(value: float, text: str) -> None:
    assert probability_text(value) == text


# The map.


@settings(deadline=None, max_examples=60)
@given(
    arrays.arrays(
        np.float64,
        arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=20),
        elements=st.floats(-1e6, 1e6, width=32),
    )
)
def test_map_round_trip(heat: np.ndarray) -> None:
    back = decode_map(encode_map(heat))
    assert back.shape == heat.shape and back.dtype == np.float32
    step = (heat.max() - heat.min()) / 65535
    assert np.abs(back - heat).max() <= step / 2 + 1e-6 * np.abs(heat).max() + 1e-12


def test_map_is_a_png_any_viewer_opens() -> None:
    uri = encode_map(np.linspace(-2.0, 5.0, 30).reshape(5, 6))
    assert uri.startswith("data:image/png;base64,")
    assert decode_map(uri)[0, 0] == pytest.approx(-2.0) and decode_map(uri)[-1, -1] == pytest.approx(5.0)


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((0, 4)), np.array([[1.0, math.nan]]), np.array([[1.0, math.inf]])])
def test_what_is_no_map_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a map is"):
        encode_map(bad)


@pytest.mark.parametrize("uri", ["", "http://example.org/a.png", "data:image/png;base64,!!", "data:image/png;base64,AAAA"])
def test_what_is_no_map_uri_is_refused(uri: str) -> None:
    with pytest.raises(ImageError):
        decode_map(uri)


def test_a_png_without_scale_is_refused() -> None:
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, format="PNG")
    with pytest.raises(ImageError, match="scale"):
        decode_map("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode())


def test_overlay_colours_only_what_is_hot() -> None:
    photograph = Image.new("RGB", (300, 300), (90, 90, 90))
    before = np.asarray(photograph).copy()
    heat = np.full((30, 30), 1.0, dtype=np.float32)
    heat[2:8, 22:28] = 8.0
    picture = np.asarray(overlay(photograph, heat, FINDINGS)).astype(int)
    assert np.array_equal(np.asarray(photograph), before), "the photograph is left as it was"
    assert np.array_equal(picture[150, 50], [90, 90, 90]), "below half the limit nothing is coloured"
    red, _, blue = picture[50, 255]
    assert red > 150 and red > blue + 50
    assert overlay(photograph, None, None).size == photograph.size
    assert overlay(photograph, None, FINDINGS).size == photograph.size


def test_colour_scale_holds_the_limit_inside() -> None:
    calm = np.full((4, 4), 0.5)
    scale = colour_scale(calm, FINDINGS)
    assert scale.low < FINDINGS.threshold < scale.high, "a good part is not stretched to look hot"
    assert colour_scale(calm, None).low < colour_scale(calm, None).high


def test_heat_grows_lighter_evenly() -> None:
    colours = heat_colours(np.linspace(0, 1, 20))
    lightness = colours @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > 0).all()


def test_shrink() -> None:
    assert shrink(Image.new("RGB", (4000, 2000)), 640).size == (640, 320)
    assert shrink(Image.new("RGB", (400, 300)), 640).size == (400, 300)
    assert shrink(Image.new("RGB", (100, 50)), 640).size == (200, 100)
    assert shrink(Image.new("RGB", (5000, 1)), 100).size == (100, 1)


# Tables.


def report(average: float, context: str = "none", **changes: Any) -> EvalReport:
    point = Interval(value=average, low=average - 5, high=average + 5, n=10)
    given: dict[str, Any] = {
        "protocol": EvalProtocol(context=context),
        "model": {"name": "nano"},
        "knowledge_digest": "0",
        "questions": 10,
        "answered": 9,
        "status_counts": {"answered": 9, "unparsed": 1},
        "subtasks": {Subtask.DETECTION.value: point},
        "average": point,
        "detection": {"Overkill": 10.0, "Miss": 20.0, "F1": 80.0},
        "routing": {"top1": 70.0},
    }
    return EvalReport(**{**given, **changes})


def test_rows_come_by_protocol_then_training() -> None:
    rows = result_rows(
        {
            "krdpo-routed": report(60, "routed"),
            "base-none": report(30),
            "krdpo-none": report(50),
            "sft-none": report(40),
            "base-routed": report(35, "routed"),
        }
    )
    assert [row.tag for row in rows] == ["base-none", "sft-none", "krdpo-none", "base-routed", "krdpo-routed"]
    assert [row.stage for row in rows][:3] == ["base", "SFT", "SFT + KR-DPO"]


def test_csv_and_markdown() -> None:
    reports = {"sft|odd\nname": report(40.126)}
    rows = result_rows(reports)
    parsed = list(csv.DictReader(io.StringIO(to_csv(rows, reports))))
    assert parsed[0]["Average"] == "40.13" and parsed[0]["low"] == "35.13"
    assert parsed[0]["Cls."] == "", "what was not measured is empty, never zero"
    lines = to_markdown(rows).splitlines()
    assert len(lines) == 3 and all(line.count("|") == len(HEAD) + 1 for line in lines)
    assert len(cells(rows[0])) == len(HEAD)


@pytest.mark.parametrize(
    ("tag", "stage"), [("krdpo-1shot", "krdpo"), ("KR-DPO", "krdpo"), ("sft_none", "sft"), ("base", "base"), ("basement", None)]
)
def test_stage_of(tag: str, stage: str | None) -> None:
    assert stage_of(tag) == stage


# The run page.


def fill_run(run: Path, image: str) -> None:
    with StageFolder(run / "instruct", stage="instruct", config={}) as folder:
        folder.finish({"questions": 5, "subtasks": {"Anomaly Detection": 5}, "rejected": {"place not verified": 2}})
    with StageFolder(run / "sft", stage="sft", config={}):
        pass
    log = [{"step": i, "loss": 2.0 - i / 40, "learning_rate": 1e-4, "note": "x"} for i in range(60)]
    write_text(run / "sft" / "log.jsonl", "".join(json.dumps(row) + "\n" for row in log) + '{"step": 60, "lo')
    sample = Sample(id="s", image=image, dataset="d", object="bolt", is_anomalous=True)
    options = ("Yes", HOSTILE)
    question = Question(id="q1", sample=sample, subtask=Subtask.DETECTION, text="Any defect?", options=options, answer=0)
    write_records(run / "bench" / "questions.jsonl", [question])
    common = {"dataset": "d", "object": "bolt", "is_anomalous": True, "subtask": Subtask.DETECTION, "n_options": 2, "gold": 0}
    wrong = Prediction(
        question_id="q1", image=image, status="answered", answer=1, probabilities=(0.1, 0.9), raw=HOSTILE, **common
    )
    silent = Prediction(question_id="q2", image="gone.png", status="unparsed", error="no letter", raw="hm", **common)
    write_records(run / "evaluate" / "sft-none" / "predictions.jsonl", [wrong, silent])
    write_text(run / "evaluate" / "sft-none" / "report.json", report(40).model_dump_json())
    write_text(run / "evaluate" / "base-none" / "report.json", report(30).model_dump_json())
    (run / "evaluate" / "krdpo-none").mkdir()


def test_run_page(tmp_path: Path, photographs: tuple[str, str]) -> None:
    run = tmp_path / "runs" / "trial"
    fill_run(run, photographs[0])
    html = render_run(run)
    assert_self_contained(html)
    assert "<script" not in html and "alert('x')" not in html
    text = Page(html).text
    for words in (
        "Run trial",
        "2 evaluations",
        "knowledge: not run.",
        "sft: begun, not finished.",
        "sft: lines of log.jsonl that could not be read: 1.",
        "evaluate/krdpo-none: begun, not finished.",
        "place not verified 2",
        "Any defect?",
        "(right)",
        "(answered)",
        "unparsed : no letter",
        "DCR²-AD-7B",
    ):
        assert words in text, words
    assert html.count("<svg") == 4, "averages, calibration, loss, learning rate"


@pytest.mark.parametrize(
    "content", [{}, {"sft/manifest.json": "{"}, {"evaluate/x/report.json": "[]", "krdpo/log.jsonl": "nonsense\n"}]
)
def test_run_page_over_nothing_or_rubbish(tmp_path: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        write_text(tmp_path / name, text)
    html = render_run(tmp_path)
    assert_self_contained(html)
    assert "evaluate: no finished evaluation." in Page(html).text


def test_curves_plot_what_is_there() -> None:
    rows = (1.0, 2.0)
    names = (
        "loss",
        "margin",
        "margin_path",
        "accuracy_path",
        "reward_chosen",
        "reward_rejected",
        "learning_rate",
        "<b>$x$</b>",
    )
    charts = training_curves("krdpo", Log(rows, dict.fromkeys(names, rows)))
    assert [re.findall('aria-label="([^"]*)"', chart)[0] for chart in charts] == [
        "krdpo: Loss",
        "krdpo: Reward margin, chosen minus rejected",
        "krdpo: Reward of each response",
        "krdpo: Share of pairs ranked rightly",
        "krdpo: Learning rate",
    ]
    assert "chosen" in charts[2] and "rejected" in charts[2] and "path" in charts[1]
    assert training_curves("sft", Log(rows, {"reward_margin_path": rows})) != ()
    assert training_curves("sft", Log(rows, {"tokens": rows})) == ()


def test_routing_is_drawn_at_the_steps_it_was_measured_at() -> None:
    steps = tuple(float(step) for step in range(1, 101))
    top1 = tuple(step / 100 if step % 25 == 0 else math.nan for step in steps)
    *others, chart = training_curves("krdpo", Log(steps, {"loss": steps, "routing_top1": top1, "routing_mrr": top1}))
    assert len(others) == 1 and "dev photographs" in chart and "top1" in chart and "mrr" in chart
    assert "mean over" not in chart  # four points are not smoothed


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run folder"):
        render_run(tmp_path / "absent")


def test_log_with_holes(tmp_path: Path) -> None:
    lines = [
        '{"step": 1, "loss": 2}',
        '{"step": 2, "accuracy_path": 0.5}',
        "[1]",
        '{"loss": 1}',
        "",
        '{"step": 3, "loss": true}',
    ]
    write_text(tmp_path / "log.jsonl", "\n".join(lines))
    log = read_log(tmp_path / "log.jsonl")
    assert log.steps == (1.0, 2.0, 3.0) and log.unreadable == 2
    assert log.series["loss"][0] == 2.0 and math.isnan(log.series["loss"][1]) and math.isnan(log.series["loss"][2])


# Figures.


def test_figures_take_the_colours_of_the_page() -> None:
    svg = figures.curve("Loss", "sft", [1, 2, 3], {"path": [1.0, math.nan, 0.5], "answer": [0.5, 0.4, 0.3]}, zero=True)
    assert svg.startswith("<svg") and 'aria-label="sft: Loss"' in svg
    assert "http" not in svg and "<metadata" not in svg and "var(--model)" in svg and "var(--expert)" in svg
    assert not re.search(r"#0[1-8]0[1-8]0[1-8]", svg), "no placeholder is left"
    assert svg == figures.curve("Loss", "sft", [1, 2, 3], {"path": [1.0, math.nan, 0.5], "answer": [0.5, 0.4, 0.3]}, zero=True)


def test_running_mean() -> None:
    assert figures.running_mean([1.0, 2.0, 3.0], 1).tolist() == [1.0, 2.0, 3.0]
    assert figures.running_mean([1.0, 2.0, 6.0, 2.0, 1.0], 3).tolist() == pytest.approx([1.5, 3.0, 10 / 3, 3.0, 1.5])
    assert figures.running_mean([1.0, math.nan, 3.0], 3).tolist() == pytest.approx([1.0, 2.0, 3.0])
