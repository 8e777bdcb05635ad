"""Fitting a gallery of kinds: labelled defects to a linear reader of the expert's hot spots (`dcr2ad.kinds`).

Reads a folder of labelled photographs; writes ``kinds.npz``, which goes with a model, and ``held_out.json``: for every defect
it was fitted on, by content, what a reader says that never saw its group. Instruction data told from these are as often wrong
as the reader is at use. Not in the paper.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dcr2ad.artifacts import write_bytes, write_text
from dcr2ad.datasets.folder import read_folder, with_knowledge
from dcr2ad.errors import ImageError, InputError
from dcr2ad.expert import Expert
from dcr2ad.images import content_digest
from dcr2ad.kinds import FILE, fit_gallery, load_gallery
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.types import KindGuess, Record, Sample

HELD_OUT = "held_out.json"

Progress = Callable[[int, int], None]
"""Called with images done and images in all."""


class KindsSummary(Record):
    """What a gallery was fitted on, and how often its held-out first guess is right."""

    defects: int
    """Labelled defects fitted on."""
    kinds: dict[str, int]
    """Defects of each kind."""
    right: dict[str, float]
    """Share of right first guesses, each defect guessed without its group, by object."""
    chance: dict[str, float]
    """The same, were the commonest kind of the object always guessed."""
    dropped: dict[str, int]
    """Images left out, by reason."""


def fit_kinds(
    data: str | Path,
    out: str | Path,
    knowledge_base: KnowledgeBase,
    expert: Expert,
    *,
    split: str = "train",
    datasets: Sequence[str] = (),
    progress: Progress | None = None,
) -> KindsSummary:
    """Fit a gallery on labelled photographs; written in one step at the end.

    Args:
        data: folder of labelled photographs, see `dcr2ad.datasets.folder.read_folder`.
        out: folder for ``kinds.npz`` and ``held_out.json``.
        knowledge_base: says which entry a label leads to.
        expert: finds the hot spots.
        split: split of the data to use; empty for all.
        datasets: names of data sets to keep; empty for all.
        progress: called after each image.

    Raises:
        InputError: the data cannot be read, or holds too few labelled defects.
    """
    samples = [s for s in with_knowledge(read_folder(data, split=split, datasets=datasets), knowledge_base) if s.is_anomalous]
    dropped: Counter[str] = Counter()
    kept: list[Sample] = []
    features = []
    for number, sample in enumerate(samples, 1):
        reason = "no reference" if not sample.references else "no knowledge entry" if sample.right_key is None else ""
        if not reason:
            try:
                findings, anomaly = expert.inspect(sample.image, sample.references)
                features.append(expert.hot_features(sample.image, sample.references, findings, anomaly))
                kept.append(sample)
            except ImageError:
                reason = "image cannot be read"
        dropped.update([reason] if reason else [])
        if progress is not None:
            progress(number, len(samples))
    if not kept:
        raise InputError(f"{data} holds no labelled defect with a reference", "Kinds are read off labelled defects")
    keys = [str(sample.right_key) for sample in kept]
    titles = [knowledge_base.get(key).title for key in keys]
    gallery, guesses = fit_gallery(np.stack(features), keys, titles, [sample.item for sample in kept])
    told = {
        content_digest(sample.image): [guess.model_dump() for guess in found]
        for sample, found in zip(kept, guesses, strict=True)
    }
    out = Path(out)
    write_text(out / HELD_OUT, json.dumps(told, indent=0) + "\n")
    gallery.save(out / FILE)
    dropped.update({"kind too rare": sum(not found for found in guesses)} if not all(guesses) else {})
    return KindsSummary(defects=len(kept), kinds=dict(Counter(keys)), dropped=dict(dropped), **_rates(kept, guesses))


def expert_with_kinds(path: Path | None, expert: Expert) -> Expert:
    """The expert with the gallery of a folder that `fit_kinds` wrote, or of a file; as it is where none is named.

    Raises:
        ModelError: no gallery there.
    """
    if path is not None:
        expert.gallery = load_gallery(path / FILE if path.is_dir() else path)
        held_out = (path if path.is_dir() else path.parent) / HELD_OUT
        if held_out.is_file():
            stored = json.loads(held_out.read_text(encoding="utf-8"))
            expert.held_out = {digest: tuple(map(KindGuess.model_validate, told)) for digest, told in stored.items()}
    return expert


def pass_on(source: Path, target: Path) -> None:
    """Copy the gallery in one folder, where there is one, to another: it goes with the data told by it, then with the model."""
    file = source / FILE if source.is_dir() else source
    if file.is_file():
        write_bytes(target / FILE, file.read_bytes())


def _rates(samples: Sequence[Sample], guesses: Sequence[tuple[KindGuess, ...]]) -> dict[str, dict[str, float]]:
    right, chance = {}, {}
    for name in sorted({sample.object for sample in samples}):
        own = [(s, told) for s, told in zip(samples, guesses, strict=True) if s.object == name]
        right[name] = sum(bool(told) and told[0].key == s.right_key for s, told in own) / len(own)
        chance[name] = max(Counter(s.right_key for s, _ in own).values()) / len(own)
    return {"right": right, "chance": chance}
