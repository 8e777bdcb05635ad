"""The command: bad input is one line and exit status 2, help is quick and loads nothing heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

COMMAND = [sys.executable, "-c", "from dcr2ad.cli import main; main()"]


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, timeout=300, env=dict(os.environ)
    )


@pytest.fixture
def good(tmp_path: Path) -> Path:
    Image.effect_noise((64, 64), 50).convert("RGB").save(tmp_path / "good.png")
    return tmp_path / "good.png"


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert done.stdout == ""
    for word in words:
        assert word in lines[0]


def test_bad_photographs(tmp_path: Path, good: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    refused(run("diagnose", tmp_path / "none.png", "-r", good), "no such image", "none.png")
    refused(run("diagnose", tmp_path / "empty.png", "-r", good), "0 bytes")
    refused(run("diagnose", tmp_path / "text.png", "-r", good), "not an image")
    refused(run("diagnose", good, "-r", tmp_path / "cut.jpg"), "cut.jpg")
    refused(run("diagnose", tmp_path / "dot.png", "-r", good), "1x1")
    (tmp_path / "folder").mkdir()
    refused(run("diagnose", tmp_path / "folder", "-r", good), "holds no image")


def test_unknown_names(tmp_path: Path, good: Path) -> None:
    refused(run("diagnose", good, "-r", good, "--context", "everything"), "no context 'everything'")
    refused(run("diagnose", good, "-r", good, "--context", "oracle:General.surface.scrach"), "General.surface.scratch")
    refused(run("diagnose", good, "-r", good, "--model", "gpt-9"), "no model named 'gpt-9'")
    refused(run("diagnose", good, "-r", good, "--model", f"hf:{tmp_path}"), "config.json")
    refused(run("diagnose", good, "-r", good, "--option", "left", "--option", "right"), "options need a question")
    refused(run("knowledge", "show", "General.surface.scrach"), "General.surface.scratch")
    refused(run("diagnose", good, "-r", good, "--knowledge", tmp_path / "none.jsonl"), "no such file")


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("model = [")
    (tmp_path / "odd.toml").write_text("[sft]\nlearning_rat = 1e-5\n")
    (tmp_path / "bad.jsonl").write_text('{"id": 1}\n')
    refused(run("run", tmp_path / "bad.toml", "--data", tmp_path), "is not TOML")
    refused(run("run", tmp_path / "odd.toml", "--data", tmp_path), "sft.learning_rat")
    refused(run("run", tmp_path / "none.toml", "--data", tmp_path), "no such recipe")
    refused(run("evaluate", tmp_path / "bad.jsonl"), "bad.jsonl:1")
    refused(run("evaluate", tmp_path / "bad.jsonl", "--context", "all"), "--context")
    refused(run("show", tmp_path / "none.jsonl"), "none.jsonl")
    refused(run("instruct", tmp_path / "nowhere", "-o", tmp_path / "out"), "nowhere")
    assert not (tmp_path / "out").exists()


def test_help_is_quick_to_load_and_needs_no_torch() -> None:
    code = "import sys; import dcr2ad.cli; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", f"import json; {code}"], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert not loaded & {"torch", "transformers", "numpy", "PIL", "pydantic", "matplotlib"}
    helped = run("--help")
    assert helped.returncode == 0
    for verb in (
        "diagnose",
        "knowledge",
        "instruct",
        "sft",
        "mine",
        "synthesize",
        "krdpo",
        "evaluate",
        "report",
        "run",
        "demo",
    ):
        assert f"\n  {verb} " in helped.stdout


def test_knowledge_verbs(tmp_path: Path) -> None:
    listed = run("knowledge", "list")
    assert listed.returncode == 0 and len(listed.stdout.splitlines()) >= 160
    shown = run("knowledge", "show", "General.surface.scratch")
    assert json.loads(shown.stdout)["title"] == "Surface scratch"
    found = run("knowledge", "search", "dark round hole in metal")
    assert found.returncode == 0 and len(found.stdout.splitlines()) == 5
    built = run("knowledge", "build", "-o", tmp_path / "k")
    assert built.returncode == 0, built.stderr
    checked = run("knowledge", "check", tmp_path / "k" / "entries.jsonl")
    assert checked.returncode == 0 and "0 problems" in checked.stderr


def test_a_table_of_counts_has_a_row_for_each_thing_counted() -> None:
    from dcr2ad.commands.common import count_rows

    counts = {
        "images": 3,
        "of_object": {"nut": 2, "cap": 1},
        "letters": {"2": [1, 2]},
        "share": 0.66666,
        "none": {},
        "no": None,
    }
    expected = [("images", "3"), ("of object: nut", "2"), ("of object: cap", "1"), ("letters: 2", "1, 2"), ("share", "0.6667")]
    assert count_rows(counts) == expected
