"""The one-shot visual expert: how far each patch of a part lies from anything in its references.

Reads image files through `dcr2ad.images` and the vision tower of the embedded model; returns `ExpertFindings` and an anomaly
map. Nothing is trained and no label is read: patches are compared by nearest neighbour, and the references' own patches say
what is ordinary. Knows nothing about prompts, verdicts of a language model, or pictures of maps. Not in the paper; after
AnomalyDINO (Damm et al. 2025). docs/expert.md holds what was tried, with figures.
"""

from __future__ import annotations

import copy
import io
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional

from dcr2ad.artifacts import digest_json, write_bytes
from dcr2ad.errors import InputError
from dcr2ad.images import content_digest, load_image
from dcr2ad.kinds import TURNS, Gallery, hot_features
from dcr2ad.limits import SHARE, own_limit
from dcr2ad.models.nano import NAME, build_nano
from dcr2ad.models.placement import cpu_has_bfloat16
from dcr2ad.models.tower import PATCH, VisionTower, load_vision_tower, to_pixels
from dcr2ad.patches import GRID, Features, compare, self_distance
from dcr2ad.regions import cell_scores, connected, elongation, tone
from dcr2ad.types import ExpertFindings, KindGuess

LAYERS = (7, 8)
"""Blocks whose features are compared; distances are averaged."""
COARSE, FINE = 224, GRID * PATCH
"""Sides, in pixels, that images are resized to (the second is 308): the first carries context, the second small defects."""
TOP = 0.01
"""Share of patches, the worst, whose mean is the image score."""
UNIT = 0.052
"""One unit of score: spread of an ordinary reference's self-distances (median over the references of `THRESHOLD`)."""
THRESHOLD = 3.67
"""Score above which a part is called anomalous: 80 % of real-mini's sound train queries lie below, over the four categories
that shipped values may be made from, each counting alike. That it is 80 % was settled with train labels in view."""
HOT_SHARE = 0.6
"""A patch is hot when it passes the threshold and this share of the peak: a strong defect's halo is not the defect."""
KEPT_IN_ORDER = 16
"""Images whose features are enough to keep where neighbours share references: a part's, and those of up to 15 references."""
_CACHE_VERSION = "expert-v1"


class Expert:
    """Compares parts with references; keeps the features of recent images, so that a shared reference is encoded once.

    Args:
        folder: a built nano folder; built into the ordinary cache when None.
        cache_dir: folder to keep features in between runs as well; none when None.
        keep: images whose features stay in memory (about 2 MB each); `KEPT_IN_ORDER` where parts come by reference.
        gallery: tells the kinds a hot spot looks like; findings name none when None.
        precision: ``fp32``, as every published figure and all training data; ``auto`` computes the features in bfloat16 where
            the processor has units for it, which moves a score by 0.05 at most (docs/nano.md).

    Raises:
        ModelError: the embedded model cannot be built or loaded.
    """

    def __init__(
        self,
        folder: Path | None = None,
        cache_dir: Path | None = None,
        *,
        keep: int = 64,
        gallery: Gallery | None = None,
        precision: Literal["fp32", "auto"] = "fp32",
    ) -> None:
        self._tower: VisionTower = load_vision_tower(folder or build_nano())
        self.half = precision == "auto" and cpu_has_bfloat16()
        """Whether features are computed in bfloat16."""
        if self.half:
            self._tower.to(torch.bfloat16)
        self._cache_dir = cache_dir
        self._keep = keep
        self.gallery = gallery
        self.limit = THRESHOLD
        """Score above which a part is called anomalous; `with_limit` gives the same expert with another."""
        self._own_limits: dict[tuple[str, ...], float] = {}
        self._ordinary: dict[tuple[str, ...], float] = {}
        self.held_out: Mapping[str, tuple[KindGuess, ...]] = {}
        """Kinds told of images that the gallery was fitted on, by content: guessed without them."""
        self._recent: OrderedDict[tuple[str, bool], Features] = OrderedDict()

    def inspect(self, image_path: str | Path, reference_paths: Sequence[str | Path]) -> tuple[ExpertFindings, np.ndarray]:
        """Look for what the references do not show.

        Images of any size and aspect: all are resized to one square, so that a reference takes the query's geometry.

        Args:
            image_path: the part.
            reference_paths: sound parts, at least one; more of them only ever explain more of the query.

        Returns:
            the findings, and the anomaly map on the patch grid: float32, ``(22, 22)``, in the units of the score.

        Raises:
            InputError: no reference.
            ImageError: an image cannot be used.
        """
        if not reference_paths:
            raise InputError(f"the visual expert was given no reference for {image_path}", "Name at least one sound part")
        query = self._features(image_path, views=False)
        references = [self._features(path, views=True) for path in reference_paths]
        ordinary = self._ordinary_beside(reference_paths, references)
        anomaly = _anomaly(query, references, ordinary)
        light = np.mean([reference.light for reference in references], axis=0)
        findings = _findings(anomaly, ordinary, query.light - light, self.limit)
        if self.gallery is not None:
            kinds = self.held_out.get(content_digest(image_path)) if self.held_out else None
            if kinds is None:
                kinds = self.gallery.guess(self.hot_features(image_path, reference_paths, findings, anomaly)[0])
            findings = findings.model_copy(update={"kinds": kinds})
        return findings, anomaly

    @property
    def fingerprint(self) -> str:
        """What decides the findings of any photograph: `looking`, and what the gallery told held out. Data told by different
        ones never mix."""
        if not self.held_out:
            return self.looking
        told = {image: [kind.model_dump(mode="json") for kind in kinds] for image, kinds in self.held_out.items()}
        return f"{self.looking}+held-out-{digest_json(told)[:16]}"

    @property
    def looking(self) -> str:
        """What decides the findings of a photograph of which nothing is told held out: expert, gallery, limit, precision."""
        parts = ["Expert"]
        if self.gallery is not None:
            parts.append(self.gallery.digest)
        if self.limit != THRESHOLD:
            parts.append(f"limit{self.limit:.6g}")
        if self.half:
            parts.append("bf16")
        return "+".join(parts)

    def with_limit(self, limit: float) -> Expert:
        """The same expert, sharing tower and features, that calls anomalous what passes another limit."""
        other = copy.copy(self)
        other.limit = limit
        return other

    def own_limit(self, good_paths: Sequence[str | Path], share: float = SHARE) -> float:
        """A limit for the line that these good parts are of: each is scored beside all others (`dcr2ad.limits.own_limit`).

        Args:
            good_paths: photographs of good parts, `dcr2ad.limits.LEAST` at least.
            share: of good parts that should lie below.

        Raises:
            ImageError: an image cannot be used.
        """
        key = (f"{share:g}", *(content_digest(path) for path in good_paths))
        if key not in self._own_limits:
            seen = [self._features(path, views=True) for path in good_paths]
            scores = []
            for number, one in enumerate(seen):
                others = seen[:number] + seen[number + 1 :]
                scores.append(_score(_anomaly(one, others, self_distance(others))))
            self._own_limits[key] = own_limit(scores, share)
        return self._own_limits[key]

    def hot_features(
        self,
        image_path: str | Path,
        reference_paths: Sequence[str | Path],
        findings: ExpertFindings,
        anomaly: np.ndarray,
        turns: Sequence[Image.Transpose | None] = TURNS[:1],
    ) -> np.ndarray:
        """What a gallery reads of the hot spot, beside the first reference; see `dcr2ad.kinds.hot_features`."""
        return hot_features(self._tower, load_image(image_path), load_image(reference_paths[0]), findings, anomaly, turns)

    def _ordinary_beside(self, paths: Sequence[str | Path], references: Sequence[Features]) -> float:
        """Their `self_distance`, kept for the last references: a line's parts are all inspected beside the same ones."""
        key = tuple(content_digest(path) for path in paths)
        if key not in self._ordinary:
            self._ordinary.clear()
            self._ordinary[key] = self_distance(references)
        return self._ordinary[key]

    def _features(self, path: str | Path, *, views: bool) -> Features:
        """Features from memory, from `cache_dir`, or computed; by content, so a copy or a rename costs nothing."""
        key = (content_digest(path), views)
        if key not in self._recent:
            self._recent[key] = self._stored(path, key)
            while len(self._recent) > self._keep:
                self._recent.popitem(last=False)
        self._recent.move_to_end(key)
        return self._recent[key]

    def _stored(self, path: str | Path, key: tuple[str, bool]) -> Features:
        if self._cache_dir is None:
            return self._encode(path, views=key[1])
        kind = f"{'views' if key[1] else 'plain'}{'-bf16' if self.half else ''}"
        file = self._cache_dir / f"{_CACHE_VERSION}-{NAME}-{key[0]}-{kind}.npz"
        try:
            with np.load(file) as arrays:
                return Features(torch.from_numpy(arrays["coarse"]), torch.from_numpy(arrays["fine"]), arrays["light"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # absent, or torn by another version: computed again
            features = self._encode(path, views=key[1])
            buffer = io.BytesIO()
            np.savez(buffer, coarse=features.coarse.numpy(), fine=features.fine.numpy(), light=features.light)
            write_bytes(file, buffer.getvalue())
            return features

    def _encode(self, path: str | Path, *, views: bool) -> Features:
        image = even_out(load_image(path))
        mirrored = ImageOps.mirror(image)
        shown = [image, mirrored, ImageOps.flip(image), ImageOps.flip(mirrored)] if views else [image]
        fine = to_pixels(image, (FINE, FINE))[None]
        grey = image.convert("L").resize((GRID, GRID), Image.Resampling.BOX)
        return Features(
            coarse=self._patches(torch.stack([to_pixels(view, (COARSE, COARSE)) for view in shown])),
            fine=self._patches(fine)[0],
            light=np.asarray(grey, dtype=np.float32) / 255.0,
        )

    def _patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """Unit features of the compared blocks side by side: one dot product is the mean cosine over blocks."""
        features = functional.normalize(self._tower(pixels, LAYERS), dim=-1)
        return (features.permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2) / len(LAYERS) ** 0.5).half()


def even_out(image: Image.Image) -> Image.Image:
    """Draw an image's brightness and contrast halfway to those the tower was trained on.

    Exposure differs between photographs of sound parts; and a part in pure black and white, such as a binarised circuit
    board, lies outside what the tower knows.
    """
    levels = np.asarray(image, dtype=np.float32) / 255.0
    grey = levels.mean(axis=2)
    standard = (levels - grey.mean()) / max(float(grey.std()), 0.02) * 0.2 + 0.45
    return Image.fromarray((np.clip((levels + standard) / 2, 0, 1) * 255 + 0.5).astype(np.uint8))


def _anomaly(query: Features, references: Sequence[Features], ordinary: float) -> np.ndarray:
    """The anomaly map in units of the score, float32: distances less what is ordinary."""
    return ((compare(query, references) - ordinary) / UNIT).astype(np.float32)


def _score(anomaly: np.ndarray) -> float:
    """Image score of a map: the mean of its worst patches."""
    return float(np.sort(anomaly, axis=None)[-max(1, int(anomaly.size * TOP)) :].mean())


def _findings(anomaly: np.ndarray, ordinary: float, lighter: np.ndarray, limit: float) -> ExpertFindings:
    """Put a map into words; `lighter` is each patch's luminance minus the references' at the same place.

    The same place, not the best match: a dark defect's best match is whatever else is dark.
    """
    score = _score(anomaly)
    cells = cell_scores(anomaly)
    hot = anomaly > max(limit, HOT_SHARE * float(anomaly.max()))
    common = {
        "score": score,
        "raw": score * UNIT + ordinary,
        "threshold": limit,
        "cell": int(cells.argmax()),
        "cells": tuple(float(value) for value in cells),
    }
    if score <= limit:
        return ExpertFindings(**common, extent=0.0, elongation=1.0, tone="same")
    row, column = np.unravel_index(int(anomaly.argmax()), anomaly.shape)
    part = connected(hot, (int(row), int(column)))
    rows, columns = np.nonzero(part)
    return ExpertFindings(
        **common,
        extent=float(hot.mean()),
        elongation=elongation(rows, columns),
        tone=tone(float(np.average(lighter[part], weights=anomaly[part]))),
        box=(
            float(columns.min() / GRID),
            float(rows.min() / GRID),
            float((columns.max() + 1) / GRID),
            float((rows.max() + 1) / GRID),
        ),
    )
