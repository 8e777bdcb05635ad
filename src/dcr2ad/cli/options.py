"""The application, its groups, and the options several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="dcr2ad",
    help="Anomaly detection with multimodal language models: knowledge-routed diagnosis, training and MMAD evaluation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
knowledge_app = typer.Typer(help="Build, list, show, search and check the knowledge base.", no_args_is_help=True)
app.add_typer(knowledge_app, name="knowledge")
bench_app = typer.Typer(help="Benchmarks of one's own.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")
data_app = typer.Typer(help="Check, measure, count and export data.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Model = Annotated[
    str,
    typer.Option("--model", "-m", help="nano, nano:real, nano:drawn, nano:base, hf:PATH, openai:MODEL@URL, a trained folder."),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write to; a stopped run continues there.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Throw away earlier work in the folder.")]
Base = Annotated[Path | None, typer.Option("--knowledge", help="entries.jsonl of a built base; default: built in.")]
Kinds = Annotated[
    Path | None, typer.Option(help="Gallery of `dcr2ad kinds`, or a model's folder that has one: kinds told in the findings.")
]
Datasets = Annotated[list[str] | None, typer.Option(help="Only this data set; may be repeated.")]
Seed = Annotated[int, typer.Option(help="Seed of everything drawn by lot.")]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="Recipe with the stage's settings.")]
