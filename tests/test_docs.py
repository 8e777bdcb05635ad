"""What the documents say exists: verbs, options, targets, files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])


def _commands(text: str) -> list[str]:
    """Lines of code blocks and inline code that call the command."""
    blocks = re.findall(r"^    (dcr2ad .*)$", text, re.MULTILINE)
    return [*blocks, *re.findall(r"`(dcr2ad [^`]+)`", text)]


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """Help text of each verb."""
    code = (
        "import typer, json; from dcr2ad.cli import app; root = typer.main.get_command(app);\n"
        "def walk(c, name, out):\n"
        "    out[name] = ' '.join(o for p in c.params for o in [*p.opts, *p.secondary_opts])\n"
        "    [walk(sub, f'{name} {n}'.strip(), out) for n, sub in getattr(c, 'commands', {}).items()]\n"
        "    return out\n"
        "print(json.dumps(walk(root, '', {})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    import json

    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_every_command_named_exists_with_its_options(document: Path, helps: dict[str, str]) -> None:
    for line in _commands(document.read_text(encoding="utf-8")):
        words = line.split("#")[0].split()[1:]
        if not words or words[0].isupper() or words[0].startswith("-"):
            continue
        for verb in words[0].split("|"):
            rest = words[1:]
            names = [verb]
            if verb in helps and any(name.startswith(f"{verb} ") for name in helps) and rest and not rest[0].startswith("-"):
                names = [f"{verb} {sub}" for sub in rest[0].split("|")]
            for name in names:
                assert name in helps, f"{document.name}: {line}"
                for option in re.findall(r"(?<!\S)--[a-z-]+", " ".join(rest)):
                    assert option in helps[name].split(), f"{document.name}: {line}: {option}"


def test_every_verb_is_told_of_in_the_readme(helps: dict[str, str]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for verb in (
        "diagnose",
        "knowledge",
        "instruct",
        "sft",
        "mine",
        "synthesize",
        "krdpo",
        "bench",
        "evaluate",
        "run",
        "report",
    ):
        assert verb in helps and re.search(rf"\b{verb}\b", readme)


def test_the_readmes_tree_is_true() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme.split("## The house")[1].split("## Licence")[0]
    named = set(re.findall(r"\b([a-z_0-9]+\.py|[a-z_]+/)", tree))
    package = ROOT / "src" / "dcr2ad"
    modules = {p.name for p in package.glob("*.py")} - {"__init__.py"}
    folders = {f"{p.name}/" for p in package.iterdir() if (p / "__init__.py").exists()}
    assert modules <= named, f"not in the README's tree: {sorted(modules - named)}"
    assert folders <= named, f"not in the README's tree: {sorted(folders - named)}"
    for name in named - {"dcr2ad/", "src/"}:
        assert name in modules | folders or (ROOT / name).exists(), f"the README's tree names {name}"


def test_make_targets_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"(?:^    |`)make ([a-z-]+)", text, re.MULTILINE):
            assert target in targets, f"{document.name}: make {target}"


def test_links_and_pictures_exist() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert target.startswith("http") or (document.parent / target).exists(), f"{document.name}: {target}"
