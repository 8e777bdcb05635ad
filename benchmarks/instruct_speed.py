"""Images a second of `build_instructions` with the built-in teacher and without the expert, and its memory at two sizes.

    python benchmarks/instruct_speed.py [FOLDER] [--small 400] [--large 1600]

FOLDER is any folder `instruct` reads; without it, drawn parts of 336 pixels are made first. Its images are repeated under
other names (links, also of their masks and references) until there are enough. Each size runs in a process of its own on one
thread; time is wall-clock and processor time of the stage alone, reader and writer included, blind reader and imports not.
Memory is the peak of resident memory; flat means that it does not grow with the number of images, beyond the samples' own
records. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    """Run both sizes, each in its own process, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--small", type=int, default=400)
    parser.add_argument("--large", type=int, default=1600)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    with tempfile.TemporaryDirectory() as scratch:
        source = options.folder or drawn(Path(scratch) / "drawn")
        runs = [run(source, Path(scratch), size) for size in (options.small, options.large)]
    small, large = runs
    print(
        json.dumps(
            {
                "images_per_second": large["images_per_second"],
                "images_per_processor_second": large["images_per_processor_second"],
                "peak_mb": [small["peak_mb"], large["peak_mb"]],
                "kb_per_image": round(1024 * (large["peak_mb"] - small["peak_mb"]) / (large["images"] - small["images"]), 2),
            }
        )
    )


def drawn(folder: Path) -> Path:
    """A folder of drawn parts."""
    from dcr2ad.datasets.drawn import write_drawn

    write_drawn(folder, 6, seed=1)
    return folder


def run(source: Path, scratch: Path, size: int) -> dict[str, float]:
    """One size in a process of its own."""
    data, out = scratch / f"data{size}", scratch / f"out{size}"
    repeat(source, data, size)
    command = [sys.executable, __file__, "--child", str(data), str(out)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True, text=True)
    print(done.stdout.strip(), flush=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def repeat(source: Path, data: Path, size: int) -> None:
    """An index of `size` images: those of the source, linked again and again."""
    from dcr2ad.datasets.folder import read_folder

    samples = list(read_folder(source, parts=("test",)))
    data.mkdir()
    with (data / "index.jsonl").open("w", encoding="utf-8") as index:
        for number in range(size):
            sample = samples[number % len(samples)]
            names = {"image": sample.image, "ref": next(iter(sample.references), None), "mask": next(iter(sample.masks), None)}
            row: dict[str, object] = {
                "label": "defect" if sample.is_anomalous else "good",
                "dataset": sample.dataset,
                "part": "test",
            }
            row |= {"category": sample.object.replace(" ", "_"), "defect": sample.defect, "group": f"g{number}"}
            for name, path in names.items():
                if path is not None:
                    link = data / f"{number}-{name}{Path(path).suffix}"
                    link.symlink_to(path)
                    row[name] = link.name
            index.write(json.dumps(row) + "\n")


def child(data: str, out: str) -> None:
    """Time the stage in this process."""
    from dcr2ad.config import InstructSettings
    from dcr2ad.knowledge import KnowledgeBase
    from dcr2ad.stages.instruct import build_instructions

    base, settings = KnowledgeBase.builtin(), InstructSettings(split="", expert=False)
    wall, processor = time.perf_counter(), time.process_time()
    made = build_instructions(data, out, base, settings, seed=0)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps(
            {
                "images": made.images,
                "questions": made.questions,
                "images_per_second": round(made.images / wall, 1),
                "images_per_processor_second": round(made.images / processor, 1),
                "peak_mb": round(peak, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
