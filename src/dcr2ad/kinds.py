"""Which kinds of defect a hot spot looks like: a linear reader on the frozen vision tower, fitted on labelled defects.

Reads features of the hot spot, in the part and at the same place in its reference; returns knowledge entries with
probabilities, which the expert's findings tell in words. A small language model reads words long before it reads image tokens,
so what the tower sees of a kind reaches it this way. Closed form, seconds to fit. Knows nothing about prompts, questions or
verdicts. Not in the paper.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dcr2ad.artifacts import digest_json, write_bytes
from dcr2ad.errors import InputError, ModelError
from dcr2ad.models.shipped import adapter_folder, is_nano
from dcr2ad.models.tower import PATCH, VisionTower, to_pixels
from dcr2ad.types import ExpertFindings, KindGuess

LAYERS = (4, 6, 8)
"""Blocks whose features are read."""
SIDE = 11 * PATCH
"""Side, in pixels, that crops are resized to."""
NEAR = 0.25
"""Smallest side of a crop as a share of the image."""
ROOM = 1.6
"""Side of the wider crop in sides of the hot region."""
RIDGE = 0.1
"""Weight of the penalty, as a share of the mean squared length of the features."""
TURNS = (None, Image.Transpose.ROTATE_180, Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_90)
"""How crops are turned for fitting, the first as it is asked: a kind is the same whichever way it lies. docs/nano.md has what
that is worth."""
FOLDS = 20
"""Parts that the groups are dealt into for held-out guesses."""
FEWEST = 3
"""A kind seen less often is left out: nothing can be held out of it."""
FILE = "kinds.npz"
"""Name of a gallery's file, in a stage's folder and beside a model."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Gallery:
    """Linear reader of K kinds from D features.

    Attributes:
        keys: K knowledge entries.
        titles: their titles.
        centre: mean of the features, shape ``(D,)``.
        weights: shape ``(D, K)``, for centred features.
        offset: shape ``(K,)``.
        temperature: divides the scores before the softmax; fitted on held-out groups.
    """

    keys: tuple[str, ...]
    titles: tuple[str, ...]
    centre: np.ndarray
    weights: np.ndarray
    offset: np.ndarray
    temperature: float

    @property
    def digest(self) -> str:
        """Short digest of what it was fitted to."""
        return digest_json([self.keys, self.temperature, self.weights.astype(np.float16).tobytes().hex()])[:16]

    def guess(self, features: np.ndarray) -> tuple[KindGuess, ...]:
        """Every kind, the likeliest first, of features ``(D,)``."""
        return self._told((features - self.centre) @ self.weights + self.offset)

    def _told(self, scores: np.ndarray) -> tuple[KindGuess, ...]:
        probabilities = _softmax(scores / self.temperature)
        order = np.argsort(-probabilities, kind="stable")
        return tuple(
            KindGuess(key=self.keys[k], title=self.titles[k], probability=float(min(1.0, probabilities[k]))) for k in order
        )

    def save(self, path: Path) -> None:
        """Write one file, about 0.4 MB for 14 kinds."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            keys=np.array(self.keys),
            titles=np.array(self.titles),
            centre=self.centre.astype(np.float16),
            weights=self.weights.astype(np.float16),
            offset=self.offset.astype(np.float32),
            temperature=np.float32(self.temperature),
        )
        write_bytes(path, buffer.getvalue())


def load_gallery(path: Path) -> Gallery:
    """Read a gallery.

    Raises:
        ModelError: no such file, or not a gallery.
    """
    try:
        with np.load(path) as file:
            return Gallery(
                keys=tuple(map(str, file["keys"])),
                titles=tuple(map(str, file["titles"])),
                centre=file["centre"].astype(np.float32),
                weights=file["weights"].astype(np.float32),
                offset=file["offset"],
                temperature=float(file["temperature"]),
            )
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror})", "`dcr2ad kinds` writes a gallery as kinds.npz") from None
    except (ValueError, KeyError, TypeError, zipfile.BadZipFile):
        raise ModelError(f"{path} is no gallery of kinds", "`dcr2ad kinds` writes one as kinds.npz") from None


def gallery_beside(model: str) -> Gallery | None:
    """The gallery that goes with a model, by the model's name; None where it has none.

    Raises:
        UnknownNameError, ModelError: no such adapter of the embedded model, or the gallery cannot be read.
    """
    folder = adapter_folder(model) if is_nano(model) else Path(model)
    return load_gallery(folder / FILE) if folder is not None and (folder / FILE).is_file() else None


def hot_features(
    tower: VisionTower,
    image: Image.Image,
    reference: Image.Image,
    findings: ExpertFindings,
    anomaly: np.ndarray,
    turns: Sequence[Image.Transpose | None] = TURNS[:1],
) -> np.ndarray:
    """Features of the hot spot in two crops: of the whole hot region, and closely round the peak.

    Each crop is taken of the part and, at the same place, of the reference. Of each block: mean, largest and middle features
    of the part, and of its difference from the reference.

    Args:
        tower: the frozen tower.
        image: the part.
        reference: a sound part.
        findings: what the expert found; its box, where there is one, is the hot region.
        anomaly: its map, square.
        turns: how the crops are turned, one row each.

    Returns:
        float32, ``(turns, 2 * 3 * 6 * 384)``.
    """
    cuts = [_cut(shown, box) for box in _boxes(findings, anomaly) for shown in (image, reference)]
    crops = [to_pixels(cut if turn is None else cut.transpose(turn), (SIDE, SIDE)) for turn in turns for cut in cuts]
    seen = tower(torch.stack(crops), LAYERS)
    pooled = []
    for own, sound in zip(seen[::2], seen[1::2], strict=True):
        change = own - sound
        middle = slice(4, 7)
        parts = [own.mean((1, 2)), change.mean((1, 2)), own.amax((1, 2)), change.abs().amax((1, 2))]
        parts += [own[:, middle, middle].mean((1, 2)), change[:, middle, middle].mean((1, 2))]
        pooled.append(torch.cat(parts, -1))
    return torch.stack(pooled).view(len(turns), -1).numpy()


def fit_gallery(
    features: np.ndarray, keys: Sequence[str], titles: Sequence[str], groups: Sequence[str]
) -> tuple[Gallery, list[tuple[KindGuess, ...]]]:
    """Fit by ridge regression, each kind counting alike, and guess every item without its own group.

    What training prompts tell must be as often wrong as at use: so they get the held-out guesses, of the first turn.

    Args:
        features: shape ``(N, T, D)``: T turns of each, the first as it is asked.
        keys: N entries.
        titles: their titles.
        groups: physical item of each; an item is never guessed by a reader that saw another photograph of it.

    Returns:
        the gallery, and N held-out guesses (empty where the item's kind is left out for being rare).

    Raises:
        InputError: fewer than two kinds have `FEWEST` items.
    """
    counts = {key: sum(other == key for other in keys) for key in dict.fromkeys(keys)}
    names = sorted(key for key, count in counts.items() if count >= FEWEST)
    if len(names) < 2:
        raise InputError(f"kinds cannot be told apart from {len(keys)} labelled defects", f"At least two, {FEWEST} of each")
    kept = [number for number, key in enumerate(keys) if key in names]
    truth = np.array([names.index(keys[number]) for number in kept])
    data = features[kept].astype(np.float32)
    count, turns, size = data.shape
    centre = data.mean((0, 1))
    rows = (data - centre).reshape(count * turns, size)
    truths = np.repeat(truth, turns)
    gram = rows @ rows.T
    coefficients, offset = _ridge(gram, truths, len(names))
    weights = rows.T @ coefficients
    dealt = {group: number % FOLDS for number, group in enumerate(dict.fromkeys(groups[number] for number in kept))}
    fold = np.array([dealt[groups[number]] for number in kept])
    held_out = np.zeros((count, len(names)), dtype=np.float32)
    for part in range(min(FOLDS, len(dealt))):
        asked, seen = np.flatnonzero(fold == part) * turns, np.flatnonzero(np.repeat(fold != part, turns))
        among, beside = gram[np.ix_(seen, seen)], gram[np.ix_(asked, seen)]
        own, level = _ridge(among, truths[seen], len(names))
        held_out[fold == part] = (beside - beside.mean(1, keepdims=True) - among.mean(0) + among.mean()) @ own + level
    title_of = dict(zip(keys, titles, strict=True))
    temperature = _temperature(held_out, truth)
    gallery = Gallery(tuple(names), tuple(title_of[name] for name in names), centre, weights, offset, temperature)
    guesses: list[tuple[KindGuess, ...]] = [()] * len(keys)
    for number, scores in zip(kept, held_out, strict=True):
        guesses[number] = gallery._told(scores)
    return gallery, guesses


def _ridge(gram: np.ndarray, truth: np.ndarray, kinds: int) -> tuple[np.ndarray, np.ndarray]:
    """What each of M items adds to the weights, ``(M, K)``, and the offset; items of a kind share one unit of weight.

    Solved in the space of the items, of which there are fewer than features.

    Args:
        gram: products of the items with each other, ``(M, M)``; centred here.
        truth: index of each item's kind.
        kinds: K.
    """
    target = np.eye(kinds, dtype=np.float32)[truth]
    item = 1 / np.sqrt(np.maximum(target.sum(0), 1))[truth]
    offset = (target * item[:, None] ** 2).sum(0) / (item**2).sum()
    level = gram.mean(0)
    own = (gram - level - level[:, None] + level.mean()) * np.outer(item, item)
    own[np.diag_indices_from(own)] += RIDGE * np.trace(own) / len(own)
    return item[:, None] * np.linalg.solve(own, (target - offset) * item[:, None]), offset


def _temperature(scores: np.ndarray, truth: np.ndarray) -> float:
    """The temperature of a grid under which the truth is likeliest."""
    grid = np.geomspace(0.01, 1.0, 41)
    rows = np.arange(len(truth))
    likelihood = [np.log(_softmax(scores / value)[rows, truth] + 1e-12).mean() for value in grid]
    return float(grid[int(np.argmax(likelihood))])


def _softmax(scores: np.ndarray) -> np.ndarray:
    return torch.softmax(torch.from_numpy(scores), -1).numpy()


def _boxes(findings: ExpertFindings, anomaly: np.ndarray) -> tuple[Box, Box]:
    row, column = np.unravel_index(int(anomaly.argmax()), anomaly.shape)
    peak = ((column + 0.5) / anomaly.shape[1], (row + 0.5) / anomaly.shape[0])
    if findings.box is None:
        return _square(*peak, NEAR), _square(*peak, NEAR)
    left, top, right, bottom = findings.box
    side = min(1.0, max(NEAR, ROOM * max(right - left, bottom - top)))
    return _square((left + right) / 2, (top + bottom) / 2, side), _square(*peak, NEAR)


def _square(x: float, y: float, side: float) -> Box:
    """A square of the image's own shape round a point, moved inwards at the edges."""
    left, top = (min(max(value - side / 2, 0.0), 1.0 - side) for value in (x, y))
    return left, top, left + side, top + side


def _cut(image: Image.Image, box: Box) -> Image.Image:
    width, height = image.size
    left, top, right, bottom = (round(share * size) for share, size in zip(box, (width, height) * 2, strict=True))
    return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
