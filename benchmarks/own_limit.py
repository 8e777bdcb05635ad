"""What several good parts are worth to the visual expert: as references, and to set a limit of the line's own.

    python benchmarks/own_limit.py --data FOLDER --split dev --references 1 3 5 --draws 3

The good parts are drawn by lot from the `train` split; the parts of `--split`, and the good ones that were not drawn, so that
false alarms can be counted, are judged beside them: AUROC, and hits, false alarms and balanced accuracy under the general limit
and under the line's own (`dcr2ad.limits`). `--leave-out` names categories whose good parts are no references for one another,
such as boards of different layouts. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from dcr2ad.datasets.folder import read_folder
from dcr2ad.expert import THRESHOLD, Expert
from dcr2ad.limits import LEAST
from dcr2ad.types import Sample


def by_category(samples: list[Sample]) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[Path(sample.image).parts[-4]].append(sample)
    return groups


def judged(scores: np.ndarray, bad: np.ndarray, limit: float) -> dict[str, float]:
    """Share of defective parts found and of good ones called defective."""
    hit, alarm = float((scores[bad] > limit).mean()), float((scores[~bad] > limit).mean())
    return {"hit": hit, "alarm": alarm, "balanced": (hit + 1 - alarm) / 2}


def measure(expert: Expert, parts: list[Sample], references: list[str]) -> dict[str, float]:
    scores = np.array([expert.inspect(part.image, references)[0].score for part in parts])
    bad = np.array([part.is_anomalous for part in parts])
    row = {"auroc": float(roc_auc_score(bad, scores)), **judged(scores, bad, THRESHOLD)}
    if len(references) >= LEAST:
        limit = expert.own_limit(references)
        row |= {"limit": limit, **{f"own_{name}": value for name, value in judged(scores, bad, limit).items()}}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--references", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--draws", type=int, default=1, help="draws of the good parts")
    parser.add_argument("--leave-out", nargs="*", default=[])
    parser.add_argument("--cache", type=Path, help="folder to keep features in")
    arguments = parser.parse_args()
    asked = by_category(list(read_folder(arguments.data, split=arguments.split, parts=("test",))))
    good = by_category([s for s in read_folder(arguments.data, split="train") if not s.is_anomalous])
    expert = Expert(cache_dir=arguments.cache, keep=1000)
    table: dict[int, dict[str, dict[str, float]]] = {}
    for count in arguments.references:
        rows = table[count] = {}
        for name in sorted(set(asked) - set(arguments.leave_out)):
            lots = [random.Random(f"{draw} {name}").sample(good[name], count) for draw in range(arguments.draws)]
            found = [
                measure(expert, asked[name] + [s for s in good[name] if s not in lot], [s.image for s in lot]) for lot in lots
            ]
            rows[name] = {key: float(np.mean([row[key] for row in found])) for key in found[0]}
            print(f"{count:2} {name:22}", "  ".join(f"{key} {value:.3f}" for key, value in rows[name].items()), flush=True)
        mean = rows["mean"] = {key: float(np.mean([row[key] for row in rows.values()])) for key in next(iter(rows.values()))}
        print(f"{count:2} {'mean':22}", "  ".join(f"{key} {value:.3f}" for key, value in mean.items()), flush=True)
    print(json.dumps({"split": arguments.split, "draws": arguments.draws, "table": table}))


if __name__ == "__main__":
    main()
