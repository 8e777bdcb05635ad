"""What is wrong with a folder of photographs before hours are spent on it.

Reads every image and mask of a `FolderReading`; returns counts, a digest and findings. Knows nothing about questions or
models. Not in the paper; the faults of MMAD it names are known from its issue tracker.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import Field

from dcr2ad.datasets.folder import FolderReading
from dcr2ad.errors import ImageError
from dcr2ad.images import content_digest, load_image, load_mask
from dcr2ad.types import Record, Sample

MOVED_NUTS = 22
"""Metal nuts filed among the good pills of DS-MVTec in old copies."""


class Finding(Record):
    """One thing wrong."""

    path: str
    """The file."""
    what: str
    """What is wrong, one phrase that is the same for like cases; details after a colon."""


class DataCheck(Record):
    """What a folder holds."""

    layout: str
    """Layout it was read as."""
    images: int
    """Images that can be used."""
    defective: int
    """Of these, defective ones."""
    masks: int
    """Masks."""
    objects: dict[str, int]
    """Images an object."""
    splits: dict[str, int]
    """Images a split."""
    digest: str
    """SHA-256 over the content digests of all images and masks, in order of path."""
    findings: tuple[Finding, ...] = Field(default=())
    """What is wrong."""

    @property
    def counts(self) -> dict[str, int]:
        """Findings by kind."""
        return dict(sorted(Counter(finding.what.partition(":")[0] for finding in self.findings).items()))


def check_folder(reading: FolderReading, progress: Callable[[int, int], None] | None = None) -> DataCheck:
    """Open and hash every image and mask of a folder.

    Args:
        reading: the folder, opened with every split and part.
        progress: called with images done and images in all; the total is known at the end only, so both are equal.
    """
    findings: list[Finding] = []
    digests: dict[str, str] = {}
    of_split: dict[str, dict[str, str]] = defaultdict(dict)
    objects, splits = Counter[str](), Counter[str]()
    images = defective = masks = 0
    for sample in reading:
        images += 1
        defective += sample.is_anomalous
        objects[sample.object] += 1
        splits[sample.split or "none"] += 1
        findings += _check_sample(sample)
        masks += len(sample.masks)
        for path in (sample.image, *sample.masks):
            digests[path] = content_digest(path)
        of_split[digests[sample.image]][sample.image] = sample.split
        if progress is not None:
            progress(images, images)
    findings += [Finding(path=item.path, what=item.why) for item in reading.skipped]
    findings += _duplicates(of_split)
    findings += _moved_nuts(digests)
    together = hashlib.sha256("".join(digests[path] for path in sorted(digests)).encode()).hexdigest()
    return DataCheck(
        layout=reading.layout,
        images=images,
        defective=defective,
        masks=masks,
        objects=dict(sorted(objects.items())),
        splits=dict(sorted(splits.items())),
        digest=together,
        findings=tuple(findings),
    )


def _check_sample(sample: Sample) -> Iterator[Finding]:
    try:
        size = load_image(sample.image).size
    except ImageError as error:
        yield Finding(path=sample.image, what=f"image cannot be read: {error.what}")
        return
    if not sample.references:
        yield Finding(path=sample.image, what="no reference: no other good image of the same object, view and split")
    for path in sample.masks:
        try:
            mask = load_mask(path)
        except ImageError as error:
            yield Finding(path=path, what=f"mask cannot be read: {error.what}")
            continue
        if mask.shape != (size[1], size[0]):
            sizes = f"{mask.shape[1]}x{mask.shape[0]}, {size[0]}x{size[1]}"
            yield Finding(path=path, what=f"mask of another size than its image: {sizes}")
        if not mask.any():
            yield Finding(path=path, what="mask is empty")


def _duplicates(of_split: dict[str, dict[str, str]]) -> Iterator[Finding]:
    for paths in of_split.values():
        first, *others = sorted(paths)
        for other in others:
            crossing = "across splits" if paths[other] != paths[first] else "in one split"
            yield Finding(path=other, what=f"same content {crossing}: {first}")


def _moved_nuts(digests: dict[str, str]) -> Iterator[Finding]:
    """Good pills of DS-MVTec that are, byte for byte, good metal nuts; and the number that tells an old copy."""
    pills = {digest: path for path, digest in digests.items() if "/DS-MVTec/pill/image/good/" in Path(path).as_posix()}
    nuts = {digest for path, digest in digests.items() if "/metal_nut/" in Path(path).as_posix()}
    found = sorted(pills[digest] for digest in pills.keys() & nuts)
    old = f"; an old copy of MMAD has {MOVED_NUTS}" if len(found) == MOVED_NUTS else ""
    for path in found:
        yield Finding(path=path, what=f"metal nut among the pills{old}: fetch the repaired MMAD")
