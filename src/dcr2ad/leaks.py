"""Leak guard: images that training data and a benchmark have in common, by path, by content and by look.

Reads image files, folders, lists such as MMAD's ``mmad.json`` and what a trained model's folder records of its training images;
returns matches, each with what tells it. Knows nothing about questions or models. Not in the paper; several published systems
were trained on the benchmark they report.

Look is a difference hash of 512 bits (16x16 cells, across and down; after N. Krawetz, "Kind of Like That", 2013, which has
64): parts on a line look so alike that 64 bits cannot tell two of them apart. The limit of 20 bits is where as many copies are
missed as other parts are taken for copies: 1.8 % each, of 928 copies (JPEG of quality 30 to 75, smaller, squeezed, brighter)
and of 1,386 photographs of seven kinds of part (``benchmarks/leak_hashes.py``; at 12 bits 10.9 % and 0.1 %).
An even fine texture that fills the picture, such as cloth, has no look that survives a change of size: content must tell it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from dcr2ad.errors import ImageError, InputError
from dcr2ad.images import content_digest, list_images, load_image
from dcr2ad.knowledge.objects import normalise, normalise_dataset
from dcr2ad.types import Record

CELLS = 16
"""Cells a side of the hash."""
NEAR = 20
"""Of 512 bits, differing ones up to which two images count as one; not in the paper, measured (see above)."""

_KNOWN_SETS = frozenset({"mvtec", "mvtec_loco", "visa", "goodsad", "real_iad", "mpdd", "btad"})
_OTHER_NAMES = {"mvtec_anomaly_detection": "mvtec", "mvtec_loco_anomaly_detection": "mvtec_loco", "visa_pytorch": "visa"}
_MASK_FOLDERS = frozenset({"ground_truth", "rbg_mask", "rgb_mask", "mask", "masks"})


class Match(Record):
    """One image that a forbidden list holds."""

    image: str
    """The image asked about."""
    other: str
    """The image of the list, by path or name."""
    by: Literal["path", "content", "look"]
    """What tells it: ``path`` (same file of the same data set), ``content`` (same bytes), ``look`` (perceptual hash)."""
    bits: int = 0
    """For ``look``: differing bits of 512."""

    @property
    def reason(self) -> str:
        """One phrase."""
        return f"{self.image} is {self.other} by {self.by}"


def perceptual_hash(image: Image.Image) -> str:
    """Difference hash of an image: 512 bits as 128 hexadecimal digits; size, format and brightness hardly change it."""
    grey = np.asarray(image.convert("L").resize((CELLS + 1, CELLS + 1), Image.Resampling.LANCZOS), dtype=np.int16)
    across, down = grey[:-1, 1:] > grey[:-1, :-1], grey[1:, :-1] > grey[:-1, :-1]
    return np.packbits(np.stack([across, down])).tobytes().hex()


def hash_file(path: str | Path) -> str:
    """`perceptual_hash` of a file.

    Raises:
        ImageError: it cannot be read.
    """
    return perceptual_hash(load_image(path, min_side=1, keep=False))


class Forbidden:
    """Images that must not be trained on.

    Filled from any of: names of a list (`add_names`), image files (`add_file`), recorded hashes (`add_recorded`).
    """

    def __init__(self) -> None:
        self._paths: dict[tuple[str, ...], str] = {}
        self._digests: dict[str, str] = {}
        self._looks: dict[str, str] = {}
        self._packed: np.ndarray | None = None

    def __len__(self) -> int:
        return len({*self._paths.values(), *self._digests.values(), *self._looks.values()})

    @property
    def digest_parts(self) -> list[str]:
        """What the guard holds, in a fixed order: two guards with equal parts refuse the same images."""
        return sorted({*("/".join(key) for key in self._paths), *self._digests, *self._looks})

    def add_names(self, names: Iterable[str]) -> None:
        """Forbid files by their path in a data set, such as ``DS-MVTec/pill/image/crack/000.png``."""
        for name in names:
            if key := _place_in_set(name):
                self._paths.setdefault(key, name)

    def add_file(self, path: str | Path, name: str | None = None) -> None:
        """Forbid an image file by content and look.

        Raises:
            ImageError: it cannot be read.
        """
        shown = name or str(path)
        self._digests.setdefault(content_digest(path), shown)
        self._add_look(hash_file(path), shown)

    def add_recorded(self, digests: Mapping[str, str], looks: Mapping[str, str]) -> None:
        """Forbid recorded images: content digest -> name, and content digest -> perceptual hash."""
        self._digests.update(digests)
        for digest, look in looks.items():
            self._add_look(look, digests.get(digest, digest[:12]))

    def find(self, image: str | Path, dataset: str = "") -> Match | None:
        """The match of an image file, the surest first; None where the list does not hold it.

        Args:
            image: path of the image.
            dataset: name of its data set, where the path does not hold it.

        Raises:
            ImageError: it cannot be read.
        """
        shown = str(image)
        key = _place_in_set(shown, dataset)
        if key in self._paths:
            return Match(image=shown, other=self._paths[key], by="path")
        if not self._digests and not self._looks:
            return None
        if (other := self._digests.get(content_digest(image))) is not None:
            return Match(image=shown, other=other, by="content")
        return self._nearest(hash_file(image), shown) if self._looks else None

    def _add_look(self, look: str, name: str) -> None:
        if len(look) != CELLS * CELLS // 2:
            raise InputError(f"{look[:20]!r}... is no perceptual hash of {2 * CELLS * CELLS} bits", "Compute the hashes again")
        if look.strip("0"):  # a picture of one tone looks like any other
            self._looks.setdefault(look, name)
            self._packed = None

    def _nearest(self, look: str, shown: str) -> Match | None:
        if not look.strip("0"):
            return None
        if self._packed is None:
            self._packed = np.stack([np.frombuffer(bytes.fromhex(known), dtype=np.uint64) for known in self._looks])
        bits = np.bitwise_count(self._packed ^ np.frombuffer(bytes.fromhex(look), dtype=np.uint64)).sum(axis=1, dtype=np.int64)
        best = int(bits.argmin())
        if bits[best] > NEAR:
            return None
        return Match(image=shown, other=list(self._looks.values())[best], by="look", bits=int(bits[best]))


def read_forbidden(sources: Sequence[str | Path], progress: Callable[[int, int], None] | None = None) -> Forbidden:
    """A guard filled from what a user names.

    Each source is one of: a folder of images; one image; ``mmad.json`` or another JSON object whose keys are image paths (the
    images beside it are hashed where they exist, and their names count in any case); a text file with one path a line; a JSONL
    file whose rows have ``image`` or ``sample.image`` (a benchmark's questions.jsonl).

    Raises:
        InputError: a source does not exist, or holds no image and no name; nothing is ignored in silence.
        ImageError: a forbidden image cannot be read.
    """
    guard = Forbidden()
    files: list[tuple[Path, str]] = []
    for source in map(Path, sources):
        names, found = _listed(source)
        if not names and not found:
            raise InputError(f"{source} names no image to forbid", "Give a folder of images, an image, or a list of paths")
        guard.add_names([*names, *(str(path.absolute()) for path, _ in found)])
        files += found
    for number, (path, name) in enumerate(files, 1):
        guard.add_file(path, name)
        if progress is not None:
            progress(number, len(files))
    return guard


def find_overlap(
    train_images: Mapping[str, str],
    train_hashes: Mapping[str, str],
    images: Iterable[str | Path],
    *,
    unreadable: list[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Match]:
    """Which images of a benchmark a model was trained on, by the record in its folder (`models.adapters.TrainedModel`).

    Args:
        train_images: content digest -> name of each training image.
        train_hashes: content digest -> perceptual hash; empty for a model recorded without: content alone then decides.
        images: paths of the benchmark's images; each is looked at once, and decoded only if its content tells nothing.
        unreadable: takes the paths of images that cannot be read, where given.
        progress: called with images looked at and images in all.

    Raises:
        ImageError: an image cannot be read, and `unreadable` was not given.
    """
    guard = Forbidden()
    guard.add_recorded(train_images, train_hashes)
    asked = list(dict.fromkeys(map(str, images)))
    found = []
    for number, path in enumerate(asked, 1):
        try:
            match = guard.find(path)
        except ImageError:
            if unreadable is None:
                raise
            unreadable.append(path)
        else:
            found += [match] if match else []
        if progress is not None:
            progress(number, len(asked))
    return found


def duplicates(images: Iterable[str | Path]) -> list[tuple[str, ...]]:
    """Groups of paths with the same bytes.

    Raises:
        ImageError: one cannot be read.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for path in images:
        groups[content_digest(path)].append(str(path))
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _place_in_set(path: str, dataset: str = "") -> tuple[str, ...]:
    """Data set, object, folders and stem of a file, alike in all copies of a data set; empty where no data set is named.

    MMAD files MVTec-AD's ``test`` as DS-MVTec's ``image``.

    >>> _place_in_set("DS-MVTec/pill/image/crack/000.png")
    ('mvtec', 'pill', 'test', 'crack', '000')
    >>> _place_in_set("/data/mvtec_anomaly_detection/pill/test/crack/000.png")
    ('mvtec', 'pill', 'test', 'crack', '000')
    """
    parts = [normalise(part) for part in Path(path).with_suffix("").parts]
    named = [_OTHER_NAMES.get(part, normalise_dataset(part)) for part in parts]
    known = [index for index, part in enumerate(named) if part in _KNOWN_SETS]
    if known:
        start, name = known[-1] + 1, named[known[-1]]
    else:
        start, name = max(0, len(parts) - 4), _OTHER_NAMES.get(normalise(dataset), normalise_dataset(dataset))
        if name not in _KNOWN_SETS:
            return ()
    inner = ["test" if part == "image" else part for part in parts[start:]]
    return (name, *inner) if len(inner) >= 2 else ()


def _listed(source: Path) -> tuple[list[str], list[tuple[Path, str]]]:
    """Names a source lists, and the image files behind them with the name to show."""
    if source.is_dir():
        inside = (path for path in list_images(source) if not _MASK_FOLDERS & set(path.relative_to(source).parts[:-1]))
        return [], [(path, str(path)) for path in inside]
    if not source.is_file():
        raise InputError(f"no such file or folder: {source}", "Name a folder of images, or a list of paths")
    if source.suffix.lower() not in {".json", ".jsonl", ".txt", ".csv"}:
        return [], [(source, str(source))]
    try:
        names = list(dict.fromkeys(_names(source)))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(
            f"{source} cannot be read as a list of images ({error})", "Give JSON, JSONL or a path a line"
        ) from None
    found = [(source.parent / name, name) for name in names]
    return names, [(path, name) for path, name in found if path.is_file()]


def _names(source: Path) -> Iterator[str]:
    text = source.read_text(encoding="utf-8")
    if source.suffix.lower() == ".json":
        listed = json.loads(text)
        if not isinstance(listed, dict):
            raise ValueError("an object whose keys are image paths was expected")
        for key, value in listed.items():
            yield key
            if isinstance(value, dict):
                yield from value.get("random_templates") or ()
                yield from value.get("similar_templates") or ()
    elif source.suffix.lower() == ".jsonl":
        for line in filter(str.strip, text.splitlines()):
            row = json.loads(line)
            row = row.get("sample", row) if isinstance(row, dict) else {}
            if not isinstance(row, dict) or not isinstance(row.get("image"), str):
                raise ValueError("a row has no image")
            yield row["image"]
    else:
        yield from (line.strip() for line in text.splitlines() if line.strip())
