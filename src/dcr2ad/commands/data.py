"""Making data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dcr2ad import console
from dcr2ad.commands.common import load_knowledge, must_exist, print_counts, read_recipe


def run_draw(out: Path, *, count: int, seed: int) -> None:
    """Verb `draw`."""
    from dcr2ad.datasets.drawn import write_drawn

    written = write_drawn(out, count, seed)
    console.err.print(f"{written} pictures with masks in {out}", markup=False)


def run_instruct(
    data: Path, out: Path, *, datasets: Sequence[str], recipe: Path | None, knowledge: Path | None, seed: int, fresh: bool
) -> None:
    """Verb `instruct`."""
    must_exist(data)
    from dcr2ad.expert import Expert
    from dcr2ad.stages.instruct import build_instructions

    settings = read_recipe(recipe).instruct
    expert = Expert() if settings.expert else None
    with console.progress("instruct") as update:
        made = build_instructions(
            data,
            out,
            load_knowledge(knowledge),
            settings,
            seed=seed,
            expert=expert,
            progress=update,
            fresh=fresh,
            datasets=datasets,
        )
    print_counts("instruct", made.model_dump(), out / "questions.jsonl")
