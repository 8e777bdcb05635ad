"""What of a training run survives a kill: checkpoints that appear in one step, and a log without gaps or doubles.

Reads and writes files under a stage's folder. A checkpoint is a folder of its own, written beside the old one, synced and then
renamed; a kill leaves the old or the new one. The log is cut back to the checkpoint a run resumes from. Knows nothing about
models, losses or what the log's numbers mean. Not in the paper.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from dcr2ad.artifacts import write_text
from dcr2ad.errors import RunError

LOG = "log.jsonl"
"""Name of the log in a training stage's folder: one line an optimiser step."""


class Checkpoint(NamedTuple):
    """A run after some steps."""

    step: int
    """Optimiser steps made."""
    weights: dict[str, torch.Tensor]
    """Trained parameters by name."""
    optimizer: dict[str, Any]
    """The optimiser's state."""


class Checkpoints:
    """The newest checkpoint of a run.

    Args:
        folder: the stage's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._work = folder / ".checkpoint.tmp"

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint to disk; the older one goes when this one stands."""
        from safetensors.torch import save_file

        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(parents=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in checkpoint.weights.items()}
        save_file(weights, self._work / "weights.safetensors")
        torch.save(checkpoint.optimizer, self._work / "optimizer.pt")
        for path in (*self._work.iterdir(), self._work):
            _sync(path)
        older = list(self._all())
        self._work.rename(self._folder / f"checkpoint-{checkpoint.step:08d}")
        _sync(self._folder)
        for path in older:
            shutil.rmtree(path)

    def load(self, device: torch.device) -> Checkpoint | None:
        """The newest checkpoint, or None.

        Raises:
            RunError: it cannot be read.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        found = max(self._all(), default=None)
        if found is None:
            return None
        try:
            weights = load_file(found / "weights.safetensors", device=str(device))
            optimizer = torch.load(found / "optimizer.pt", map_location=device, weights_only=True)
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise RunError(f"{found} cannot be read ({reason})", "Delete it to begin again, or use --fresh") from None
        return Checkpoint(int(found.name.rsplit("-", 1)[1]), weights, optimizer)

    def clear(self) -> None:
        """Remove every checkpoint: the run is done."""
        for path in (*self._all(), self._work):
            shutil.rmtree(path, ignore_errors=True)

    def _all(self) -> Iterator[Path]:
        return self._folder.glob("checkpoint-*")


class StepLog:
    """`log.jsonl`: one line an optimiser step, flushed before `write` returns.

    Args:
        folder: the stage's folder.
        keep: steps kept of an earlier log; later lines belong to steps that will be made again.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        path = folder / LOG
        kept = [line for line in read_log(folder) if line["step"] <= keep]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def write(self, line: dict[str, float]) -> None:
        """Append one step."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Have everything on disk; call before a checkpoint that counts on it."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def ends(lines: Sequence[Mapping[str, float]], name: str) -> tuple[float, float]:
    """Means of one logged value over the first and the last tenth of the steps, at least one step each; 0 without steps."""
    tenth = max(1, len(lines) // 10)
    first, last = ([line[name] for line in part] for part in (lines[:tenth], lines[-tenth:]))
    return sum(first) / tenth, sum(last) / tenth


def read_log(folder: Path) -> list[dict[str, float]]:
    """Lines of a training stage's log, a torn last line left out; empty where there is none."""
    path = folder / LOG
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
