"""AD-Instruct: photographs with labels to verified questions with worked responses (Section 4.1, Appendix B.1).

Reads a folder of photographs and the knowledge base, chooses the samples, and has `dcr2ad.stages.building` write questions. The
same machinery makes a benchmark: held-out wording, no responses. Knows nothing about models.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from dcr2ad.config import InstructSettings
from dcr2ad.datasets.folder import Part, Skipped, balanced_subset, read_folder, with_knowledge
from dcr2ad.datasets.onto import Planned, plan_defects
from dcr2ad.endpoint_teacher import open_teacher
from dcr2ad.errors import InputError
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.leaks import Forbidden
from dcr2ad.stages.building import Build, BuildSummary, Progress
from dcr2ad.stages.findings import InspectsTraceably
from dcr2ad.teacher import Teacher
from dcr2ad.types import Sample
from dcr2ad.wordings import BENCHMARK_WORDING, INSTRUCT_WORDING


def build_instructions(
    data: str | Path,
    out: str | Path,
    knowledge_base: KnowledgeBase,
    settings: InstructSettings,
    *,
    seed: int,
    expert: InspectsTraceably | None = None,
    progress: Progress | None = None,
    fresh: bool = False,
    datasets: Sequence[str] = (),
    parts: Sequence[Part] = ("test",),
    forbidden: Forbidden | None = None,
    teacher: Teacher | None = None,
) -> BuildSummary:
    """Make instruction data.

    Args:
        data: folder of photographs, see `dcr2ad.datasets.folder.read_folder`.
        out: the stage's folder; a stopped run continues there, a finished one is returned as it is.
        knowledge_base: where entries, options and explanations come from.
        settings: see `InstructSettings`; `expert` there says whether findings are wanted, the argument gives the expert.
        seed: seed of everything drawn by lot.
        expert: the visual expert; None makes data without findings.
        progress: called after each image.
        fresh: throw away what `out` holds.
        datasets: names of data sets to keep; empty for all.
        parts: parts of a layout that are asked about. The train part holds the good images that serve as references; asked
            about themselves they are compared with another item, which for aligned templates is another place altogether.
        forbidden: images no question may be made of, nor be shown as a reference: those of a benchmark.
        teacher: who writes the responses; None opens the one that `settings` names.

    Raises:
        InputError: the data cannot be read, or no question could be made.
        UnknownNameError: no such teacher.
        RunError: `out` holds the work of other settings or data.
    """
    teacher = open_teacher(settings.teacher, seed) if teacher is None else teacher
    if settings.draw_defects and not _has_part(data, settings.split, datasets, parts):
        parts = ("test", "train")  # a line may have good images alone, all in the train part
    chosen = _choose(
        data, knowledge_base, settings.split, settings.max_images, seed, datasets, parts, references=settings.references
    )
    planned: list[Planned] = []
    if settings.draw_defects:
        folder = Path(out) / "drawn"
        drawn = plan_defects(chosen[0], settings.draw_defects, folder, knowledge_base, seed=seed, scale=settings.draw_strength)
        planned = list(drawn)
    return Build(
        chosen,
        knowledge_base,
        INSTRUCT_WORDING,
        seed=seed,
        expert=expert if settings.expert else None,
        teacher=teacher,
        settings=settings,
        forbidden=forbidden,
        planned=planned,
    ).run(Path(out), "instruct", settings.model_dump(mode="json"), fresh, progress)


def build_benchmark(
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
    parts: Sequence[Part] = ("test",),
    beside: Sequence[str] = (),
) -> BuildSummary:
    """Make questions for measuring: wording that training never saw, no responses; else as `build_instructions`.

    Not in the paper, which measures on MMAD. `expert` adds findings to the samples; a protocol may leave them out. `beside`
    names good images that serve as references in place of the data's own.
    """
    chosen = _choose(data, knowledge_base, split, max_images, seed, datasets, parts, beside=beside)
    config = {"split": split, "max_images": max_images, "expert": expert is not None}
    build = Build(chosen, knowledge_base, BENCHMARK_WORDING, seed=seed, expert=expert, teacher=None)
    return build.run(Path(out), "benchmark", config, fresh, progress)


def _choose(
    data: str | Path,
    knowledge_base: KnowledgeBase,
    split: str,
    max_images: int | None,
    seed: int,
    datasets: Sequence[str],
    parts: Sequence[Part],
    *,
    references: int = 1,
    beside: Sequence[str] = (),
) -> tuple[list[Sample], tuple[Skipped, ...], list[Sample]]:
    """The samples to use, in the order of use, what the reader skipped, and every sample of the data."""
    reading = read_folder(data, split=split, datasets=datasets, parts=parts, references=references)
    every = list(with_knowledge(reading, knowledge_base))
    if beside:
        every = [sample.model_copy(update={"references": tuple(beside)}) for sample in every]
    samples = balanced_subset(every, max_images, seed)
    if not samples:
        raise InputError(f"{data} holds no usable image", "Every image was skipped; see that the files exist")
    if max_images is None:
        # Data sets come in order of object and defect; wrong options are balanced as the run goes on, and need them mixed.
        random.Random(f"{seed}/order").shuffle(samples)
    return samples, reading.skipped, every


def _has_part(data: str | Path, split: str, datasets: Sequence[str], parts: Sequence[Part]) -> bool:
    """Whether the data has images in these parts."""
    try:
        read_folder(data, split=split, datasets=datasets, parts=parts)
    except InputError:
        return False
    return True
