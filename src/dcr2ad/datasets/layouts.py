"""Layouts of public data sets that have lists of their own: Real-IAD's JSON files and VisA's split files.

Reads lists and folder names, never pixels; returns `Row`s, the form every layout of `dcr2ad.datasets.folder` takes. Knows
nothing about samples. Formats as published with the data sets (Wang et al. 2024; Zou et al. 2022).

    Real-IAD   realiad_jsons[_sv|_fuiad_*]/<category>.json, also one folder deeper, beside realiad_{256,512,1024,raw}/
    VisA       split_csv/{1cls,2cls_fewshot,2cls_highshot}.csv: object,split,label,image,mask
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from dcr2ad.errors import RecordError

Part = Literal["train", "test"]

_VIEW = re.compile(r"_(C\d)_\d+\.\w+$")
_SIZES = ("realiad_1024", "realiad_512", "realiad_256", "realiad_raw")
"""Folders of Real-IAD's images in the order they are looked for: large enough to judge, no larger than needed."""


class Row(BaseModel):
    """One image as its layout describes it; paths are relative to the root. Unknown fields of an index are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    image: str
    label: Literal["good", "defect"]
    dataset: str = ""
    category: str = ""
    part: Part = "test"
    defect: str | None = None
    mask: str | None = None
    masks: tuple[str, ...] = ()
    ref: str | None = None
    group: str | None = None
    split: str = ""
    view: str = ""
    """Camera position; a reference has the same one."""
    serves: bool = True
    """Whether a good image may serve as a reference; not so the good side of a defective part."""
    asked: bool = True
    """Whether it is a sample; not so a reference that another data set lends."""


def is_real_iad(root: Path) -> bool:
    """Whether a folder holds Real-IAD."""
    return bool(_real_iad_lists(root))


def real_iad_rows(root: Path) -> Iterator[Row]:
    """Rows of Real-IAD.

    An image is normal iff its mask is null or its class the normal class: a defective part is also photographed from sides
    where the defect does not show, under the defect's class and with a null mask.

    Raises:
        RecordError: a list cannot be read, or no folder of images lies beside the lists.
    """
    images = next((name for name in _SIZES if (root / name).is_dir()), None)
    if images is None:
        raise RecordError(f"{root} holds Real-IAD's lists and no images", f"Unpack one of {', '.join(_SIZES)} beside them")
    for file in _real_iad_lists(root):
        try:
            listed = json.loads(file.read_text(encoding="utf-8"))
            normal, prefix = listed["meta"].get("normal_class", "OK"), listed["meta"].get("prefix", f"{file.stem}/")
            parts: tuple[Part, ...] = ("train", "test")
            for part in parts:
                for item in listed.get(part, ()):
                    mask, kind = item.get("mask_path"), item["anomaly_class"]
                    good = not mask or kind == normal
                    name = f"{images}/{prefix}{item['image_path']}"
                    view = _VIEW.search(name)
                    yield Row(
                        image=name,
                        label="good" if good else "defect",
                        dataset="real_iad",
                        category=item.get("category", file.stem),
                        part=part,
                        defect=None if good else kind,
                        masks=() if good else (f"{images}/{prefix}{mask}",),
                        group=f"{file.stem}/{Path(name).parent.as_posix()}",
                        serves=kind == normal,
                        view=view.group(1) if view else "",
                    )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecordError(f"{file} is no list of Real-IAD ({error!r})", "Download the list again") from None


def visa_list(root: Path) -> Path | None:
    """VisA's split file, the one-class one first; None where the folder is no VisA."""
    names = ("1cls.csv", "2cls_highshot.csv", "2cls_fewshot.csv")
    return next((root / "split_csv" / name for name in names if (root / "split_csv" / name).is_file()), None)


def visa_rows(file: Path) -> Iterator[Row]:
    """Rows of VisA's split file.

    Raises:
        RecordError: a column is missing, or a value unknown; names the line.
    """
    with file.open(encoding="utf-8", newline="") as lines:
        for number, line in enumerate(csv.DictReader(lines), 2):
            try:
                good = {"normal": True, "anomaly": False}[line["label"].strip().lower()]
                part: Part = "train" if line["split"].strip().lower() == "train" else "test"
                mask = (line.get("mask") or "").strip()
                yield Row(
                    image=line["image"].strip(),
                    label="good" if good else "defect",
                    dataset="visa",
                    category=line["object"].strip(),
                    part=part,
                    defect=None if good else "bad",
                    masks=(mask,) if mask and not good else (),
                )
            except (KeyError, AttributeError):
                columns = "object, split, label (normal or anomaly), image, mask"
                raise RecordError(f"{file}:{number}: no row of VisA's split file", f"Columns: {columns}") from None


def _real_iad_lists(root: Path) -> list[Path]:
    """The lists of one folder: the multi-view ones first, as published or nested once more."""
    folders = sorted((p for p in root.glob("realiad_jsons*") if p.is_dir()), key=lambda p: (len(p.name), p.name))
    for folder in folders:
        if found := sorted(folder.glob("*.json")) or sorted(folder.glob("*/*.json")):
            return found
    return []
