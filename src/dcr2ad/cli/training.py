"""Verbs that train, and the run of all stages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcr2ad.cli.options import Base, Datasets, Fresh, Kinds, Model, Out, RecipeFile, Seed, app


@app.command()
def sft(
    questions: Annotated[list[Path], typer.Argument(help="questions.jsonl of the instruct stage; several are joined.")],
    out: Out = Path("runs/sft"),
    model: Model = "nano:base",
    recipe: RecipeFile = None,
    knowledge: Base = None,
    seed: Seed = 0,
) -> None:
    """Supervised fine-tuning, Equation (2)."""
    from dcr2ad.commands.training import run_sft

    run_sft(questions, out, model=model, recipe=recipe, knowledge=knowledge, seed=seed)


@app.command()
def mine(
    questions: Annotated[Path, typer.Argument(help="questions.jsonl of the instruct stage.")],
    model: Model,
    out: Out = Path("runs/mine"),
    recipe: RecipeFile = None,
    knowledge: Base = None,
    fresh: Fresh = False,
) -> None:
    """Keep the questions the SFT model answers near chance (Appendix B.2)."""
    from dcr2ad.commands.training import run_mine

    run_mine(questions, out, model=model, recipe=recipe, knowledge=knowledge, fresh=fresh)


@app.command()
def synthesize(
    boundary: Annotated[Path, typer.Argument(help="boundary.jsonl of the mine stage.")],
    out: Out = Path("runs/synthesize"),
    model: Annotated[str | None, typer.Option("--model", "-m", help="SFT model, to prefer entries it mistakes.")] = None,
    export: Annotated[list[str] | None, typer.Option(help="Write the pairs for trl or llamafactory too; may repeat.")] = None,
    teacher: Annotated[str | None, typer.Option(help="builtin, or openai:MODEL@URL; default: the recipe's.")] = None,
    recipe: RecipeFile = None,
    knowledge: Base = None,
    seed: Seed = 0,
    fresh: Fresh = False,
) -> None:
    """Write right and deceptive trajectories (KR-RTS, Section 3.3)."""
    from dcr2ad.commands.training import run_synthesize

    run_synthesize(
        boundary,
        out,
        model=model,
        recipe=recipe,
        knowledge=knowledge,
        seed=seed,
        fresh=fresh,
        export=export or [],
        teacher=teacher,
    )


@app.command()
def krdpo(
    pairs: Annotated[Path, typer.Argument(help="pairs.jsonl of the synthesize stage.")],
    model: Model,
    out: Out = Path("runs/krdpo"),
    recipe: RecipeFile = None,
    knowledge: Base = None,
    seed: Seed = 0,
    rehearse: Annotated[
        list[Path] | None,
        typer.Option(help="Instruction data kept up beside the pairs, for krdpo.rehearsal_weight: questions.jsonl; repeat."),
    ] = None,
) -> None:
    """Knowledge-routed direct preference optimisation, Equation (5), from the SFT model."""
    from dcr2ad.commands.training import run_krdpo

    run_krdpo(pairs, out, model=model, recipe=recipe, knowledge=knowledge, seed=seed, rehearse=rehearse or [])


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe, for example recipes/nano.toml.")],
    data: Annotated[Path | None, typer.Option(help="Folder of labelled photographs.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; default runs/NAME.")] = None,
    dataset: Datasets = None,
    variant: Annotated[list[str] | None, typer.Option(help="Only this row of the ablation; repeat.")] = None,
    cell: Annotated[list[str] | None, typer.Option(help="Only this cell: 1shot-none-expert-score, or *-expert-*.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Only this seed of the recipe's; repeat.")] = None,
    questions: Annotated[list[Path] | None, typer.Option(help="Instruction data made already: questions.jsonl.")] = None,
    sft_model: Annotated[str | None, typer.Option(help="SFT model trained already.")] = None,
    bench: Annotated[Path | None, typer.Option(help="Benchmark built already: questions.jsonl.")] = None,
    kinds: Kinds = None,
) -> None:
    """All stages of a recipe: trains and measures its variants, prints the ablation; continues a stopped run."""
    from dcr2ad.commands.training import run_all

    run_all(
        recipe,
        data,
        out,
        datasets=dataset or [],
        subset={"variants": variant or [], "cells": cell or [], "seeds": seed or []},
        questions=questions or [],
        sft_model=sft_model,
        bench=bench,
        kinds=kinds,
    )


@app.command()
def adapt(
    photographs: Annotated[Path, typer.Argument(help="Folder of good photographs of one line.")],
    out: Out = Path("runs/adapt"),
    model: Model = "nano",
    bench: Annotated[Path | None, typer.Option(help="Labelled photographs, or a questions.jsonl, to measure on.")] = None,
    object_name: Annotated[str | None, typer.Option("--object", help="The object in words; default: from the folder.")] = None,
    dataset: Datasets = None,
    recipe: RecipeFile = None,
    seed: Seed = 0,
) -> None:
    """Train a model for your own line from good photographs: defects are drawn onto them; measured before and after."""
    from dcr2ad.commands.training import run_adapt

    run_adapt(
        photographs,
        out,
        model=model,
        bench=bench,
        object_name=object_name,
        datasets=dataset or [],
        recipe=recipe,
        seed=seed,
    )


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(help="Recipe, for example recipes/dcr2ad-7b.toml.")],
    gpus: Annotated[int, typer.Option(min=1, help="GPUs.")] = 1,
    memory: Annotated[float, typer.Option(min=0.1, help="Memory of each, GiB.")] = 80.0,
    sharding: Annotated[str, typer.Option(help="ddp, zero2, fsdp or zero3.")] = "ddp",
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="hf:FOLDER, qwen2.5-vl-7b or qwen2.5-vl-72b; default: the recipe's.")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a prompt without its images.")] = 1024,
    images: Annotated[int, typer.Option(min=0, help="Images of a prompt: reference and query.")] = 2,
    image_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an image; Qwen2.5-VL: 1369 of 1024 x 1024.")] = 1369,
    response_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a response.")] = 256,
) -> None:
    """Memory a GPU that each training stage needs, before any hour is spent; exit status 1 where one does not fit."""
    from dcr2ad.commands.planning import run_plan

    row = {"text": prompt_tokens, "images": images, "image_tokens": image_tokens, "response": response_tokens}
    if not run_plan(recipe, gpus=gpus, memory=memory, sharding=sharding, model=model, row=row):
        raise typer.Exit(1)


@app.command()
def pack(
    model: Annotated[Path, typer.Argument(help="model/ of a training stage: an adapter, or a whole fine-tuned model.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    rank: Annotated[int | None, typer.Option(help="Rank kept of every weight's change.")] = None,
    energy: Annotated[float, typer.Option(help="Of a whole model, without --rank: share of each squared change kept.")] = 0.9,
    part: Annotated[float, typer.Option(help="Share of the training's change that is kept: 0.5 goes half of the way.")] = 1.0,
    start: Annotated[Path | None, typer.Option(help="Of a part: model/ of the training that this one went on from.")] = None,
    licence: Annotated[str, typer.Option(help="What the licences of the training data allow.")] = "",
    report: Annotated[list[Path] | None, typer.Option(help="Folder of an evaluation of it, for the card; repeat.")] = None,
) -> None:
    """Make a small adapter to ship: bfloat16, low rank of a full fine-tuning, manifest and model card."""
    from dcr2ad.commands.training import run_pack

    run_pack(model, out, rank=rank, energy=energy, part=part, start=start, licence=licence, reports=report or [])


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="nano, nano:base, hf:PATH, or the folder of a trained model.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    dtype: Annotated[str, typer.Option(help="auto (the base's), float32, bfloat16 or float16.")] = "auto",
) -> None:
    """Write a model in the hub's layout, adapters merged: what transformers and vLLM load."""
    from dcr2ad.commands.training import run_export

    run_export(model, out, dtype=dtype)
