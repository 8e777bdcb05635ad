"""A benchmark of one's own: labelled photographs to questions in MMAD's schema (Section 4.2 measures on MMAD).

Reads a folder of labelled photographs; writes ``questions.jsonl`` (what `evaluate` reads), ``rejected.jsonl``, and for MMAD's
own tools ``mmad.json`` with its data root ``images/``, a tree of links in MMAD's layout. Knows nothing about models or scores.
The questions' wording is held out from training, their places are checked against the masks. Not in the paper.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcr2ad.artifacts import read_records, write_text
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.knowledge.objects import normalise
from dcr2ad.parsing import LETTERS
from dcr2ad.stages.building import BuildSummary, Progress
from dcr2ad.stages.findings import InspectsTraceably
from dcr2ad.stages.instruct import build_benchmark
from dcr2ad.types import Question, Sample

MMAD_FILE, IMAGES = "mmad.json", "images"


def build_bench(
    data: str | Path,
    out: str | Path,
    knowledge_base: KnowledgeBase,
    *,
    split: str = "dev",
    max_images: int | None = None,
    seed: int = 0,
    expert: InspectsTraceably | None = None,
    progress: Progress | None = None,
    fresh: bool = False,
    datasets: Sequence[str] = (),
) -> BuildSummary:
    """Make a benchmark; arguments as in `build_benchmark`.

    Raises:
        InputError: the data cannot be read, or no question could be made.
        RunError: `out` holds the work of other settings or data.
    """
    summary = build_benchmark(
        data,
        out,
        knowledge_base,
        split=split,
        max_images=max_images,
        seed=seed,
        expert=expert,
        progress=progress,
        fresh=fresh,
        datasets=datasets,
    )
    write_mmad(Path(out), list(read_records(Path(out) / "questions.jsonl", Question)))
    return summary


def write_mmad(out: Path, questions: Sequence[Question]) -> None:
    """Write ``mmad.json`` and its images' tree; images and masks are linked, not copied.

    Every key is ``dataset/object/test/<defect or good>/file``, and MMAD's readers take data set, object and label from there.
    """
    tree = _Tree(out / IMAGES)
    entries: dict[str, dict[str, Any]] = {}
    for question in sorted(questions, key=lambda q: (q.sample.dataset, q.sample.object, q.sample.defect or "", q.sample.image)):
        key = tree.query(question.sample)
        entry = entries.setdefault(key, _entry(tree, key, question.sample))
        entry["conversation"].append(
            {
                "Question": question.text,
                "Answer": LETTERS[question.answer],
                "Options": dict(zip(LETTERS, question.options, strict=False)),
                "type": question.subtask.value,
                "annotation": True,
            }
        )
    write_text(out / MMAD_FILE, json.dumps(entries, indent=1, ensure_ascii=False) + "\n")


def _entry(tree: _Tree, key: str, sample: Sample) -> dict[str, Any]:
    folder = f"{key.split('/')[0]}/{key.split('/')[1]}/"
    references = [tree.reference(sample, path) for path in sample.references]
    masks = [tree.mask(sample, path) for path in sample.masks]
    return {
        "image_path": key.removeprefix(folder),
        "conversation": [],
        "mask_path": masks[0].removeprefix(folder) if masks else None,
        "similar_templates": references,
        "random_templates": references,
    }


class _Tree:
    """Links in MMAD's layout; each file has one place, and two files of one name get two."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._places: dict[tuple[str, str], str] = {}
        self._taken: set[str] = set()

    def query(self, sample: Sample) -> str:
        label = normalise(sample.defect or "defective") if sample.is_anomalous else "good"
        return self._place(f"{_home(sample)}/test/{label}", sample.image)

    def reference(self, sample: Sample, path: str) -> str:
        return self._place(f"{_home(sample)}/train/good", path)

    def mask(self, sample: Sample, path: str) -> str:
        return self._place(f"{_home(sample)}/ground_truth/{normalise(sample.defect or 'defective')}", path)

    def _place(self, folder: str, path: str) -> str:
        if (folder, path) not in self._places:
            file = Path(path)
            numbers = range(1, len(self._taken) + 2)
            names = (file.name, *(f"{file.stem}-{number}{file.suffix}" for number in numbers))
            place = next(f"{folder}/{name}" for name in names if f"{folder}/{name}" not in self._taken)
            self._places[folder, path] = place
            self._taken.add(place)
            link = self._root / place
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(file.absolute(), link.parent.absolute()))
        return self._places[folder, path]


def _home(sample: Sample) -> str:
    return f"{normalise(sample.dataset) or 'own'}/{normalise(sample.object) or 'part'}"
