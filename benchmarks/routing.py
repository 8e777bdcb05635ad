"""Cost of ranking every entry of the base, in answers: run by hand, ``python benchmarks/routing.py [MODEL] [-n 5]``.

One question's answer is what `dcr2ad diagnose` does for its verdict: prompt with photograph and reference encoded, path and
reasoning written, option probabilities read. Ranking is the route mode ``recall`` over the whole base. Each is timed cold (the
images' features and the prefix are new) and warm (after a question about the same photograph). The naive way runs the whole
prompt again for each entry; it is timed on a few entries and scaled up. The order of the three turns with each photograph.
Processor time, so that a busy machine does not count. The last line is JSON.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from dcr2ad.datasets.drawn import draw_part
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.models.hf import HFModel
from dcr2ad.prompts import build_prompt, detection_question, knowledge_prompt
from dcr2ad.reasoning import write_responses
from dcr2ad.routing import route_sample
from dcr2ad.types import Sample

NAIVE = 4
"""Entries the naive way is timed on."""


def timed(work, *arguments) -> float:
    begun = time.process_time()
    work(*arguments)
    return time.process_time() - begun


def forget(model: HFModel) -> None:
    model.runner.reset()
    model.vlm.forget_features()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="nano")
    parser.add_argument("-n", type=int, default=5, help="photographs")
    asked = parser.parse_args()
    base, model = KnowledgeBase.builtin(), HFModel.open(asked.model)
    rows: dict[str, list[float]] = {name: [] for name in ("answer", "rank", "rank_warm", "naive")}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(asked.n + 1):
            paths = [Path(folder) / f"{number}{kind}.png" for kind in ("good", "bad")]
            for path, defect in zip(paths, (None, "scratch"), strict=True):
                draw_part("metal_nut", defect, 31_000_000 + number)[0].save(path)
            sample = Sample(
                id=str(number),
                image=str(paths[1]),
                references=(str(paths[0]),),
                dataset="",
                object="metal nut",
                is_anomalous=True,
            )
            question = detection_question("q", sample)
            prompt = build_prompt(question)

            def answer(prompt=prompt, question=question) -> None:
                forget(model)
                write_responses(model, [prompt], [question.options])

            def rank(sample=sample) -> None:
                forget(model)
                route_sample(model, sample, base, mode="recall")

            def naive(prompt=prompt) -> None:
                for entry in base.entries[:NAIVE]:
                    forget(model)
                    model.score([knowledge_prompt(prompt)], [[f"{entry.title}:"]])

            turn = [("answer", answer), ("rank", rank), ("naive", naive)]
            found = {name: timed(work) for name, work in (*turn[number % 3 :], *turn[: number % 3])}
            answer()
            found["rank_warm"] = timed(lambda sample=sample: route_sample(model, sample, base, mode="recall"))
            if number:  # the first photograph warms the machine up
                for name, value in found.items():
                    rows[name].append(value)
            sys.stderr.write(f"{number}: " + ", ".join(f"{name} {value:.2f} s" for name, value in found.items()) + "\n")
    middle = {name: statistics.median(values) for name, values in rows.items()}
    middle["naive"] *= len(base) / NAIVE
    result = {
        "entries": len(base),
        "photographs": asked.n,
        **{f"{name}_s": round(value, 3) for name, value in middle.items()},
        "ratio_to_answer": round(middle["rank"] / middle["answer"], 3),
        "ratio_to_answer_warm": round(middle["rank_warm"] / middle["answer"], 3),
        "naive_over_rank": round(middle["naive"] / middle["rank"], 1),
    }
    print(f"one answer {middle['answer']:.2f} s, all {len(base)} entries {middle['rank']:.2f} s, naive {middle['naive']:.0f} s")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
