"""What a blind reader makes of instruction data, several runs over the same photographs read together.

    python benchmarks/blind_reader.py FOLDER [--recipe FILE] [--kinds FOLDER] [--dataset NAME ...] [--seeds 10] [--across dev]

One run's figure is uncertain by four points: a leak of a few points shows only in thousands of questions. Each photograph is
looked at once; the runs differ in their seed. Without ``--recipe`` the defaults hold, without findings. The reader is that of
`dcr2ad data blind`: what it answers about an image it learnt from others, never from another run's questions about the same.
``--across`` names another split: a reader of this one answers that one's questions, which were balanced by themselves.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from dcr2ad.artifacts import read_records
from dcr2ad.blind import BlindScore, read_across, read_blind
from dcr2ad.config import InstructSettings, load_recipe
from dcr2ad.expert import Expert
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.stages.instruct import build_instructions
from dcr2ad.stages.kinds import expert_with_kinds
from dcr2ad.types import ExpertFindings, Question


class Remembering:
    """An expert that looks at each image once."""

    def __init__(self, expert: Expert) -> None:
        self.fingerprint = expert.fingerprint
        self._look = cache(lambda image, references: expert.inspect(image, references)[0])

    def inspect(self, image: str, references: Sequence[str]) -> tuple[ExpertFindings, Any]:
        """As `Expert.inspect`, without the map."""
        return self._look(image, tuple(references)), None


def main() -> None:
    """Build with each seed, pool the questions, print what the reader makes of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipe", type=Path)
    parser.add_argument("--kinds", type=Path)
    parser.add_argument("--dataset", action="append", default=[])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--across", metavar="SPLIT")
    options = parser.parse_args()
    settings = load_recipe(options.recipe).instruct if options.recipe else InstructSettings(expert=False)
    expert = Remembering(expert_with_kinds(options.kinds, Expert())) if settings.expert else None

    def made(split: str) -> list[Question]:
        base, questions = KnowledgeBase.builtin(), []
        asked = settings.model_copy(update={"split": split})
        with tempfile.TemporaryDirectory() as scratch:
            for seed in range(options.seeds):
                out = Path(scratch) / str(seed)
                build_instructions(options.folder, out, base, asked, seed=seed, expert=expert, datasets=options.dataset)
                questions += list(read_records(out / "questions.jsonl", Question))
        return questions

    questions = made(settings.split)
    show(read_blind(questions))
    if options.across:
        print(f"read on {settings.split}, asked on {options.across}")
        show(read_across(questions, made(options.across)))


def show(scores: Sequence[BlindScore]) -> None:
    """A row a sub-task."""
    for score in scores:
        reader = f"{score.accuracy:.1f} ± {score.error:.1f}"
        print(f"| {score.subtask.value} | {score.questions:,} | {score.chance:.1f} | {reader} | {score.verdict} |", flush=True)


if __name__ == "__main__":
    main()
