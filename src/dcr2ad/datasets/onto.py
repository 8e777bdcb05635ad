"""Good photographs to defective ones: which defects are drawn onto which photographs, and their files.

Reads `Sample`s of good photographs; returns `Sample`s of pictures still to be drawn (`plan_defects`) and writes those pictures
with their masks (`draw_planned`, `write_onto`). What a defect looks like is `dcr2ad.datasets.defects`' business. Knows nothing
about questions. Not in the paper; as CutPaste (Li et al. 2021), DRAEM (Zavrtanik et al. 2021) and NSA (Schlueter et al. 2022)
do for training detectors.
"""

from __future__ import annotations

import random
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dcr2ad.datasets.circuits import CIRCUITS
from dcr2ad.datasets.defects import DEFECT_KINDS, draw_defect
from dcr2ad.datasets.folder import ResolvesLabels, with_knowledge
from dcr2ad.datasets.two_tone import two_levels
from dcr2ad.errors import ImageError, InputError
from dcr2ad.images import load_image, write_png
from dcr2ad.knowledge.objects import domains
from dcr2ad.types import Sample

DRAWN = "drawn/"
"""How the id of a picture begins that a defect was drawn onto."""
STRENGTHS = {"clear": 1.0, "medium": 0.75, "slight": 0.55}
"""How hard a drawn defect is to see, by difficulty: its opacity or size, see `draw_defect`."""
_LEAST_CONTRAST = 14 / 255
"""Mean change within the mask under which a drawn defect is not there for the eye."""
_LEAST_OF_TEXTURE = 0.6
"""The same, as a share of the spread of grey levels where the defect lies: texture hides it."""
BOARD = "board"
"""Domain of the objects that circuits are drawn onto."""
_TRIES = 5
"""Drawings tried before a defect is given up: on a dark or bright spot some cannot be seen."""


class Planned(NamedTuple):
    """A defect to be drawn."""

    sample: Sample
    """The picture it will be; `image` and `masks` are the files to be written."""
    kind: str
    """One of `dcr2ad.datasets.defects.DEFECT_KINDS` or `dcr2ad.datasets.circuits.CIRCUITS`; the sample's label is this, or the
    object's own word for it."""
    source: Sample
    """The good photograph."""
    difficulty: str
    """One of `STRENGTHS`."""
    seed: int
    """Decides place, form and size."""
    scale: float = 1.0
    """Factor on the difficulty's strength."""


def plan_defects(
    good: Iterable[Sample],
    count: int,
    folder: Path,
    knowledge_base: ResolvesLabels,
    *,
    seed: int,
    kinds: Sequence[str] | None = None,
    scale: float = 1.0,
) -> Iterator[Planned]:
    """Decide what is drawn onto each good photograph; nothing is written, and of photographs boards alone are opened.

    Of one photograph's defects each is of another kind while kinds last; difficulties take turns by lot. A kind that the
    knowledge base does not know for the object is left out. A picture's references are its photograph's: other good items,
    never the photograph itself, beside which the drawing alone would differ.

    Args:
        good: good photographs; defective ones among them are passed over.
        count: defects drawn onto each, one a picture.
        folder: where the pictures will stand: ``<object>/<kind>/<name>.png`` and ``<name>_mask.png``.
        knowledge_base: resolves each kind to the entry that applies.
        seed: seed of everything drawn by lot.
        kinds: kinds to choose from; None: those of circuits on a board in black and white, where a speck of dirt would be an
            island of copper, and `DEFECT_KINDS` on all else.
        scale: factor on the strength of every difficulty.
    """
    for source in good:
        if source.is_anomalous:
            continue
        rng = random.Random(f"{seed}/onto/{source.dataset}/{source.id}")
        drawable = _kinds_on(source) if kinds is None else kinds
        order: list[str] = []
        for _ in range(count):
            order = order or rng.sample(list(drawable), len(drawable))
            difficulty, drawing = rng.choice(list(STRENGTHS)), rng.getrandbits(32)
            kind = order.pop()
            sample = _planned_sample(source, label_of(kind, source.object), drawing, folder)
            (known,) = with_knowledge([sample], knowledge_base)
            if known.right_key is not None:
                yield Planned(known, kind, source, difficulty, drawing, scale)


def _kinds_on(source: Sample) -> Sequence[str]:
    if domains(source.object)[0] != BOARD:
        return DEFECT_KINDS
    try:
        return CIRCUITS if two_levels(load_image(source.image)) else DEFECT_KINDS
    except ImageError:  # said where it is drawn onto
        return DEFECT_KINDS


def label_of(kind: str, object_name: str) -> str:
    """The label of a drawn defect: cloth frays in another way than a brittle edge.

    >>> label_of("fray", "carpet"), label_of("fray", "magnetic tile"), label_of("dent", "carpet")
    ('fraying', 'fray', 'dent')
    """
    return "fraying" if kind == "fray" and domains(object_name)[0] == "textile" else kind


def draw_planned(planned: Planned) -> None:
    """Draw the picture and its mask, unless both stand already.

    Raises:
        ImageError: the photograph cannot be read, or no drawing of the defect could be seen on it.
    """
    picture_file, mask_file = Path(planned.sample.image), Path(planned.sample.masks[0])
    if picture_file.is_file() and mask_file.is_file():
        return
    photograph, kind = load_image(planned.source.image), planned.kind
    strength = planned.scale * STRENGTHS[planned.difficulty]
    for attempt in range(_TRIES):
        picture, mask = draw_defect(photograph, kind, seed=planned.seed + attempt, strength=strength)
        if _is_seen(photograph, picture, mask):
            break
    else:
        raise ImageError(f"a {kind} of this difficulty ({planned.difficulty}) cannot be seen", "It is left out")
    write_png(mask_file, Image.fromarray(mask.astype(np.uint8) * 255))
    write_png(picture_file, picture)


def write_onto(
    good: Sequence[Sample],
    out: Path,
    count: int,
    knowledge_base: ResolvesLabels,
    *,
    seed: int,
    scale: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Planned], dict[str, int]]:
    """Draw defects onto good photographs and write both in the MVTec layout, ready for any verb that reads a folder.

    The photographs go to ``<object>/train/good``, the pictures to ``<object>/test/<kind>`` with masks in ``ground_truth``.

    Returns:
        what was drawn, and how many could not be, by reason.

    Raises:
        InputError: no good photograph, or nothing could be drawn.
    """
    sources = [sample for sample in good if not sample.is_anomalous]
    if not sources or count < 1:
        raise InputError(f"{count} defects on {len(sources)} good photographs are none", "Name a folder of good photographs")
    done: list[Planned] = []
    dropped: Counter[str] = Counter()
    for number, planned in enumerate(plan_defects(sources, count, out, knowledge_base, seed=seed, scale=scale), 1):
        shelf, kind, name = _shelf(planned.source), planned.sample.defect or "", Path(planned.sample.image).stem
        image = out / shelf / "test" / kind / f"{name}.png"
        mask = out / shelf / "ground_truth" / kind / f"{name}_mask.png"
        moved = planned._replace(sample=planned.sample.model_copy(update={"image": str(image), "masks": (str(mask),)}))
        try:
            draw_planned(moved)
        except ImageError as error:
            dropped[error.what] += 1
        else:
            done.append(moved)
        if progress is not None:
            progress(number, len(sources) * count)
    if not done:
        raise InputError("no defect could be drawn", "See that the photographs can be opened")
    for source in sources:
        target = out / _shelf(source) / "train" / "good" / f"{_name(source)}{Path(source.image).suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.image, target)
    return done, dict(dropped)


def _planned_sample(source: Sample, kind: str, seed: int, folder: Path) -> Sample:
    name = f"{_name(source)}-{seed:08x}"
    place = folder / _shelf(source) / kind
    return source.model_copy(
        update={
            "id": f"{DRAWN}{source.id}/{kind}-{seed:08x}",
            "image": str(place / f"{name}.png"),
            "masks": (str(place / f"{name}_mask.png"),),
            "defect": kind,
            "is_anomalous": True,
            "group": source.group or source.id,
            "expert": None,
        }
    )


def _shelf(source: Sample) -> str:
    return re.sub(r"[^\w-]+", "_", source.object) or "part"


def _name(source: Sample) -> str:
    """File name of a photograph's pictures: its own, and a few digits, since folders may repeat a name."""
    return f"{Path(source.image).stem}-{zlib.crc32(f'{source.dataset}/{source.id}'.encode()):08x}"


def _is_seen(before: Image.Image, after: Image.Image, mask: np.ndarray) -> bool:
    """Whether the drawn defect stands out of the texture it lies on."""
    if not mask.any():
        return False
    box = Image.fromarray(mask).getbbox() or (0, 0, 1, 1)
    old, new, here = before.crop(box), after.crop(box), mask[box[1] : box[3], box[0] : box[2]]
    change = np.abs(np.asarray(new, dtype=np.int16) - np.asarray(old, dtype=np.int16)).max(axis=2)
    contrast = float(change[here].mean() / 255)
    texture = float(np.asarray(old.convert("L"), dtype=np.float64)[here].std() / 255)
    return contrast >= max(_LEAST_CONTRAST, _LEAST_OF_TEXTURE * texture)
