"""Making data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dcr2ad import console
from dcr2ad.commands.common import load_knowledge, must_exist, print_counts, read_recipe
from dcr2ad.leaks import Forbidden, read_forbidden


def run_draw(out: Path, *, count: int, seed: int) -> None:
    """Verb `draw`."""
    from dcr2ad.datasets.drawn import write_drawn

    written = write_drawn(out, count, seed)
    console.err.print(f"{written} pictures with masks in {out}", markup=False)


def run_instruct(
    data: Path,
    out: Path,
    *,
    datasets: Sequence[str],
    recipe: Path | None,
    knowledge: Path | None,
    seed: int,
    fresh: bool,
    forbid: Sequence[Path] = (),
) -> None:
    """Verb `instruct`."""
    must_exist(data)
    from dcr2ad.expert import Expert
    from dcr2ad.stages.instruct import build_instructions

    settings = read_recipe(recipe).instruct
    expert = Expert() if settings.expert else None
    forbidden = _read_forbidden(forbid)
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
            forbidden=forbidden,
        )
    print_counts("instruct", made.model_dump(), out / "questions.jsonl")


def _read_forbidden(paths: Sequence[Path]) -> Forbidden | None:
    """The leak guard of `--forbid`; None where nothing is forbidden."""
    if not paths:
        return None
    with console.progress("forbidden images") as update:
        return read_forbidden(paths, update)
