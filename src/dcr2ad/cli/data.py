"""Verbs that make or show data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dcr2ad.cli.options import Base, Datasets, Fresh, Kinds, Out, RecipeFile, Seed, app, data_app

Sheet = Annotated[Path | None, typer.Option(help="PNG to write: the drawn defects beside their masks, to look at.")]


@app.command()
def draw(
    out: Out = Path("runs/drawn"),
    count: Annotated[int, typer.Option("-n", help="Pictures of each part and defect; with --onto, of each photograph.")] = 10,
    seed: Seed = 0,
    onto: Annotated[Path | None, typer.Option(help="Draw defects onto the good photographs of this folder.")] = None,
    contact_sheet: Sheet = None,
) -> None:
    """Draw labelled parts, or defects onto good photographs, with exact masks (MVTec layout)."""
    from dcr2ad.commands.data import run_draw

    run_draw(out, count=count, seed=seed, onto=onto, contact_sheet=contact_sheet)


@app.command()
def kinds(
    data: Annotated[list[Path], typer.Argument(help="Folders of labelled photographs.")],
    out: Out = Path("runs/kinds"),
    split: Annotated[str, typer.Option(help="Split of the data; empty for all.")] = "train",
    dataset: Datasets = None,
    draw_defects: Annotated[int, typer.Option(min=0, max=2000, help="Defects drawn onto good photographs, in all.")] = 0,
    draw_on: Annotated[
        list[str] | None, typer.Option(metavar="OBJECT=N", help="As many more onto those of one object; may repeat.")
    ] = None,
    knowledge: Base = None,
    seed: Seed = 0,
    fresh: Fresh = False,
) -> None:
    """Fit a reader that tells which kinds of defect a hot spot looks like (kinds.npz)."""
    from dcr2ad.commands.data import run_kinds

    run_kinds(
        data,
        out,
        split=split,
        datasets=dataset or [],
        draw_defects=draw_defects,
        draw_on=draw_on or [],
        knowledge=knowledge,
        seed=seed,
        fresh=fresh,
    )


@app.command()
def instruct(
    data: Annotated[Path, typer.Argument(help="Folder of labelled photographs.")],
    out: Out = Path("runs/instruct"),
    dataset: Datasets = None,
    kinds: Kinds = None,
    recipe: RecipeFile = None,
    knowledge: Base = None,
    teacher: Annotated[str | None, typer.Option(help="builtin, or openai:MODEL@URL; default: the recipe's.")] = None,
    draw_defects: Annotated[
        int | None, typer.Option(min=0, max=100, help="Defects drawn onto each good photograph, beside the real ones.")
    ] = None,
    contact_sheet: Sheet = None,
    seed: Seed = 0,
    fresh: Fresh = False,
    forbid: Annotated[
        list[Path] | None,
        typer.Option(
            help="Refuse these images, by path, content and look: a benchmark's folder, mmad.json, a list; may repeat."
        ),
    ] = None,
) -> None:
    """Make verified questions with worked responses (AD-Instruct)."""
    from dcr2ad.commands.data import run_instruct

    run_instruct(
        data,
        out,
        datasets=dataset or [],
        recipe=recipe,
        knowledge=knowledge,
        seed=seed,
        fresh=fresh,
        forbid=forbid or [],
        teacher=teacher,
        kinds=kinds,
        draw_defects=draw_defects,
        contact_sheet=contact_sheet,
    )


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A record file (JSONL).")],
    count: Annotated[int, typer.Option("-n", help="How many records.")] = 3,
) -> None:
    """Print the first records of a file, readably."""
    from dcr2ad.errors import RecordError

    try:
        with file.open(encoding="utf-8") as lines:
            for _, line in zip(range(count), lines, strict=False):
                typer.echo(json.dumps(json.loads(line), indent=2, ensure_ascii=False))
    except (OSError, ValueError) as error:
        raise RecordError(f"{file} cannot be shown ({error})", "Name a JSONL file") from None


Questions = Annotated[Path, typer.Argument(help="questions.jsonl, or the folder that holds it.")]


@data_app.command("blind")
def data_blind(questions: Questions, seed: Seed = 0) -> None:
    """What a reader of question and options alone could answer; exit status 1 where a sub-task leaks."""
    from dcr2ad.commands.data import run_blind

    if not run_blind(questions, seed=seed):
        raise typer.Exit(1)


@data_app.command("check")
def data_check(
    data: Annotated[Path, typer.Argument(help="Folder of labelled photographs, in any layout that is read.")],
    dataset: Datasets = None,
) -> None:
    """Open and hash every image and mask, count, and name what is wrong; exit status 1 where anything is."""
    from dcr2ad.commands.data import run_check

    if not run_check(data, datasets=dataset or []):
        raise typer.Exit(1)


@data_app.command("stats")
def data_stats(
    questions: Questions,
    figure: Annotated[Path | None, typer.Option("--out", "-o", help="PNG to write: the sunburst of Figure 5.")] = None,
) -> None:
    """Count questions by component (good, defective), sub-task and object (Figure 5 of the paper)."""
    from dcr2ad.commands.data import run_stats

    run_stats(questions, figure)


@data_app.command("export")
def data_export(
    questions: Questions,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")],
    form: Annotated[str, typer.Option("--format", help="sharegpt, llamafactory, trl or parquet.")] = "sharegpt",
    knowledge: Base = None,
) -> None:
    """Write instruction data in the form of another trainer."""
    from dcr2ad.commands.data import run_data_export

    run_data_export(questions, out, form=form, knowledge=knowledge)
