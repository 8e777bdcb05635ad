"""Adapters of the embedded model that the package carries, by name: ``nano:real``, ``nano:drawn``.

Reads the folders under ``weights``; returns where they lie and what they say of themselves. Knows nothing about how an
adapter is trained (`dcr2ad.training.weights`) or put onto its base (`dcr2ad.models.adapters`).
"""

from __future__ import annotations

from pathlib import Path

from dcr2ad.errors import ModelError, UnknownNameError
from dcr2ad.models.adapters import MARKER, read_trained

WEIGHTS = Path(__file__).parent.parent / "weights"
"""Where the package keeps adapters, each in a folder of its name."""
ADAPTERS = {
    "real": "trained on photographs of four kinds of parts, for research, non-commercial use, and on drawn parts",
    "drawn": "trained on parts the product draws itself, and on nothing else",
}
"""Name -> what it was trained on; ``nano`` is the first that the package carries."""
BASE = "nano:base"
"""The embedded model before any training."""
MOST_BYTES = 30 * 1024 * 1024
"""Size an adapter's folder may have."""


def is_nano(spec: str) -> bool:
    """Whether a model's name means the embedded model."""
    return spec == "nano" or spec.startswith("nano:")


def shipped() -> dict[str, Path]:
    """Folder of each adapter the package carries, the default first."""
    return {name: WEIGHTS / name for name in ADAPTERS if (WEIGHTS / name / MARKER).is_file()}


def full_name(spec: str) -> str:
    """What ``nano`` stands for: the first adapter the package carries, else the untrained model. Other names as they are."""
    return f"nano:{next(iter(shipped()), 'base')}" if spec == "nano" else spec


def adapter_folder(spec: str) -> Path | None:
    """Folder of the adapter that a name of the embedded model asks for; None for the untrained one.

    Raises:
        UnknownNameError: no adapter has that name.
        ModelError: the package carries none of that name.
    """
    name = full_name(spec).removeprefix("nano:")
    if name == "base":
        return None
    if name not in ADAPTERS:
        raise UnknownNameError(f"no model named {spec!r}", f"Use nano, {', '.join(f'nano:{n}' for n in (*ADAPTERS, 'base'))}")
    found = shipped().get(name)
    if found is None:
        raise ModelError(f"this package carries no adapter {name!r}", "Use nano, nano:base, or the folder of one you trained")
    return found


def adapter_digest(spec: str) -> str:
    """Digest of the weights of the package's adapter that a model's name means; empty for any other model."""
    folder = adapter_folder(spec) if is_nano(spec) else None
    return read_trained(folder).digest if folder else ""
