"""Folders of photographs to `Row`s: which layout a folder has, and what its names say.

Reads folder and file names and an index's lines, never pixels. Knows nothing about samples. Formats as published with the data
sets; see `dcr2ad.datasets.folder` for the layouts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from dcr2ad.artifacts import read_records
from dcr2ad.datasets.layouts import Part, Row, is_real_iad, real_iad_rows, visa_list, visa_rows
from dcr2ad.errors import InputError
from dcr2ad.images import SUFFIXES

INDEX_NAME = "index.jsonl"
GOOD_NAMES = frozenset({"good", "ok", "normal"})
BAD_NAMES = frozenset({"bad", "ng", "defect", "defective", "anomalous"})

_MASK_FOLDERS = ("ground_truth", "rbg_mask", "rgb_mask")
_WITH_TRAIN = ("MVTec-AD", "mvtec_anomaly_detection", "MVTec_AD", "mvtec_ad", "mvtec")
"""Names under which MVTec-AD itself, whose train part DS-MVTec lacks, is unpacked."""


def list_rows(path: Path) -> tuple[Path, str, list[Row]]:
    """Root, layout and rows of whatever `path` is.

    Raises:
        InputError: no such path, or no known layout.
        RecordError: a line of an index or list is no row; names file and line.
    """
    if not path.exists():
        raise InputError(f"no such folder: {path}", "Check the path")
    index = path if path.is_file() else path / INDEX_NAME
    if index.is_file():
        if index.suffix != ".jsonl":
            raise InputError(f"{path} is no index file", "Name a folder, or a JSONL file with one row an image")
        rows = [row.model_copy(update={"dataset": row.dataset or index.parent.name}) for row in read_records(index, Row)]
        return index.parent, "index", rows
    if is_real_iad(path):
        return path, "real-iad", _with_splits(real_iad_rows(path))
    if (file := visa_list(path)) is not None:
        return path, "visa", _with_splits(visa_rows(file))
    categories = [path] if _is_category(path) else [child for child in _folders(path) if _is_category(child)]
    if categories:
        root = categories[0].parent
        return root, "mvtec", _with_splits(row for category in categories for row in _category_rows(category))
    if any(child.name.lower() in GOOD_NAMES for child in _folders(path)):
        return path, "plain", _with_splits(_plain_rows(path))
    raise InputError(
        f"{path} has no layout that can be read",
        "Give index.jsonl, <category>/train/good and test/<defect>, or good/ and bad/",
    )


def _is_category(folder: Path) -> bool:
    return (folder / "test").is_dir() or (folder / "train" / "good").is_dir() or (folder / "image" / "good").is_dir()


def _category_rows(category: Path) -> Iterator[Row]:
    """Rows of one MVTec category."""
    root = category.parent
    shelves: list[tuple[Part, str]] = [("train", "train"), ("test", "test"), ("test", "image")]
    for part, shelf in shelves:
        for kind in _folders(category / shelf):
            is_good = kind.name.lower() in GOOD_NAMES
            for image in _images(kind):
                yield Row(
                    image=image.relative_to(root).as_posix(),
                    label="good" if is_good else "defect",
                    dataset=root.name,
                    category=category.name,
                    part=part,
                    defect=None if is_good else kind.name,
                    masks=() if is_good else _mask_names(category, kind.name, image),
                )
    yield from _lent_rows(category)


def _lent_rows(category: Path) -> Iterator[Row]:
    """Good images of the same category in MVTec-AD beside DS-MVTec, which has no train part: references, asked about never."""
    root = category.parent
    if (category / "train").is_dir() or not (category / "image").is_dir():
        return
    shelves = (root.parent / name / category.name / "train" / "good" for name in _WITH_TRAIN if name != root.name)
    lender = next((shelf for shelf in shelves if shelf.is_dir()), None)
    for image in _images(lender) if lender else ():
        yield Row(image=image.as_posix(), label="good", dataset=root.name, category=category.name, part="train", asked=False)


def _mask_names(category: Path, kind: str, image: Path) -> tuple[str, ...]:
    """The masks of an image; the expected name where there is none, nothing where the layout has no masks for this defect."""
    folder = next((f for name in _MASK_FOLDERS if (f := category / name / kind).is_dir()), None)
    if folder is None:
        return ()
    inside = _images(folder / image.stem) if (folder / image.stem).is_dir() else []
    names = [folder / f"{image.stem}_mask.png", folder / f"{image.stem}.png"]
    found = inside or [next((name for name in names if name.is_file()), names[0])]
    return tuple(path.relative_to(category.parent).as_posix() for path in found)


def _plain_rows(root: Path) -> Iterator[Row]:
    """Rows of good and bad folders; a folder inside the bad one names the kind of defect."""
    for folder in _folders(root):
        name = folder.name.lower()
        if name not in GOOD_NAMES | BAD_NAMES:
            continue
        for image in (*_images(folder), *(image for kind in _folders(folder) for image in _images(kind))):
            kind = None if image.parent == folder or name in GOOD_NAMES else image.parent.name
            yield Row(
                image=image.relative_to(root).as_posix(),
                label="good" if name in GOOD_NAMES else "defect",
                dataset=root.name,
                category=root.name,
                defect=kind,
            )


def _with_splits(rows: Iterable[Row]) -> list[Row]:
    """Rows of a layout without splits: of each folder the second of every three images, or groups, is ``dev``."""
    seen: Counter[tuple[str, str, str | None, str]] = Counter()
    groups: dict[str, str] = {}
    out = []
    for row in rows:
        key = (row.category, row.part, row.defect, row.label)
        split = groups.get(row.group or "")
        if split is None:
            split = "dev" if seen[key] % 3 == 1 else "train"
            seen[key] += 1
            if row.group is not None:
                groups[row.group] = split
        out.append(row.model_copy(update={"split": split}))
    return out


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")) if path.is_dir() else []


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
