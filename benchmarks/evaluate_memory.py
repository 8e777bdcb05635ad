"""Peak memory of `dcr2ad evaluate` over the number of questions: it must stay flat.

    OMP_NUM_THREADS=1 python benchmarks/evaluate_memory.py [--few 100] [--many 5000] [--model nano|hf:FOLDER] [--expert]
    OMP_NUM_THREADS=1 python benchmarks/evaluate_memory.py --endpoint
    OMP_NUM_THREADS=1 python benchmarks/evaluate_memory.py --held --model nano --few 60 --many 600

Each count is asked by a process of its own, the command as a user runs it, with a tiny random model unless another is named, so
that memory is what the evaluation itself takes. ``--expert`` has the visual expert look at every image; ``--endpoint`` asks a
server of another process that gives log-probabilities without a model, so that memory is the client's. ``--held`` evaluates in
one process and says what it holds after each evaluation, the model with it, once freed pages have gone back to the system: a
peak is the largest batch so far, and rises with their number without anything being kept. What stands behind ``--`` goes to
`dcr2ad evaluate`. Photographs are drawn by the product; five questions an image, four images a reference. Linux: the peak is
the kernel's own mark of the process (VmHWM); a parent's memory is not in it, as it would be in what `wait4` says. The last line
is JSON; ``growth_bytes_per_question`` is what a question more costs.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from benchmarks.mmad_throughput import make_questions
from tests.chat_server import ChatHandler, ChatServer
from tests.tiny import tiny_internvl

from dcr2ad.artifacts import write_records
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.base import ChatModel, open_model
from dcr2ad.models.placement import release_memory
from dcr2ad.record_file import RecordFile
from dcr2ad.stages.evaluate import evaluate
from dcr2ad.types import EvalProtocol, Question

_CHILD = """
import atexit, os, pathlib, runpy
written, status = pathlib.Path(os.environ.pop("STATUS")), pathlib.Path("/proc/self/status")
atexit.register(lambda: written.write_text(status.read_text()))
runpy.run_module("dcr2ad.cli", run_name="__main__", alter_sys=True)
"""
"""Runs the command, and at its end writes down what the kernel says of the process."""
_CHANCES = {"A": 0.4, "B": 0.3, "C": 0.2, "D": 0.1}
"""Probabilities of letters that the server gives."""


def peak(spec: str, questions: Path, out: Path, more: list[str]) -> dict[str, float]:
    """Peak resident memory of one evaluation in megabytes, and its processor time in seconds."""
    status = out.with_suffix(".status")
    command = [sys.executable, "-c", _CHILD, "evaluate", str(questions), "-m", spec, "-o", str(out), *more]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, "STATUS": str(status)}
    ) as process:
        errors = process.stderr.read() if process.stderr else b""
        _, ended, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(ended)
    if process.returncode:
        raise SystemExit(errors.decode(errors="replace"))
    return {"mb": megabytes("VmHWM", status), "seconds": used.ru_utime + used.ru_stime}


def megabytes(mark: str, status: Path) -> float:
    """What the kernel's status of a process says under a mark."""
    kilobytes = re.search(rf"{mark}:\s+(\d+)", status.read_text())
    return int(kilobytes[1]) / 1024 if kilobytes else math.nan


def held(model: ChatModel, questions: Path, out: Path) -> float:
    """Megabytes that this process holds after an evaluation by score."""
    rows = RecordFile(questions, Question)
    evaluate(model, rows, KnowledgeBase.builtin(), EvalProtocol(context="none", expert=False), out)
    release_memory()
    return megabytes("RssAnon", Path("/proc/self/status"))


class Letters(ChatHandler):
    """Gives every question the same log-probabilities of letters."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        listed = [{"token": letter, "logprob": math.log(p), "bytes": None} for letter, p in _CHANCES.items()]
        content = [{"token": "A", "logprob": math.log(_CHANCES["A"]), "bytes": None, "top_logprobs": listed}]
        message = {"role": "assistant", "content": "A"}
        self.complete({"index": 0, "message": message, "finish_reason": "stop", "logprobs": {"content": content}}, 1, 1)


@contextmanager
def endpoint() -> Iterator[str]:
    """Name of a model behind a server of another process."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield mine.recv()
    finally:
        process.terminate()


def _serve(pipe: Any) -> None:
    server = ChatServer(("127.0.0.1", 0), Letters)
    pipe.send(server.spec)
    server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=100)
    parser.add_argument("--many", type=int, default=5000)
    parser.add_argument("--expert", action="store_true", help="the visual expert looks at every image")
    parser.add_argument("more", nargs="*", help="for dcr2ad evaluate")
    named = parser.add_mutually_exclusive_group()
    named.add_argument("--model", default="")
    parser.add_argument("--held", action="store_true", help="what is held afterwards, in one process")
    named.add_argument("--endpoint", action="store_true", help="ask a server of another process")
    given = parser.parse_args()
    more = given.more if given.expert else ["--no-expert", *given.more]
    with tempfile.TemporaryDirectory() as name, endpoint() if given.endpoint else nullcontext("") as served:
        folder = Path(name)
        spec = served or given.model or f"hf:{tiny_internvl(folder / 'model')}"
        questions = make_questions(folder / "photographs", given.many)
        model = open_model(spec) if given.held else None
        found = {}
        for count in (given.few, given.many):
            file = folder / f"{count}.jsonl"
            write_records(file, questions[:count])
            out = folder / f"out-{count}"
            found[count] = {"mb": held(model, file, out)} if model else peak(spec, file, out, more)
            print(json.dumps({"questions": count, **{key: round(value, 1) for key, value in found[count].items()}}), flush=True)
    few, many = found[given.few], found[given.many]
    growth = (many["mb"] - few["mb"]) * 1024**2 / (given.many - given.few)
    what = "held" if given.held else "peak"
    row = {
        "model": "endpoint" if given.endpoint else given.model or "tiny InternVL",
        "expert": given.expert,
        f"{what}_mb_{given.few}": round(few["mb"]),
        f"{what}_mb_{given.many}": round(many["mb"]),
        "ratio": round(many["mb"] / few["mb"], 3),
        "growth_bytes_per_question": round(growth),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
