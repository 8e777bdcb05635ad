"""All stages end to end, through the command: photographs to evaluation table, killed and continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dcr2ad.artifacts import read_manifest, read_records
from dcr2ad.datasets.drawn import write_drawn
from dcr2ad.types import EvalReport, Prediction, PreferencePair
from tests.tiny import tiny_internvl

RECIPE = """
name = "small"
model = "hf:{model}"
seeds = [0, 1]
seeds_from = "krdpo"
[instruct]
max_images = 10
split = "train"
[sft]
learning_rate = 3e-3
method = "lora"
lora_rank = 4
batch_size = 4
gradient_accumulation = 1
group_images = true
epochs = 2
save_steps = 2
[mine]
threshold = 1.0
wanted = 12
[synthesize]
candidates = 3
length_ratio = 0.5
[krdpo]
learning_rate = 2e-3
method = "lora"
lora_rank = 4
batch_size = 2
gradient_accumulation = 1
epochs = 2
save_steps = 2
rehearsal_weight = 0.5
[[variants]]
name = "base"
train = "nothing"
[[variants]]
name = "sft"
train = "sft"
[[variants]]
name = "more-sft"
train = "more-sft"
settings = {{ save_steps = 1 }}
[[variants]]
name = "krdpo"
label = "SFT + KR-DPO"
train = "krdpo"
[evaluate]
split = "dev"
max_images = 6
[[evaluate.protocols]]
context = "none"
[[evaluate.protocols]]
context = "routed"
answering = "reason"
"""

COMMAND = [sys.executable, "-c", "from dcr2ad.cli import main; main()"]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe over a tiny model, and drawn parts."""
    folder = tmp_path_factory.mktemp("pipeline")
    recipe = folder / "small.toml"
    recipe.write_text(RECIPE.format(model=tiny_internvl(folder / "model")))
    write_drawn(folder / "parts", 2, size=96)
    return recipe, folder / "parts"


def _run(recipe: Path, data: Path, out: Path) -> list[str]:
    return [*COMMAND, "run", str(recipe), "--data", str(data), "-o", str(out)]


def _steps(stage: Path) -> int:
    return len((stage / "log.jsonl").read_text().splitlines())


@pytest.mark.slow
def test_photographs_to_table_killed_and_continued(setting: tuple[Path, Path], tmp_path: Path, nano_folder: Path) -> None:
    recipe, data = setting
    out = tmp_path / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    stages = ("instruct/questions.jsonl", "sft/log.jsonl", "krdpo/log.jsonl")
    for file in stages:  # killed three times, each in the middle of another stage
        started = subprocess.Popen(_run(recipe, data, out), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 300
        while not ((out / file).exists() and (out / file).stat().st_size) and started.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert started.poll() is None, started.stderr.read().decode() if started.stderr else ""
        started.send_signal(signal.SIGKILL)
        started.wait()
        if started.stderr:
            started.stderr.close()
    done = subprocess.run(_run(recipe, data, out), env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for stage in ("instruct", "sft", "mine", "synthesize", "more-sft", "krdpo", "seed-1/krdpo", "seed-1/more-sft", "bench"):
        assert read_manifest(out / stage).done
    assert not (out / "seed-1" / "sft").exists(), "all seeds go on from one SFT model"
    first, second = (read_manifest(out / home / "krdpo").inputs for home in ("", "seed-1"))
    assert {name for name in first if first[name] != second[name]} == {"rehearsed"}, (
        "and from its pairs, beside others' questions"
    )
    assert _steps(out / "more-sft") == _steps(out / "krdpo"), "of one budget"
    for stage in ("sft", "krdpo"):
        losses = [json.loads(line)["loss"] for line in (out / stage / "log.jsonl").read_text().splitlines()]
        steps = [json.loads(line)["step"] for line in (out / stage / "log.jsonl").read_text().splitlines()]
        assert steps == list(range(1, len(steps) + 1))
        third = max(1, len(losses) // 3)
        assert sum(losses[-third:]) < sum(losses[:third]), f"{stage}: {losses}"
    assert list(read_records(out / "synthesize" / "pairs.jsonl", PreferencePair))
    folders = sorted(p.name for p in (out / "evaluate").iterdir())
    models = {name.partition("-1shot")[0] for name in folders}
    assert models == {
        "base", "sft", "more-sft", "more-sft-seed1", "krdpo", "krdpo-seed1", "expert-alone", "blind-reader",
    }  # fmt: skip
    assert len(folders) == 2 + 2 * 6
    for name in folders:
        report = EvalReport.model_validate_json((out / "evaluate" / name / "report.json").read_text())
        predictions = list(read_records(out / "evaluate" / name / "predictions.jsonl", Prediction))
        assert report.questions == len(predictions) == len({p.question_id for p in predictions})
    assert "1-shot, expert, score: average over sub-tasks" in done.stdout and "blind reader" in done.stdout
    assert "seeds" in (out / "report.html").read_text() and (out / "report-ablation.csv").exists()
    # A finished run is left as it is: nothing is trained or asked again.
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.jsonl")}
    again = subprocess.run(_run(recipe, data, out), env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    unchanged = {p: p.stat().st_mtime_ns for p in before}
    assert {p.name for p in before if before[p] != unchanged[p]} <= {"entries.jsonl", "predictions.jsonl"}


def test_another_recipe_does_not_mix_with_earlier_work(setting: tuple[Path, Path], tmp_path: Path, nano_folder: Path) -> None:
    from dcr2ad.config import InstructSettings
    from dcr2ad.errors import RunError
    from dcr2ad.knowledge.base import KnowledgeBase
    from dcr2ad.stages.instruct import build_instructions

    _, data = setting
    base = KnowledgeBase.builtin()
    build_instructions(data, tmp_path / "i", base, InstructSettings(max_images=3), seed=0)
    with pytest.raises(RunError, match="direct_share"):
        build_instructions(data, tmp_path / "i", base, InstructSettings(max_images=3, direct_share=0.9), seed=0)
