"""How well the visual expert tells defects, 1-shot, beside a plain pixel difference.

    python benchmarks/expert_auroc.py --data FOLDER --split dev

Prints image and pixel AUROC a category, their means, the balanced accuracy of the expert's own label-free verdict, and how
often its hottest cell is the mask's main cell. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.metrics import roc_auc_score

from dcr2ad.datasets.folder import read_folder
from dcr2ad.expert import Expert
from dcr2ad.images import load_image, load_mask
from dcr2ad.places import main_cell
from dcr2ad.types import Sample

GRID = 112
"""Side at which maps and masks are compared, in pixels."""


def pixel_difference(sample: Sample) -> tuple[float, np.ndarray]:
    """The baseline: grey difference to the reference, blurred by shrinking; score is the mean of the largest 1 %."""
    grey = [
        np.asarray(load_image(path).convert("L").resize((GRID, GRID), Image.Resampling.BOX), dtype=float)
        for path in (sample.image, sample.references[0])
    ]
    difference = np.abs(grey[0] - grey[1])
    return float(np.sort(difference, axis=None)[-GRID * GRID // 100 :].mean()), difference


def mask_of(sample: Sample) -> np.ndarray | None:
    """Mask at `GRID`, empty for a good part, None for a defect without a mask."""
    if not sample.is_anomalous:
        return np.zeros((GRID, GRID), bool)
    if not sample.masks:
        return None
    union = np.logical_or.reduce([load_mask(path) for path in sample.masks])
    return np.asarray(Image.fromarray(union).resize((GRID, GRID), Image.Resampling.NEAREST))


def enlarge(anomaly_map: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(anomaly_map.astype(np.float32)).resize((GRID, GRID), Image.Resampling.BILINEAR))


def auroc(labels: list[np.ndarray], values: list[np.ndarray]) -> float:
    flat = np.concatenate([label.ravel() for label in labels]) if labels else np.zeros(0)
    return float(roc_auc_score(flat, np.concatenate([v.ravel() for v in values]))) if flat.any() else float("nan")


def measure(samples: list[Sample], expert: Expert) -> dict[str, float]:
    labels, scores, plain = [], [], []
    masks: list[np.ndarray] = []
    maps: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    verdicts: dict[bool, list[bool]] = {True: [], False: []}
    cells = []
    for sample in samples:
        findings, anomaly_map = expert.inspect(sample.image, sample.references[:1])
        base, difference = pixel_difference(sample)
        labels.append(sample.is_anomalous)
        scores.append(findings.score)
        plain.append(base)
        verdicts[sample.is_anomalous].append(findings.is_anomalous == sample.is_anomalous)
        mask = mask_of(sample)
        if mask is not None:
            masks.append(mask)
            maps[0].append(enlarge(anomaly_map))
            maps[1].append(difference)
            if mask.any():
                cells.append(findings.cell == main_cell(mask))
    return {
        "image": float(roc_auc_score(labels, scores)),
        "pixel": auroc(masks, maps[0]),
        "image_plain": float(roc_auc_score(labels, plain)),
        "pixel_plain": auroc(masks, maps[1]),
        "verdict": float(np.mean([np.mean(v) for v in verdicts.values()])),
        "cell": float(np.mean(cells)) if cells else float("nan"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="dev")
    arguments = parser.parse_args()
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in read_folder(arguments.data, split=arguments.split, parts=("test",)):
        if sample.references:
            groups[Path(sample.image).parts[-4]].append(sample)
    expert = Expert()
    rows = {}
    started, count = time.perf_counter(), 0
    print(f"{'category':18} {'n':>4}  image  pixel | plain image  pixel | verdict  cell")
    for name, samples in sorted(groups.items()):
        row = rows[name] = measure(samples, expert)
        count += len(samples)
        print(
            f"{name:18} {len(samples):4}  {row['image']:.3f}  {row['pixel']:.3f} |       {row['image_plain']:.3f}  "
            f"{row['pixel_plain']:.3f} |   {row['verdict']:.3f} {row['cell']:.3f}"
        )
    mean = {key: float(np.nanmean([row[key] for row in rows.values()])) for key in next(iter(rows.values()))}
    print(f"{'mean':18}       {mean['image']:.3f}  {mean['pixel']:.3f} |       {mean['image_plain']:.3f}  ", end="")
    print(f"{mean['pixel_plain']:.3f} |   {mean['verdict']:.3f} {mean['cell']:.3f}")
    seconds = (time.perf_counter() - started) / count
    print(json.dumps({"split": arguments.split, "mean": mean, "categories": rows, "seconds_an_image": seconds}))


if __name__ == "__main__":
    main()
