"""The instruct stage: files, counts, held-out wording, and a killed run that goes on to the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from dcr2ad.artifacts import read_manifest, read_records
from dcr2ad.config import InstructSettings
from dcr2ad.datasets.drawn import write_drawn
from dcr2ad.errors import InputError, RunError, UnknownNameError
from dcr2ad.evidence import unsupported
from dcr2ad.geometry import sample_geometry
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.parsing import parse_response, write_response
from dcr2ad.prompts import build_prompt
from dcr2ad.questions import Rejected
from dcr2ad.stages.building import BuildSummary
from dcr2ad.stages.instruct import build_benchmark, build_instructions
from dcr2ad.types import ExpertFindings, ImagePart, Question, Sample, Subtask

REAL_MINI = Path(__file__).parents[2] / "shared" / "data" / "real-mini"
needs_real_mini = pytest.mark.skipif(not REAL_MINI.is_dir(), reason=f"the shared photographs are not at {REAL_MINI}")

BASE = KnowledgeBase.builtin()
FILES = ("samples.jsonl", "questions.jsonl", "rejected.jsonl")


class FakeExpert:
    """Findings that depend on the file's name alone; interrupts at a given call."""

    fingerprint = "FakeExpert"

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.calls = 0
        self._interrupt_at = interrupt_at

    def inspect(self, image: str, references: Sequence[str]) -> tuple[ExpertFindings, None]:
        assert references
        if self.calls == self._interrupt_at:
            raise KeyboardInterrupt
        self.calls += 1
        hot = int(Path(image).stem) + (0 if "good" in image else 4)
        cells = tuple(float(cell == hot % 9) for cell in range(9))
        score = float(hot)
        return ExpertFindings(
            score=score,
            raw=0.1,
            threshold=3.5,
            cell=hot % 9,
            cells=cells,
            extent=0.02,
            elongation=2,
            tone="same",
            box=(0, 0, 1, 1),
        ), None


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "drawn"
    write_drawn(folder, 3, seed=1, size=64)
    return folder


def _bytes(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def _build(data: Path, out: Path, **how: object) -> BuildSummary:
    chosen = {name: how.pop(name) for name in InstructSettings.model_fields if name in how and name != "expert"}
    settings = InstructSettings.model_validate({"listed_share": 0.0, **chosen})
    return build_instructions(data, out, BASE, settings, seed=5, **how)  # type: ignore[arg-type]


def test_samples_questions_and_counts(drawn: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    summary = _build(drawn, tmp_path / "a", expert=FakeExpert(), progress=lambda done, total: seen.append((done, total)))
    samples = list(read_records(tmp_path / "a" / "samples.jsonl", Sample))
    questions = list(read_records(tmp_path / "a" / "questions.jsonl", Question))
    rejected = list(read_records(tmp_path / "a" / "rejected.jsonl", Rejected))
    assert summary.images == len(samples) == summary.with_findings == seen[-1][0] == seen[-1][1]
    assert summary.questions == len(questions) == summary.reasoned + summary.direct == sum(summary.subtasks.values())
    assert sum(summary.rejected.values()) == len(rejected) and set(summary.subtasks) <= {s.value for s in Subtask}
    assert summary.defective == sum(s.is_anomalous for s in samples)
    assert 0.15 < summary.direct / summary.questions < 0.45
    for question in questions:
        assert question.response is not None and question.response.answer == question.answer
        assert parse_response(write_response(question.response), question.options) == question.response
        if question.response.entry and question.sample.right_key:
            assert question.response.entry == BASE.get(question.sample.right_key).title
    assert read_manifest(tmp_path / "a").summary == summary.model_dump(mode="json")


@pytest.mark.parametrize("stop", [0, 1, 9])
def test_a_stopped_run_continues_to_the_same_bytes(drawn: Path, tmp_path: Path, stop: int) -> None:
    whole = _build(drawn, tmp_path / "whole", expert=FakeExpert())
    wanted = _bytes(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _build(drawn, tmp_path / "cut", expert=FakeExpert(stop))
    # A kill between two writes leaves questions of an image that is not marked as done, the last one torn.
    done = (tmp_path / "cut" / "questions.jsonl").read_bytes()
    assert wanted["questions.jsonl"].startswith(done) and len(done) < len(wanted["questions.jsonl"])
    rest = wanted["questions.jsonl"][len(done) :].splitlines(keepends=True)
    (tmp_path / "cut" / "questions.jsonl").write_bytes(done + rest[0] + rest[1][:50])
    expert = FakeExpert()
    assert _build(drawn, tmp_path / "cut", expert=expert) == whole
    assert _bytes(tmp_path / "cut") == wanted and expert.calls == whole.images - stop


def test_a_process_killed_at_any_moment_continues_to_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    script = (
        "import sys, time; from dcr2ad.stages.instruct import *; from dcr2ad.config import InstructSettings\n"
        "def slow(done, total): time.sleep(0.05)\n"
        "settings = InstructSettings(listed_share=0.0)\n"
        "build_instructions(sys.argv[1], sys.argv[2], KnowledgeBase.builtin(), settings, seed=5, progress=slow)\n"
    )
    whole = _build(drawn, tmp_path / "whole")
    process = subprocess.Popen([sys.executable, "-c", script, str(drawn), str(tmp_path / "cut")])
    samples, deadline = tmp_path / "cut" / "samples.jsonl", time.monotonic() + 60
    while time.monotonic() < deadline and not (samples.exists() and samples.read_bytes().count(b"\n") >= 3):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 3 <= samples.read_bytes().count(b"\n") < whole.images
    assert _build(drawn, tmp_path / "cut") == whole and _bytes(tmp_path / "cut") == _bytes(tmp_path / "whole")


def test_a_finished_run_is_not_done_again_and_another_seed_is_refused(drawn: Path, tmp_path: Path) -> None:
    first = _build(drawn, tmp_path, max_images=4, expert=FakeExpert())
    expert = FakeExpert()
    assert _build(drawn, tmp_path, max_images=4, expert=expert) == first and expert.calls == 0
    with pytest.raises(RunError, match="max_images"):
        _build(drawn, tmp_path, max_images=5, expert=FakeExpert())
    assert _build(drawn, tmp_path, max_images=5, expert=FakeExpert(), fresh=True).images == 5


def test_an_unreadable_image_is_dropped_and_counted_and_stays_so(drawn: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_drawn(data, 3, seed=1, size=64)
    broken = data / "metal_nut" / "test" / "scratch" / "000.png"
    broken.write_bytes(broken.read_bytes()[:200])
    (data / "metal_nut" / "test" / "pit" / "000.png").write_bytes(b"")
    summary = _build(data, tmp_path / "out")
    assert summary.rejected["image or mask cannot be read"] == 1
    assert summary.skipped == {"empty file; the image is left out": 1}
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [line["sample"] for line in lines if line["subtask"] is None] == [
        "metal_nut/test/scratch/000.png",
        str(data / "metal_nut" / "test" / "pit" / "000.png"),
    ]
    (tmp_path / "out" / "manifest.json").write_text(
        (tmp_path / "out" / "manifest.json").read_text().replace('"done": true', '"done": false')
    )
    before = _bytes(tmp_path / "out")
    assert _build(data, tmp_path / "out") == summary and _bytes(tmp_path / "out") == before


def test_the_benchmark_has_other_wording_no_responses_and_other_images(drawn: Path, tmp_path: Path) -> None:
    made = _build(drawn, tmp_path / "instruct")
    bench = build_benchmark(drawn, tmp_path / "bench", BASE, split="dev", seed=5)
    train = list(read_records(tmp_path / "instruct" / "questions.jsonl", Question))
    asked = list(read_records(tmp_path / "bench" / "questions.jsonl", Question))
    assert set(bench.subtasks) == set(made.subtasks) == {s.value for s in Subtask}
    assert all(q.response is None for q in asked) and bench.reasoned == bench.direct == 0
    assert not {q.provenance["template"] for q in train} & {q.provenance["template"] for q in asked}
    assert not {q.sample.image for q in train} & {q.sample.image for q in asked}


def test_knowledge_can_be_listed_in_a_share_of_the_prompts(drawn: Path, tmp_path: Path) -> None:
    _build(drawn, tmp_path / "none")
    assert not any(q.candidates for q in read_records(tmp_path / "none" / "questions.jsonl", Question))
    _build(drawn, tmp_path / "half", listed_share=0.5)
    questions = list(read_records(tmp_path / "half" / "questions.jsonl", Question))
    listed = [q for q in questions if q.candidates]
    assert 0.3 < len(listed) / len(questions) < 0.7
    assert all(q.sample.right_key in q.candidates and len(set(q.candidates)) == 4 for q in listed)


def test_a_share_of_the_prompts_shows_no_reference_and_keeps_the_findings(drawn: Path, tmp_path: Path) -> None:
    _build(drawn, tmp_path / "all", expert=FakeExpert())
    _build(drawn, tmp_path / "half", expert=FakeExpert(), unshown_share=0.5)
    shown = list(read_records(tmp_path / "all" / "questions.jsonl", Question))
    half = list(read_records(tmp_path / "half" / "questions.jsonl", Question))
    assert all(q.sample.references for q in shown) and all(q.sample.expert for q in half)
    assert 0.3 < sum(not q.sample.references for q in half) / len(half) < 0.7
    for one, other in zip(shown, half, strict=True):
        assert one == other.model_copy(update={"sample": one.sample}), "nothing else changes"
        if not other.sample.references:
            prompt = build_prompt(other)
            assert [p.path for p in prompt.parts if isinstance(p, ImagePart)] == [one.sample.image]
            assert prompt == build_prompt(one, shots=0)


def test_a_stopped_run_with_exchanged_lists_ends_as_the_unbroken_one(drawn: Path, tmp_path: Path) -> None:
    shares = {"listed_share": 1.0, "exchanged_share": 0.5, "direct_share": 0.0}
    _build(drawn, tmp_path / "whole", expert=FakeExpert(), **shares)
    with pytest.raises(KeyboardInterrupt):
        _build(drawn, tmp_path / "cut", expert=FakeExpert(interrupt_at=30), **shares)
    _build(drawn, tmp_path / "cut", expert=FakeExpert(), **shares)
    assert _bytes(tmp_path / "cut") == _bytes(tmp_path / "whole")
    asked = [q for q in read_records(tmp_path / "cut" / "questions.jsonl", Question) if q.exchanged]
    assert len(asked) > 5


def test_questions_that_the_findings_do_not_carry_can_be_left_out(drawn: Path, tmp_path: Path) -> None:
    every = _build(drawn, tmp_path / "every", expert=FakeExpert())
    carried = _build(drawn, tmp_path / "carried", expert=FakeExpert(), supported_only=True)
    assert "the findings do not carry the answer" not in every.rejected
    assert carried.rejected["the findings do not carry the answer"] > 0 and 0 < carried.questions < every.questions
    for question in read_records(tmp_path / "carried" / "questions.jsonl", Question):
        assert unsupported(question, sample_geometry(question.sample)) == ""
        if question.subtask is Subtask.DETECTION:
            assert question.sample.expert is not None
            assert question.sample.expert.is_anomalous == question.sample.is_anomalous
    for letters in carried.letters.values():  # what is left out is not counted, so the letters stay even
        assert max(letters) - min(letters) <= 2 * len(Subtask)


def test_sides_are_even_whatever_the_findings_deny(drawn: Path, tmp_path: Path) -> None:
    """The findings deny more of one side than of the other, which is known only at the end."""
    made = _build(drawn, tmp_path, expert=FakeExpert(), supported_only=True)
    side_of = {s.id: (s.object, s.is_anomalous) for s in read_records(tmp_path / "samples.jsonl", Sample)}
    denied, left_out = Counter[tuple[str, bool]](), Counter[tuple[str, bool]]()
    for row in read_records(tmp_path / "rejected.jsonl", Rejected):
        if row.subtask is Subtask.DETECTION:
            (denied if row.reason.startswith("the findings") else left_out)[side_of[row.sample]] += 1
    asked = read_records(tmp_path / "questions.jsonl", Question)
    sides = Counter(side_of[question.sample.id] for question in asked if question.subtask is Subtask.DETECTION)
    both = {name for name, _ in sides if sides[name, True] and sides[name, False]}
    assert both and all(sides[name, True] == sides[name, False] for name in both)
    assert any(denied[name, True] != denied[name, False] for name in both)
    shown = Counter(side_of.values())
    carried = {name: [shown[name, side] - denied[name, side] for side in (True, False)] for name in both}
    assert all(sides[name, True] == min(carried[name]) for name in both), "no more than that is left out"
    assert sides.total() + denied.total() + left_out.total() == made.images


def test_evening_the_sides_can_be_stopped_between_its_two_writes(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _build(drawn, tmp_path / "whole", expert=FakeExpert(), supported_only=True)
    replace = Path.replace

    def stopped(path: Path, target: Path) -> Path:
        if path.name == "questions.jsonl.tmp":
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        _build(drawn, tmp_path / "cut", expert=FakeExpert(), supported_only=True)
    monkeypatch.undo()
    assert len(_bytes(tmp_path / "cut")["questions.jsonl"]) > len(_bytes(tmp_path / "whole")["questions.jsonl"])
    _build(drawn, tmp_path / "cut", expert=FakeExpert(), supported_only=True)
    assert _bytes(tmp_path / "cut") == _bytes(tmp_path / "whole")


def test_some_sub_tasks_alone_can_be_asked_about(drawn: Path, tmp_path: Path) -> None:
    wanted = (Subtask.ANALYSIS, Subtask.LOCALIZATION)
    summary = _build(drawn, tmp_path, subtasks=[subtask.value for subtask in wanted])
    assert set(summary.subtasks) == {subtask.value for subtask in wanted}


def test_bad_settings_are_refused(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="no teacher"):
        build_instructions(drawn, tmp_path / "a", BASE, InstructSettings(teacher="gpt"), seed=0)
    with pytest.raises(InputError, match="no image of split"):
        _build(drawn, tmp_path / "b", split="validation")


def test_the_stage_imports_no_torch() -> None:
    code = "import sys, dcr2ad.stages.instruct, dcr2ad.datasets.drawn; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@needs_real_mini
def test_real_mini_in_proportion(tmp_path: Path) -> None:
    summary = build_instructions(REAL_MINI, tmp_path / "a", BASE, InstructSettings(), seed=0, datasets=("mtd", "cookies"))
    assert set(summary.objects) == {"magnetic tile", "cookie"} and not summary.skipped
    assert all(max(counts) - min(counts) <= 14 for counts in summary.letters.values())
    small = build_instructions(REAL_MINI, tmp_path / "b", BASE, InstructSettings(max_images=40), seed=0)
    assert small.images == 40 and small.defective == 20 and len(small.objects) == 6
