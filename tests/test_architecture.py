"""The house: imports point down only, heavy libraries stay where they belong, and the command starts light."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import time
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "dcr2ad"

LAYERS: dict[str, int] = {
    "__init__": 0,
    "errors": 0,
    "types": 0,
    "artifacts": 1,
    "balance": 1,
    "baselines": 2,
    "blind": 2,
    "blind_pairs": 2,
    "caches": 0,
    "choice_model": 1,
    "config": 1,
    "geometry": 2,
    "images": 1,
    "limits": 0,
    "metrics": 1,
    "mmad_scorer": 1,
    "pairing": 2,
    "parsing": 1,
    "places": 1,
    "record_file": 1,
    "datasets": 2,
    "deception": 2,
    "endpoint_teacher": 2,
    "evidence": 2,
    "exchange": 2,
    "expert": 2,
    "kind_names": 2,
    "kinds": 2,
    "knowledge": 2,
    "leaks": 2,
    "meaning": 2,
    "models": 2,
    "patches": 1,
    "prompts": 2,
    "questions": 2,
    "rankings": 2,
    "regions": 1,
    "reasoning": 2,
    "report": 2,
    "rivals": 2,
    "routing": 2,
    "statements": 2,
    "teacher": 2,
    "verify": 2,
    "wordings": 2,
    "training": 3,
    "stages": 4,
    "cli": 5,
    "commands": 5,
    "console": 5,
    "server": 5,
}
"""Layer of each module or package directly under dcr2ad; one layer may use itself and what lies below."""

TORCH = {"expert", "kinds", "meaning", "models", "patches", "training", "stages", "commands", "server"}
"""Who may import torch: what computes, and what opens it for a verb."""


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def unit(module: str) -> str:
    """Module or package directly under dcr2ad that a dotted name lies in."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def known_modules() -> frozenset[str]:
    return frozenset(dotted(path) for path in modules())


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def type_checking_only(path: Path) -> set[ast.stmt]:
    """Imports under ``if TYPE_CHECKING``: they exist for the type checker and are never run."""
    guarded = [node for node in ast.walk(tree(path)) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {inner for node in guarded for part in node.body for inner in ast.walk(part) if isinstance(inner, ast.stmt)}


def imports(path: Path, *, at_top: bool = False) -> set[str]:
    """Dotted names a module imports when it runs; with `at_top` only those of its own import, not of its functions."""
    skipped = type_checking_only(path)
    nodes = tree(path).body if at_top else list(ast.walk(tree(path)))
    found: set[str] = set()
    for node in nodes:
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import; write the whole name"
            assert node.module is not None
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & known_modules() or {node.module}
    return found


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_imports_point_down_only(path: Path) -> None:
    here = unit(dotted(path))
    assert here in LAYERS, f"{here} has no layer yet: place it in LAYERS, and in the tree of the README"
    for name in imports(path):
        if name not in known_modules():
            continue
        assert LAYERS[unit(name)] <= LAYERS[here], f"{dotted(path)} (layer {LAYERS[here]}) imports {name} above it"


def test_no_module_imports_itself_through_others() -> None:
    graph = {
        dotted(path): {name for name in imports(path, at_top=True) if name in known_modules() and name != "dcr2ad"}
        for path in modules()
    }
    tuple(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_heavy_libraries_stay_where_they_belong(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    here = unit(dotted(path))
    if here not in TORCH:
        assert not roots & {"torch", "transformers", "peft", "accelerate", "trl"}, dotted(path)
    if dotted(path) not in {"dcr2ad.report.figures", "dcr2ad.report.sunburst"}:
        assert "matplotlib" not in roots, "report/figures.py and report/sunburst.py draw"


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_each_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(tree(path)), f"{dotted(path)} has no docstring"


def test_layers_name_what_exists() -> None:
    """A layer without a module is a leftover; the server and the expert are planned."""
    existing = {unit(dotted(path)) for path in modules()}
    assert set(LAYERS) - existing <= {"server", "expert"}


needs_command = pytest.mark.skipif(
    importlib.util.find_spec("dcr2ad.cli") is None, reason="the command does not stand yet: dcr2ad.cli is missing"
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False)


@needs_command
def test_the_command_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "peft", "numpy", "PIL", "matplotlib", "pydantic")
    done = run("-c", f"import sys, dcr2ad.cli; print([name for name in {heavy!r} if name in sys.modules])")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_what_runs_no_language_model_does_not_wait_for_transformers() -> None:
    modules = "dcr2ad.expert, dcr2ad.models.sentence, dcr2ad.stages.diagnose"
    done = run("-c", f"import sys, {modules}; print([name for name in ('transformers', 'peft') if name in sys.modules])")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_first_model_leaves_the_garbage_collector_as_it_was() -> None:
    """Off while transformers is imported, which it would take a sixth longer; what was imported is not looked at again."""
    script = """
import gc, sys
from dcr2ad.errors import ModelError
from dcr2ad.models.base import open_model
for collecting in (sys.argv[1] == "on",) * 2:
    gc.enable() if collecting else gc.disable()
    try:
        open_model("hf:no such folder")
    except ModelError:
        print(gc.isenabled(), gc.get_freeze_count() > 100_000)
"""
    done = run("-c", script, "on")
    assert done.stdout.split() == ["True", "True"] * 2, done.stderr
    done = run("-c", script, "off")
    assert done.stdout.split() == ["False", "False"] * 2, done.stderr


@needs_command
def test_help_works() -> None:
    start = time.perf_counter()
    done = run("-m", "dcr2ad.cli", "--help")
    took = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
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
        "doctor",
    ):
        assert verb in done.stdout
    assert took < 10, "loose: a busy machine is slow; alone it takes under 0.4 s"
