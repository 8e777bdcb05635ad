"""The visual expert: one photograph beside good ones, patch by patch; no training, no label.

Reads image files; returns `ExpertFindings` and an anomaly map. Each patch of the photograph is compared with every patch of the
references in the embedded model's vision features, and its distance is that to the nearest one (PatchCore and AnomalyDINO
show how far this goes with one reference). Units come from the reference itself: how far it lies from copies of itself that are
shifted, scaled and lit a little differently. Knows nothing about questions, knowledge or models. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from dcr2ad.images import content_digest, load_image
from dcr2ad.models.nano import build_nano
from dcr2ad.models.tower import PATCH, load_vision_tower, to_pixels
from dcr2ad.models.vlm import ByteCache
from dcr2ad.places import cell_maxima
from dcr2ad.types import ExpertFindings

SIDE = 224
"""Images are compared at this side, in pixels: 16x16 patches."""
LAYERS = (6, 7, 8)
"""Blocks of the tower whose features are compared; their distances are averaged."""
WORST = 0.01
"""Share of the patches whose mean distance is the image score."""
BORDER = 0.8
"""Factor on patches at the image's edge, which see less of their surroundings."""
THRESHOLD = 1.6
"""Score above which a part is called anomalous: the best balanced accuracy on real-mini's `train`
split of the categories that are trained on; see docs/expert.md."""
HOT = 0.5
"""Patches above this share of the way from the threshold to the highest score belong to the hot region."""
_TONE = 6.0
"""Difference in mean grey level (0 to 255) that counts as darker or brighter."""
_CACHE_BYTES = 256 * 1024 * 1024


class Expert:
    """Compares photographs with references.

    Args:
        folder: a built embedded model; by default it is built or taken from the cache.

    Raises:
        ModelError: the embedded model can neither be built nor loaded.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._tower = load_vision_tower(folder or build_nano())
        self._features = ByteCache(_CACHE_BYTES)
        self._units = ByteCache(_CACHE_BYTES)

    def inspect(self, image: str | Path, references: Sequence[str | Path]) -> tuple[ExpertFindings, np.ndarray]:
        """Compare one photograph with one or more references of any size.

        Args:
            image: the photograph.
            references: good parts; with several a patch is compared with all their patches.

        Returns:
            the findings, and the anomaly map over the whole photograph in units of `ExpertFindings.score`, float32, shape
            ``(16, 16)``.

        Raises:
            ImageError: an image cannot be used.
            ValueError: no reference.
        """
        if not references:
            raise ValueError("the expert needs a reference")
        queried = self._of(image)
        known = [self._of(path) for path in references]
        raw, matches = _nearest(queried, torch.cat([k.flatten(1, 2) for k in known], dim=1))
        unit = float(np.mean([self._unit(path) for path in references]))
        anomaly_map = (raw / unit).numpy()
        score = _worst(raw)
        tones = [_grey_patches(path) for path in (image, *references)]
        return _findings(
            anomaly_map, score / unit, score, tones[0], np.concatenate([t.ravel() for t in tones[1:]]), matches.numpy()
        ), anomaly_map

    def _of(self, path: str | Path) -> torch.Tensor:
        """Features of an image, unit length, shape ``(layers, 16, 16, width)``; cached by content."""
        digest = content_digest(path)
        found = self._features.get(digest)
        if found is None:
            found = self._encode([load_image(path)])[0]
            self._features.put(digest, found, found.nbytes)
        return found

    def _encode(self, images: Sequence[Image.Image]) -> torch.Tensor:
        pixels = torch.stack([to_pixels(_evenly_lit(image), (SIDE, SIDE)) for image in images])
        return functional.normalize(self._tower(pixels, LAYERS), dim=-1)

    def _unit(self, path: str | Path) -> float:
        """How far a reference lies from slightly changed copies of itself: the unit of the score."""
        digest = content_digest(path)
        found = self._units.get(digest)
        if found is None:
            own = self._of(path).flatten(1, 2)
            copies = self._encode(_copies(load_image(path)))
            found = float(np.mean([_worst(_nearest(copy, own)[0]) for copy in copies])) + 1e-6
            self._units.put(digest, found, 8)
        return found


def _nearest(queried: torch.Tensor, known: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance of each patch to the nearest known one, and which that is.

    Args:
        queried: shape ``(layers, 16, 16, width)``, unit length.
        known: shape ``(layers, patches, width)``, unit length.

    Returns:
        mean cosine distance over the layers, edge patches damped, and indices; both of shape ``(16, 16)``.
    """
    _, rows, columns, _ = queried.shape
    likeness = torch.bmm(queried.flatten(1, 2), known.transpose(1, 2)).mean(0)
    best, index = likeness.max(dim=1)
    distance = (1 - best).view(rows, columns)
    damped = torch.full_like(distance, BORDER)
    damped[1:-1, 1:-1] = 1
    return distance * damped, index.view(rows, columns)


def _worst(distances: torch.Tensor) -> float:
    """Mean of the largest distances."""
    values = distances.flatten().sort(descending=True).values
    return float(values[: max(1, round(len(values) * WORST))].mean())


def _findings(
    anomaly_map: np.ndarray, score: float, raw: float, grey: np.ndarray, known: np.ndarray, matches: np.ndarray
) -> ExpertFindings:
    cells = cell_maxima(anomaly_map)
    top = float(anomaly_map.max())
    hot = anomaly_map >= max(THRESHOLD + HOT * (top - THRESHOLD), 0.6 * top)
    base = {
        "score": round(score, 3),
        "raw": round(raw, 5),
        "threshold": THRESHOLD,
        "cell": int(cells.argmax()),
        "cells": tuple(round(float(value), 3) for value in cells),
    }
    if score <= THRESHOLD:
        return ExpertFindings(**base, extent=0.0, elongation=1.0, tone="same")
    rows, columns = np.nonzero(hot)
    height, width = hot.shape
    difference = float((grey[hot] - known[matches[hot]]).mean())
    tone: Literal["darker", "brighter", "same"] = (
        "same" if abs(difference) < _TONE else "darker" if difference < 0 else "brighter"
    )
    return ExpertFindings(
        **base,
        extent=float(hot.mean()),
        elongation=_elongation(rows, columns),
        tone=tone,
        box=(
            float(columns.min() / width),
            float(rows.min() / height),
            float((columns.max() + 1) / width),
            float((rows.max() + 1) / height),
        ),
    )


def _elongation(rows: np.ndarray, columns: np.ndarray) -> float:
    """Ratio of the principal axes; a patch is a unit square, hence the twelfth."""
    spread = np.cov(np.stack([rows, columns]).astype(float)) if len(rows) > 1 else np.zeros((2, 2))
    small, large = np.linalg.eigvalsh(spread + np.eye(2) / 12)
    return round(float(np.sqrt(large / small)), 3)


def _evenly_lit(image: Image.Image) -> Image.Image:
    """Half-way to a common mean and spread of grey levels: exposure differs between photographs, and is no defect."""
    pixels = np.asarray(image, dtype=np.float32) / 255
    grey = pixels.mean(2)
    even = (pixels - grey.mean()) / max(float(grey.std()), 0.02) * 0.2 + 0.45
    return Image.fromarray((np.clip((pixels + even) / 2, 0, 1) * 255).astype(np.uint8))


def _copies(image: Image.Image) -> list[Image.Image]:
    """The reference shifted by under half a patch, cropped by a few per cent, and turned a little."""
    width, height = image.size
    dx, dy = max(1, round(width * 0.4 * PATCH / SIDE)), max(1, round(height * 0.4 * PATCH / SIDE))
    corner = np.asarray(image).reshape(-1, 3).mean(0).round().astype(int)
    return [
        image.crop((dx, dy, width, height)),
        image.crop((0, 0, width - 2 * dx, height - 2 * dy)),
        image.rotate(2, Image.Resampling.BICUBIC, fillcolor=tuple(int(c) for c in corner)).crop(
            (dx, dy, width - dx, height - dy)
        ),
    ]


def _grey_patches(path: str | Path) -> np.ndarray:
    """Mean grey level of each patch under even light, shape ``(16, 16)``, 0 to 255."""
    side = SIDE // PATCH
    return np.asarray(_evenly_lit(load_image(path)).convert("L").resize((side, side), Image.Resampling.BOX), dtype=np.float32)
