"""How long a diagnosis takes and where the time goes: cold start, warm verdict, whole reasoned diagnosis, peak memory.

    OMP_NUM_THREADS=2 python benchmarks/diagnose_latency.py
    OMP_NUM_THREADS=2 python benchmarks/diagnose_latency.py --model nano:base --parts 6

Parts are drawn by the product, each beside a good one it was not compared with before. Cold start is measured in fresh
processes; every other figure is a median over the parts after one of each kind to warm up. `cpu` figures count processor time,
which other work on the machine hardly touches: with one thread they say what the machine would do alone. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dcr2ad.datasets.drawn import draw_part

KINDS = (("metal_nut", "pit"), ("bottle_cap", "crack"), ("woven_cloth", "hole"), ("metal_nut", None), ("bottle_cap", None))
"""Kind of part and its defect, in turn."""
SEED = 30_000_000
"""Beyond the seeds of training data and of the demo."""
GOALS = {"cold_start_s": 4.0, "verdict_s": 1.0, "diagnosis_s": 6.0, "peak_mb": 1500.0}
"""What is to be kept, on two cores."""

COLD = """
import sys, time
start = time.perf_counter()
from dcr2ad.models.base import open_model
from dcr2ad.expert import Expert
from dcr2ad.stages.diagnose import Diagnoser
imported = time.perf_counter()
open_model(sys.argv[1], precision="auto"); Expert()
print(imported - start, time.perf_counter() - imported)
"""


class Clock:
    """Seconds by label, of calls that are wrapped; the innermost label gets them."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._open: list[float] = []

    def wrap(self, owner: Any, name: str, label: str) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        def timed(*arguments: Any, **named: Any) -> Any:
            with self.span(label):
                return inner(*arguments, **named)

        setattr(owner, name, timed)

    @contextmanager
    def span(self, label: str) -> Iterator[None]:
        start = time.perf_counter()
        self._open.append(0.0)
        try:
            yield
        finally:
            took = time.perf_counter() - start
            self.seconds[label] += took - self._open.pop()
            if self._open:
                self._open[-1] += took


def cold_start(model: str, times: int) -> tuple[float, float]:
    """Medians of seconds to import and to load, each in a process of its own.

    One more process before them writes the bytecode that any installation keeps after its first run.
    """
    found = []
    with tempfile.TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = folder
        for _ in range(times + 1):
            command = [sys.executable, "-c", COLD, model]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            found.append([float(word) for word in done.stdout.split()])
    return statistics.median(row[0] for row in found[1:]), statistics.median(row[1] for row in found[1:])


def draw(folder: Path, kind: str, defect: str | None, seed: int) -> Path:
    """A new picture of a part."""
    path = folder / f"{seed}.png"
    draw_part(kind, defect, seed)[0].save(path)
    return path


def quick(diagnoser: Any, image: Path, reference: Path, name: str) -> None:
    """What a line needs of a part: map, verdict, and the entry it rests on; nothing is written."""
    from dcr2ad.models.base import letter_probabilities
    from dcr2ad.prompts import answer_prompt, build_prompt, detection_question
    from dcr2ad.routing import route_sample
    from dcr2ad.stages.findings import inspect_sample
    from dcr2ad.types import Sample

    sample = Sample(
        id=image.stem,
        image=str(image),
        references=(str(reference),),
        dataset="",
        object=name,
        is_anomalous=False,
    )
    sample, _ = inspect_sample(sample, diagnoser.expert, diagnoser.knowledge_base)
    routing = route_sample(diagnoser.model, sample, diagnoser.knowledge_base, mode=diagnoser.routing)
    entries = [diagnoser.knowledge_base.get(key) for key in routing.listed]
    prompt = answer_prompt(build_prompt(detection_question(sample.id, sample), entries=entries))
    letter_probabilities(diagnoser.model, [prompt], [2])


def measure(model: str, precision: Any, parts: int, folder: Path) -> dict[str, Any]:
    """Medians over parts: verdict with map and routed entry, the whole diagnosis, and the seconds of each piece."""
    from dcr2ad.expert import Expert
    from dcr2ad.kinds import gallery_beside
    from dcr2ad.knowledge.base import KnowledgeBase
    from dcr2ad.models.base import open_model
    from dcr2ad.stages.diagnose import Diagnoser, diagnose

    opened: Any = open_model(model, precision=precision)
    diagnoser = Diagnoser(opened, KnowledgeBase.builtin(), Expert(gallery=gallery_beside(model), precision=precision))
    clock = Clock()
    clock.wrap(diagnoser.expert, "inspect", "visual expert")
    clock.wrap(opened.vlm, "image_features", "image features")
    clock.wrap(opened, "score_held", "routing: titles of the base and of the list")
    clock.wrap(opened, "score", "scoring: answers")
    clock.wrap(opened, "generate", "writing: path and reasoning")
    verdicts, wholes, pieces, work, saved = [], [], [], [], []
    steps = Counter[str]()
    step = opened.runner._step

    def counted(*arguments: Any) -> Any:
        steps["all"] += 1
        return step(*arguments)

    opened.runner._step = counted
    kinds = KINDS[:parts]
    for number in range(parts + len(kinds)):  # each kind once to warm up: from then on its reference is known, as on a line
        kind, defect = kinds[number % len(kinds)]
        name = kind.replace("_", " ")
        reference = draw(folder, kind, None, SEED)
        one, two = (draw(folder, kind, defect, SEED + 2 * number + twin) for twin in (1, 2))
        start, worked = time.perf_counter(), time.process_time()
        quick(diagnoser, one, reference, name)
        verdict, verdict_work = time.perf_counter() - start, time.process_time() - worked
        clock.seconds.clear()
        steps.clear()
        start, worked = time.perf_counter(), time.process_time()
        with clock.span("the rest"):
            made = diagnose(diagnoser, two, [reference], object_name=name)
        whole, whole_work = time.perf_counter() - start, time.process_time() - worked
        print(
            f"{name}: verdict {verdict:.2f} s, whole {whole:.2f} s, a response of {len(made.response.split())} words",
            flush=True,
        )
        if number >= len(kinds):
            verdicts.append(verdict)
            wholes.append(whole)
            pieces.append(dict(clock.seconds))
            work.append((verdict_work, whole_work))
            saved.append(len(opened.vlm.response_ids(made.response)) / max(1, steps["all"]))
    labels = sorted({label for piece in pieces for label in piece})
    return {
        "verdict_s": statistics.median(verdicts),
        "diagnosis_s": statistics.median(wholes),
        "verdict_cpu_s": statistics.median(verdict for verdict, _ in work),
        "diagnosis_cpu_s": statistics.median(whole for _, whole in work),
        "tokens_a_step": statistics.median(saved),
        "pieces_s": {label: statistics.median(piece.get(label, 0.0) for piece in pieces) for label in labels},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--precision", choices=("fp32", "auto"), default="auto", help="auto, as diagnose: bf16 where it pays")
    parser.add_argument("--parts", type=int, default=6, help="parts measured, after one of each kind to warm up")
    parser.add_argument("--cold", type=int, default=3, help="fresh processes for the cold start")
    chosen = parser.parse_args()
    imported, loaded = cold_start(chosen.model, chosen.cold)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(chosen.model, chosen.precision, chosen.parts, Path(folder))
    found |= {
        "model": chosen.model,
        "precision": chosen.precision,
        "import_s": imported,
        "load_s": loaded,
        "cold_start_s": imported + loaded,
    }
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found["threads"] = threads()
    for name, goal in GOALS.items():
        print(f"{name:<14} {found[name]:8.2f}   goal {goal:.0f}: {'kept' if found[name] <= goal else 'missed'}")
    print(f"{found['tokens_a_step']:.1f} tokens of the response a step")
    for label, seconds in found["pieces_s"].items():
        print(f"  {label:<30} {seconds:.2f} s")
    print(json.dumps({key: round(v, 3) if isinstance(v, float) else v for key, v in found.items()}))


def threads() -> int:
    """Threads torch computes with."""
    import torch

    return int(torch.get_num_threads())


if __name__ == "__main__":
    main()
