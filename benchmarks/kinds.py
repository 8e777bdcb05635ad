"""How often the reader of kinds names the right defect: fitted on `train`, asked on `dev`.

    python benchmarks/kinds.py --data FOLDER --fit mtd --fit deeppcb --fit bsdata --fit cookies [--draw-defects 200]

With `--kinds FOLDER` a gallery that `dcr2ad kinds` fitted on those data sets is asked. Prints, for each object of the data
set, the share of defects whose first guess, or one of the three told, is the labelled kind, with a 95 % interval (bootstrap
over physical items), beside always guessing the object's commonest kind, and the mean probability claimed by the first guess.
Kinds are told as `dcr2ad.kind_names` tells them. Objects the reader was not fitted on are listed as such. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from dcr2ad.datasets.folder import read_folder, with_knowledge
from dcr2ad.expert import Expert
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.rankings import interval
from dcr2ad.stages.findings import inspect_sample
from dcr2ad.stages.kinds import expert_with_kinds, fit_kinds
from dcr2ad.types import Sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fit", action="append", required=True, help="data set fitted on; may repeat")
    parser.add_argument("--draw-defects", type=int, default=0, help="defects drawn onto good photographs besides")
    parser.add_argument("--kinds", type=Path, help="gallery fitted earlier")
    asked = parser.parse_args()
    base, expert = KnowledgeBase.builtin(), Expert()
    if asked.kinds:
        expert_with_kinds(asked.kinds, expert)
    else:
        with tempfile.TemporaryDirectory() as folder:
            fitted = fit_kinds(asked.data, folder, base, expert, datasets=asked.fit, drawn=asked.draw_defects)
            expert_with_kinds(Path(folder), expert)
        print("fitted on", fitted.defects, "and", fitted.drawn, "drawn; held-out first guess right:", fitted.right)
    by_object: dict[str, list[Sample]] = defaultdict(list)
    for sample in with_knowledge(read_folder(asked.data, split="dev"), base):
        if sample.is_anomalous and sample.right_key and sample.references:
            by_object[sample.object].append(sample)
    results = {}
    for name, samples in sorted(by_object.items()):
        told = [found.kinds for s in samples if (found := inspect_sample(s, expert, base)[0].expert)]
        items = [sample.item for sample in samples]
        first = [kinds[0].key == sample.right_key for kinds, sample in zip(told, samples, strict=True)]
        among = [sample.right_key in {kind.key for kind in kinds} for kinds, sample in zip(told, samples, strict=True)]
        share = interval(first, items)
        results[name] = {
            "seen": samples[0].dataset in asked.fit,
            "defects": len(samples),
            "kinds": len({sample.right_key for sample in samples}),
            "first": round(share.value, 1),
            "interval": [round(share.low, 1), round(share.high, 1)],
            "among_three": round(100 * float(np.mean(among)), 1),
            "commonest": round(100 * max(Counter(sample.right_key for sample in samples).values()) / len(samples), 1),
            "claimed": round(100 * float(np.mean([kinds[0].probability for kinds in told])), 1),
        }
        print(name, results[name])
    print(json.dumps(results))


if __name__ == "__main__":
    main()
