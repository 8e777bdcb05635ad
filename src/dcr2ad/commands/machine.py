"""What this machine has."""

from __future__ import annotations

import os
import platform
from importlib import metadata

from dcr2ad import console


def run_doctor() -> None:
    """Verb `doctor`."""
    import torch

    from dcr2ad.models.nano import cache_folder
    from dcr2ad.models.shipped import ADAPTERS, full_name, shipped

    rows: list[tuple[str, object]] = [("python", platform.python_version()), ("processors", os.cpu_count())]
    rows.append(("GPU", torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none: everything runs on the CPU"))
    for name in ("dcr2ad", "torch", "transformers", "peft", "fastapi", "trl", "vllm", "ray", "deepspeed"):
        try:
            rows.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            rows.append((name, "not installed"))
    rows.append(("embedded model", "built" if any(cache_folder().glob("nano*/config.json")) else "not built yet"))
    carried = shipped()
    for name, about in ADAPTERS.items():
        rows.append((f"adapter nano:{name}", about if name in carried else "not in this package"))
    rows.append(("nano stands for", full_name("nano") if carried else "nano:base: answers are untrained"))
    rows.append(("cache", cache_folder()))
    console.out.print(console.table("dcr2ad doctor", ("what", "found"), rows))
