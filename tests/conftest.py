"""Fixtures shared by the tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def nano_folder() -> Path:
    """The embedded model in the ordinary cache, built there when it is missing."""
    from dcr2ad.models.nano import build_nano

    return build_nano()
