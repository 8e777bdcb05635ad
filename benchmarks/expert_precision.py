"""What bfloat16 changes in the visual expert's findings, and what it saves: run by hand on a benchmark's photographs.

    OMP_NUM_THREADS=1 python benchmarks/expert_precision.py BENCH/questions.jsonl --kinds KINDS/kinds.npz

Each photograph is inspected beside its first reference by an expert in float32 and by one in bfloat16; processor time, each
reference new. Needs a processor with units for bfloat16. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from dcr2ad.artifacts import read_records
from dcr2ad.expert import Expert
from dcr2ad.kinds import load_gallery
from dcr2ad.types import ExpertFindings, Question, Sample


def inspected(expert: Expert, sample: Sample) -> tuple[ExpertFindings, float]:
    """Findings, and processor seconds."""
    begun = time.process_time()
    findings, _ = expert.inspect(sample.image, sample.references[:1])
    return findings, time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=Path)
    parser.add_argument("--kinds", type=Path)
    parser.add_argument("-n", type=int, default=36, help="photographs, spread over the benchmark")
    asked = parser.parse_args()
    photographs = list(
        {q.sample.image: q.sample for q in read_records(asked.questions, Question) if q.sample.references}.values()
    )
    chosen = photographs[:: max(1, len(photographs) // asked.n)][: asked.n]
    gallery = load_gallery(asked.kinds) if asked.kinds else None
    exact, quick = Expert(gallery=gallery), Expert(gallery=gallery, precision="auto")
    pairs = [(inspected(exact, sample), inspected(quick, sample)) for sample in chosen]
    moved = [abs(one.score - two.score) for (one, _), (two, _) in pairs]

    def same(name: str) -> float:
        return 100 * statistics.mean(getattr(one, name) == getattr(two, name) for (one, _), (two, _) in pairs)

    kinds = [(one.kinds[:1], two.kinds[:1]) for (one, _), (two, _) in pairs]
    result = {
        "photographs": len(chosen),
        "fp32_s": statistics.median(seconds for (_, seconds), _ in pairs),
        "bf16_s": statistics.median(seconds for _, (_, seconds) in pairs),
        "score_moved_most": max(moved),
        "score_moved_mean": statistics.mean(moved),
        "same_verdict": same("is_anomalous"),
        "same_cell": same("cell"),
        "same_first_kind": 100 * statistics.mean([k.key for k in one] == [k.key for k in two] for one, two in kinds),
    }
    print(json.dumps({key: round(value, 3) for key, value in result.items()}))


if __name__ == "__main__":
    main()
