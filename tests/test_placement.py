"""What a machine gives and gets back."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np
import pytest

from dcr2ad.models.placement import release_memory


def resident() -> float:
    """Resident memory of this process in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc keeps freed pages"
)
def test_freed_memory_goes_back_to_the_system() -> None:
    """Small blocks with others between them that stay: glibc would keep all of it."""
    blocks = [np.ones(8000) for _ in range(4000)]
    full, kept = resident(), blocks[::50]
    del blocks
    release_memory()
    assert len(kept) == 80 and full - resident() > 150
