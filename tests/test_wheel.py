"""What the package that is shipped carries: the adapters under ``weights`` travel in the wheel."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dcr2ad.models import shipped

ROOT = Path(__file__).parents[1]


def test_adapters_and_data_files_are_in_the_wheel(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="hatchling, which builds the wheel, is not installed")
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / ".git").mkdir()  # so that .gitignore counts, as it does in the project
    package = tmp_path / "src" / "dcr2ad"
    named = [
        *(f"weights/{adapter}/{file}" for adapter in shipped.ADAPTERS for file in _files()),
        "report/paper_tables.json",
        "py.typed",
        "models/build.py",
    ]
    for name in named:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_bytes(b"x")
    (package / "__init__.py").write_text('__version__ = "0"\n')
    packed = {file.distribution_path for file in wheel.WheelBuilder(str(tmp_path)).recurse_included_files()}
    assert {f"dcr2ad/{name}" for name in named} <= packed
    assert (ROOT / "src" / "dcr2ad" / "weights") == shipped.WEIGHTS or shipped.WEIGHTS.name == "weights"


def _files() -> tuple[str, ...]:
    """Files of a packed adapter, see `dcr2ad.training.packing`."""
    return ("dcr2ad.json", "adapter_model.safetensors", "adapter_config.json", "README.md", "kinds.npz")
