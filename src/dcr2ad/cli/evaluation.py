"""Verbs that measure and report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcr2ad.cli.options import Base, Datasets, Fresh, Kinds, Model, Out, Seed, app, bench_app


@bench_app.command("build")
def bench_build(
    data: Annotated[Path, typer.Argument(help="Folder of labelled photographs.")],
    out: Out = Path("runs/bench"),
    split: Annotated[str, typer.Option(help="Split of the data; empty for all.")] = "dev",
    max_images: Annotated[int | None, typer.Option(help="Images at most.")] = None,
    dataset: Datasets = None,
    expert: Annotated[bool, typer.Option("--expert/--no-expert", help="Store the visual expert's findings.")] = True,
    kinds: Kinds = None,
    knowledge: Base = None,
    seed: Seed = 0,
    fresh: Fresh = False,
) -> None:
    """Turn labelled photographs into a benchmark: questions.jsonl for evaluate, mmad.json for MMAD's own tools."""
    from dcr2ad.commands.evaluation import run_bench

    run_bench(
        data,
        out,
        split=split,
        max_images=max_images,
        datasets=dataset or [],
        expert=expert,
        knowledge=knowledge,
        seed=seed,
        fresh=fresh,
        kinds=kinds,
    )


@app.command()
def evaluate(
    questions: Annotated[Path, typer.Argument(help="questions.jsonl of a benchmark, MMAD's mmad.json or metadata.csv.")],
    model: Model = "nano",
    shots: Annotated[int, typer.Option(help="References shown.")] = 1,
    context: Annotated[str, typer.Option(help="none, category, routed, hybrid or oracle.")] = "none",
    expert: Annotated[bool, typer.Option("--expert/--no-expert", help="Visual expert's findings in the prompt.")] = True,
    answering: Annotated[str, typer.Option(help="score, reason, or reason@k such as reason@8.")] = "score",
    scoring: Annotated[str, typer.Option(help="strict or mmad-official.")] = "strict",
    what: Annotated[str, typer.Option(help="answers, or routing: does the router find the right knowledge?")] = "answers",
    routing: Annotated[list[str] | None, typer.Option(help="listed, recall or hybrid; for --what routing repeat.")] = None,
    orders: Annotated[int | None, typer.Option(help="Orders of a list to average over; 1, and 4 for routing.")] = None,
    whole_base: Annotated[
        bool, typer.Option("--whole-base", help="With --what routing: rank also entries the object cannot have.")
    ] = False,
    calibrate: Annotated[bool, typer.Option(help="With --what routing: store the fit with the model.")] = False,
    prompts: Annotated[Path | None, typer.Option(help="Own wording: a TOML file.")] = None,
    images: Annotated[Path | None, typer.Option(help="MMAD's data root; default: where the file lies.")] = None,
    templates: Annotated[str, typer.Option(help="MMAD's references: random or similar.")] = "random",
    shard: Annotated[str, typer.Option(help="Part i/n of the images; join them with dcr2ad merge.")] = "1/1",
    workers: Annotated[int, typer.Option(min=1, help="Workers to spread the images over, by Ray.")] = 1,
    precision: Annotated[
        str, typer.Option(help="On a CPU: fp32, or bf16, faster where the CPU has units for it and not quite equal.")
    ] = "fp32",
    out: Out = Path("runs/evaluate"),
    knowledge: Base = None,
    fresh: Fresh = False,
) -> None:
    """Ask a benchmark under one protocol; print accuracies with intervals."""
    from dcr2ad.commands.evaluation import run_evaluate
    from dcr2ad.commands.routing import check_what, run_evaluate_routing

    modes = check_what(what, routing or [], calibrate=calibrate, whole_base=whole_base, precision=precision)
    if what == "routing":
        run_evaluate_routing(
            questions,
            out,
            model=model,
            modes=modes,
            shots=shots,
            expert=expert,
            orders=orders,
            whole_base=whole_base,
            calibrate=calibrate,
            prompts=prompts,
            knowledge=knowledge,
            fresh=fresh,
        )
        return
    protocol = {"shots": shots, "context": context, "expert": expert, "answering": answering, "scoring": scoring}
    protocol |= {"routing": modes[0], "orders": orders or 1, "precision": precision}
    run_evaluate(
        questions,
        out,
        model=model,
        protocol=protocol,
        prompts=prompts,
        images=images,
        templates=templates,
        shard=shard,
        workers=workers,
        knowledge=knowledge,
        fresh=fresh,
    )


@app.command()
def merge(
    shards: Annotated[list[Path], typer.Argument(help="Folders of all shards of one evaluation.")],
    out: Out = Path("runs/evaluate"),
) -> None:
    """Join the shards of an evaluation; the result is that of one process."""
    from dcr2ad.commands.evaluation import run_merge

    run_merge(shards, out)


@app.command()
def score(
    answers: Annotated[Path, typer.Argument(help="Answer file in MMAD's format.")],
    scoring: Annotated[str, typer.Option(help="strict, or mmad-official with its faults.")] = "strict",
    out: Out = Path("runs/score"),
) -> None:
    """Score an answer file: accuracy.csv in MMAD's columns, tables by object and defect, what was not answered."""
    from dcr2ad.commands.evaluation import run_score

    run_score(answers, out, scoring)


@app.command()
def compare(
    evaluations: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of two evaluations of one benchmark; after them those of the same two under other trainings, such as "
            "seeds, pair by pair: the mean is told.",
            metavar="FIRST SECOND...",
        ),
    ],
    differ: Annotated[list[str] | None, typer.Option(help="What is meant to differ, such as context; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file to write.")] = None,
) -> None:
    """Pair two evaluations by question: differences with intervals clustered by image, and McNemar's test."""
    from dcr2ad.commands.evaluation import run_compare

    run_compare(evaluations, differ or [], out)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or of single evaluations.", metavar="RUN...")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Page to write; default report.html in the first RUN.")
    ] = None,
    unseen: Annotated[list[str] | None, typer.Option(help="Object or data set not trained on; may be repeated.")] = None,
) -> None:
    """Print the ablation over runs; write one self-contained HTML page, with its tables as CSV and LaTeX beside it."""
    from dcr2ad.commands.evaluation import run_report

    run_report(runs, out, unseen=unseen or [])
