"""Cost of ranking every entry of the base, in answers: run by hand, ``python benchmarks/routing.py [MODEL] [-n 5]``.

A letter is one question's answer read off its letters: prompt with photograph, reference and findings encoded, option
probabilities read. A reasoned answer is what `dcr2ad diagnose` does for its verdict: the same with path and reasoning written
before. Ranking is the route mode ``recall`` over the entries that can apply to the object, and over the whole base. Each
is timed cold (the images' features and the prefix are new) and warm (after a question about the same photograph). The naive way
runs the whole prompt again for each entry; it is timed on a few entries and scaled up. The order turns with each photograph.
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
from dcr2ad.expert import Expert
from dcr2ad.kinds import gallery_beside
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.models.base import letter_probabilities
from dcr2ad.models.hf import HFModel
from dcr2ad.prompts import answer_prompt, build_prompt, detection_question, knowledge_prompt
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
    parser.add_argument("--precision", choices=("fp32", "auto"), default="auto", help="auto, as diagnose: bf16 where it pays")
    asked = parser.parse_args()
    base, model = KnowledgeBase.builtin(), HFModel.open(asked.model, precision=asked.precision)
    expert = Expert(gallery=gallery_beside(asked.model))
    rows: dict[str, list[float]] = {}
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
                expert=expert.inspect(paths[1], paths[:1])[0],
            )
            question = detection_question("q", sample)
            prompt = build_prompt(question)

            def letter(prompt=prompt) -> None:
                letter_probabilities(model, [answer_prompt(prompt)], [2])

            def answer(prompt=prompt, question=question) -> None:
                write_responses(model, [prompt], [question.options])

            def rank(sample=sample) -> None:
                route_sample(model, sample, base, mode="recall")

            def whole(sample=sample) -> None:
                route_sample(model, sample, base, mode="recall", whole_base=True)

            def naive(prompt=prompt) -> None:
                for entry in base.entries[:NAIVE]:
                    forget(model)
                    model.score([knowledge_prompt(prompt)], [[f"{entry.title}:"]])

            ways = [("letter", letter), ("answer", answer), ("rank", rank), ("whole", whole), ("naive", naive)]
            turn = number % len(ways)
            found = {}
            for name, work in (*ways[turn:], *ways[:turn]):
                forget(model)
                found[name] = timed(work)
            forget(model)
            letter()
            found["rank_warm"] = timed(rank)
            if number:  # the first photograph warms the machine up
                for name, value in found.items():
                    rows.setdefault(name, []).append(value)
            sys.stderr.write(f"{number}: " + ", ".join(f"{name} {value:.2f} s" for name, value in found.items()) + "\n")
    middle = {name: statistics.median(values) for name, values in rows.items()}
    count = len(base.applicable("metal nut"))
    middle["naive"] *= count / NAIVE
    result = {
        "model": asked.model,
        "precision": asked.precision,
        "entries": count,
        "whole_base": len(base),
        "photographs": asked.n,
        **{f"{name}_s": round(value, 3) for name, value in middle.items()},
        **{
            f"{name}_to_{unit}": round(middle[name] / middle[unit], 3)
            for unit in ("letter", "answer")
            for name in ("rank", "rank_warm", "whole")
        },
        "naive_over_rank": round(middle["naive"] / middle["rank"], 1),
    }
    print(f"read off a letter {middle['letter']:.2f} s, reasoned {middle['answer']:.2f} s; {count} entries", end=" ")
    print(f"{middle['rank']:.2f} s, naive {middle['naive']:.0f} s;", end=" ")
    print(f"all {len(base)} {middle['whole']:.2f} s")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
