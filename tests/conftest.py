"""Fixtures shared by the tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the processor; threads of one would wait for those of another. Set before anything imports torch.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def nano_folder() -> Path:
    """The embedded model in the ordinary cache, built there when it is missing."""
    from dcr2ad.models.nano import build_nano

    return build_nano()
