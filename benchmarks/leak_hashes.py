"""How often the leak guard's hash misses a copy, and how often it takes another part for one, by its limit.

    python benchmarks/leak_hashes.py FOLDER [--every 12]

FOLDER is anything `dcr2ad data check` reads. Copies are made of every twelfth photograph. A photograph counts as taken for
another where one of another physical part lies within the limit. About a minute for 1,400 photographs.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from dcr2ad.datasets.folder import read_folder
from dcr2ad.images import load_image
from dcr2ad.leaks import perceptual_hash


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    """The picture after a JPEG of this quality."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def fitted(image: Image.Image, side: float) -> Image.Image:
    """The picture with its longest side at `side` pixels."""
    share = side / max(image.size)
    return image.resize((round(image.width * share), round(image.height * share)), Image.Resampling.BICUBIC)


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG 75": lambda image: recompressed(image, 75),
    "JPEG 50": lambda image: recompressed(image, 50),
    "JPEG 30": lambda image: recompressed(image, 30),
    "half size": lambda image: fitted(image, max(image.size) / 2),
    "512 pixels": lambda image: fitted(image, 512),
    "224 pixels, JPEG 75": lambda image: recompressed(fitted(image, 224), 75),
    "256x256": lambda image: image.resize((256, 256), Image.Resampling.BILINEAR),
    "15 % brighter": lambda image: image.point(lambda level: min(255, int(level * 1.15))),
}


def packed(image: Image.Image) -> np.ndarray:
    """The hash as 64 bytes."""
    return np.frombuffer(bytes.fromhex(perceptual_hash(image)), dtype=np.uint8)


def main() -> None:
    """Print both rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--every", type=int, default=12)
    args = parser.parse_args()
    samples = list(read_folder(args.folder))
    looks = np.stack([packed(load_image(sample.image)) for sample in samples])
    parts = np.array([f"{sample.dataset}/{sample.group or sample.image}" for sample in samples])
    apart: dict[str, list[int]] = {name: [] for name in COPIES}
    for number in range(1, len(samples), args.every):
        image = load_image(samples[number].image)
        for name, copy in COPIES.items():
            apart[name].append(int(np.bitwise_count(packed(copy(image)) ^ looks[number]).sum()))
    nearest = []
    for look, part in zip(looks, parts, strict=True):
        bits = np.bitwise_count(looks ^ look).sum(axis=1, dtype=np.int64)
        nearest.append(int(bits[parts != part].min()))
    for name, bits in apart.items():
        print(f"{name:20} median {np.median(bits):4.0f}, nine in ten {np.percentile(bits, 90):4.0f}, most {max(bits):4}")
    together = np.concatenate([np.array(bits) for bits in apart.values()])
    print(f"{len(together)} copies, {len(samples)} photographs")
    for limit in (8, 12, 16, 20, 24, 28, 32, 40):
        missed, taken = np.mean(together > limit), np.mean(np.array(nearest) <= limit)
        print(f"limit {limit:3}: {missed:6.2%} of copies missed, {taken:6.2%} of photographs taken for another")


if __name__ == "__main__":
    main()
