"""Verbs about single photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcr2ad.cli.options import Base, Fresh, Model, app


@app.command()
def diagnose(
    image: Annotated[Path, typer.Argument(help="A photograph, or a folder of them.")],
    reference: Annotated[
        list[Path] | None,
        typer.Option("--reference", "-r", help="Good part, or a folder of them; may be repeated. Five or more set a limit."),
    ] = None,
    object_name: Annotated[str, typer.Option("--object", help="What the part is called.")] = "part",
    question: Annotated[str | None, typer.Option(help="A question of your own.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="An option of your question; repeat.")] = None,
    context: Annotated[str, typer.Option(help="none, category, routed or oracle:KEY.")] = "routed",
    routing: Annotated[str, typer.Option(help="hybrid, recall or listed: how routed knowledge is ranked.")] = "hybrid",
    orders: Annotated[int, typer.Option(min=1, help="Orders of the listed entries to average over.")] = 1,
    model: Model = "nano",
    expert: Annotated[bool, typer.Option("--expert/--no-expert", help="Visual expert's findings in the prompt.")] = True,
    kinds: Annotated[
        Path | None, typer.Option(help="Gallery of `dcr2ad kinds` for the findings; default: the one beside the model.")
    ] = None,
    shots: Annotated[int, typer.Option(min=0, help="References the model itself is shown; the expert sees all.")] = 1,
    alarms: Annotated[
        float, typer.Option(min=0.01, max=0.5, help="Share of good parts that may pass a limit set from the references.")
    ] = 0.2,
    knowledge: Base = None,
    compare: Annotated[
        bool, typer.Option("--compare-contexts", help="Answer one photograph under four kinds of knowledge, side by side.")
    ] = False,
    right: Annotated[str | None, typer.Option(help="With --compare-contexts: key of the entry that applies.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write a self-contained HTML page.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="For a folder: where results go.")] = Path("runs/diagnose"),
    fresh: Fresh = False,
) -> None:
    """Is this part all right? Verdict, place, kind, reasoning, and the knowledge it rests on."""
    from dcr2ad.commands.diagnosis import run_diagnose

    run_diagnose(
        image,
        reference or [],
        object_name=object_name,
        question=question,
        options=option or [],
        context=context,
        routing=routing,
        orders=orders,
        model=model,
        expert=expert,
        kinds=kinds,
        shots=shots,
        alarms=alarms,
        knowledge=knowledge,
        compare=compare,
        right=right,
        as_json=as_json,
        report=report,
        out=out,
        fresh=fresh,
    )


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path("demo"),
    model: Model = "nano",
) -> None:
    """Build the embedded model, diagnose drawn example parts, write a page."""
    from dcr2ad.commands.diagnosis import run_demo

    run_demo(out, model=model)
