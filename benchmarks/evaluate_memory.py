"""Peak memory of `dcr2ad evaluate` over the number of questions: it must stay flat.

    OMP_NUM_THREADS=1 python benchmarks/evaluate_memory.py [--few 100] [--many 5000] [--model hf:FOLDER]

Each count is asked by a process of its own, the command as a user runs it, with a tiny random model unless another is named, so
that memory is what the evaluation itself takes. Photographs are drawn by the product; five questions an image, four images a
reference. The last line is JSON; ``growth_bytes_per_question`` is what a question more costs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.mmad_throughput import make_questions
from tests.tiny import tiny_internvl

from dcr2ad.artifacts import write_records


def peak(spec: str, questions: Path, out: Path, more: list[str]) -> dict[str, Any]:
    """Peak resident memory of one evaluation in megabytes, and its processor time in seconds."""
    command = [sys.executable, "-m", "dcr2ad.cli", "evaluate", str(questions), "-m", spec, "--no-expert", "-o", str(out), *more]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        errors = process.stderr.read() if process.stderr else b""
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(errors.decode(errors="replace"))
    return {"mb": used.ru_maxrss / 1024, "seconds": used.ru_utime + used.ru_stime}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=100)
    parser.add_argument("--many", type=int, default=5000)
    parser.add_argument("--model", default="")
    given, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec = given.model or f"hf:{tiny_internvl(folder / 'model')}"
        questions = make_questions(folder / "photographs", given.many)
        found = {}
        for count in (given.few, given.many):
            file = folder / f"{count}.jsonl"
            write_records(file, questions[:count])
            found[count] = peak(spec, file, folder / f"out-{count}", more)
            print(json.dumps({"questions": count, **{key: round(value, 1) for key, value in found[count].items()}}), flush=True)
    few, many = found[given.few], found[given.many]
    growth = (many["mb"] - few["mb"]) * 1024**2 / (given.many - given.few)
    row = {
        "model": given.model or "tiny InternVL",
        f"peak_mb_{given.few}": round(few["mb"]),
        f"peak_mb_{given.many}": round(many["mb"]),
        "ratio": round(many["mb"] / few["mb"], 3),
        "growth_bytes_per_question": round(growth),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
