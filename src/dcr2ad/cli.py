"""The command `dcr2ad`: parses, calls a stage, prints. No logic, and no heavy import before a verb needs it.

A user's error is one line on standard error and exit status 2; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from dcr2ad.errors import Dcr2adError

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

Model = Annotated[str, typer.Option("--model", "-m", help="nano, nano:base, hf:PATH, openai:MODEL@URL, or a trained folder.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write to; a stopped run continues there.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Throw away earlier work in the folder.")]
Base = Annotated[Path | None, typer.Option("--knowledge", help="entries.jsonl of a built base; default: built in.")]
Datasets = Annotated[list[str] | None, typer.Option(help="Only this data set; may be repeated.")]
Seed = Annotated[int, typer.Option(help="Seed of everything drawn by lot.")]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="Recipe with the stage's settings.")]


def main() -> None:
    """Run the command; the console script's entry point."""
    try:
        app()
    except Dcr2adError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command continues where it stopped\n")
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)


def _version(wanted: bool) -> None:
    if wanted:
        from dcr2ad import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Options of every verb."""


@app.command()
def diagnose(
    image: Annotated[Path, typer.Argument(help="A photograph, or a folder of them.")],
    reference: Annotated[list[Path] | None, typer.Option("--reference", "-r", help="Good part; may be repeated.")] = None,
    object_name: Annotated[str, typer.Option("--object", help="What the part is called.")] = "part",
    question: Annotated[str | None, typer.Option(help="A question of your own.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="An option of your question; repeat.")] = None,
    context: Annotated[str, typer.Option(help="none, category, routed or oracle:KEY.")] = "routed",
    model: Model = "nano",
    expert: Annotated[bool, typer.Option("--expert/--no-expert", help="Visual expert's findings in the prompt.")] = True,
    knowledge: Base = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write a self-contained HTML page.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="For a folder: where results go.")] = Path("runs/diagnose"),
    fresh: Fresh = False,
) -> None:
    """Is this part all right? Verdict, place, kind, reasoning, and the knowledge it rests on."""
    from dcr2ad.commands import run_diagnose

    run_diagnose(
        image,
        reference or [],
        object_name=object_name,
        question=question,
        options=option or [],
        context=context,
        model=model,
        expert=expert,
        knowledge=knowledge,
        as_json=as_json,
        report=report,
        out=out,
        fresh=fresh,
    )


@knowledge_app.command("build")
def knowledge_build(
    mmad: Annotated[Path | None, typer.Option(help="MMAD's domain_knowledge.json.")] = None,
    real_iad: Annotated[Path | None, typer.Option(help="A Real-IAD knowledge file.")] = None,
    own: Annotated[Path | None, typer.Option(help="Own entries: JSONL, or a folder of Markdown files.")] = None,
    builtin: Annotated[bool, typer.Option("--builtin/--no-builtin", help="Include the built-in entries.")] = True,
    exclude_source: Annotated[list[str] | None, typer.Option(help="Leave a source out; repeat.")] = None,
    out: Out = Path("runs/knowledge"),
) -> None:
    """Build an object-agnostic knowledge base (Section 3.3 of the paper)."""
    from dcr2ad.commands import run_knowledge_build

    run_knowledge_build(out, mmad=mmad, real_iad=real_iad, own=own, builtin=builtin, exclude_sources=exclude_source or [])


@knowledge_app.command("list")
def knowledge_list(knowledge: Base = None) -> None:
    """List every entry: key and title."""
    from dcr2ad.commands import load_knowledge

    for entry in load_knowledge(knowledge):
        typer.echo(f"{entry.key}\t{entry.title}")


@knowledge_app.command("show")
def knowledge_show(key: Annotated[str, typer.Argument(help="Key or title.")], knowledge: Base = None) -> None:
    """Show one entry whole."""
    from dcr2ad.commands import load_knowledge

    base = load_knowledge(knowledge)
    typer.echo((base.resolve(key) or base.get(key)).model_dump_json(indent=2))


@knowledge_app.command("search")
def knowledge_search(
    words: Annotated[str, typer.Argument(help="What it looks like.")],
    count: Annotated[int, typer.Option("-k", help="How many.")] = 5,
    knowledge: Base = None,
) -> None:
    """Find entries by words."""
    from dcr2ad.commands import load_knowledge

    for entry, score in load_knowledge(knowledge).search(words, count):
        typer.echo(f"{score:6.2f}  {entry.key}\t{entry.title}")


@knowledge_app.command("check")
def knowledge_check(file: Annotated[Path, typer.Argument(help="entries.jsonl")]) -> None:
    """Check a file of entries; exit status 1 when something is wrong with it."""
    from dcr2ad.artifacts import read_records
    from dcr2ad.knowledge.check import check
    from dcr2ad.types import KnowledgeEntry

    problems = check(list(read_records(file, KnowledgeEntry)))
    for problem in problems:
        typer.echo(problem)
    typer.echo(f"{len(problems)} problems", err=True)
    raise typer.Exit(1 if problems else 0)


@app.command()
def draw(
    out: Out = Path("runs/drawn"),
    count: Annotated[int, typer.Option("-n", help="Pictures of each part and defect.")] = 10,
    seed: Seed = 0,
) -> None:
    """Draw labelled parts with exact masks: data without a download (MVTec layout)."""
    from dcr2ad.commands import run_draw

    run_draw(out, count=count, seed=seed)


@app.command()
def instruct(
    data: Annotated[Path, typer.Argument(help="Folder of labelled photographs.")],
    out: Out = Path("runs/instruct"),
    dataset: Datasets = None,
    recipe: RecipeFile = None,
    knowledge: Base = None,
    seed: Seed = 0,
    fresh: Fresh = False,
) -> None:
    """Make verified questions with worked responses (AD-Instruct)."""
    from dcr2ad.commands import run_instruct

    run_instruct(data, out, datasets=dataset or [], recipe=recipe, knowledge=knowledge, seed=seed, fresh=fresh)


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
    from dcr2ad.commands import run_sft

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
    from dcr2ad.commands import run_mine

    run_mine(questions, out, model=model, recipe=recipe, knowledge=knowledge, fresh=fresh)


@app.command()
def synthesize(
    boundary: Annotated[Path, typer.Argument(help="boundary.jsonl of the mine stage.")],
    out: Out = Path("runs/synthesize"),
    recipe: RecipeFile = None,
    knowledge: Base = None,
    seed: Seed = 0,
    fresh: Fresh = False,
) -> None:
    """Write right and deceptive trajectories (KR-RTS, Section 3.3)."""
    from dcr2ad.commands import run_synthesize

    run_synthesize(boundary, out, recipe=recipe, knowledge=knowledge, seed=seed, fresh=fresh)


@app.command()
def krdpo(
    pairs: Annotated[Path, typer.Argument(help="pairs.jsonl of the synthesize stage.")],
    model: Model,
    out: Out = Path("runs/krdpo"),
    recipe: RecipeFile = None,
    knowledge: Base = None,
    seed: Seed = 0,
) -> None:
    """Knowledge-routed direct preference optimisation, Equation (5), from the SFT model."""
    from dcr2ad.commands import run_krdpo

    run_krdpo(pairs, out, model=model, recipe=recipe, knowledge=knowledge, seed=seed)


@app.command()
def bench(
    data: Annotated[Path, typer.Argument(help="Folder of labelled photographs.")],
    out: Out = Path("runs/bench"),
    split: Annotated[str, typer.Option(help="Split of the data; empty for all.")] = "dev",
    max_images: Annotated[int | None, typer.Option(help="Images at most.")] = None,
    dataset: Datasets = None,
    knowledge: Base = None,
    seed: Seed = 0,
    fresh: Fresh = False,
) -> None:
    """Turn labelled photographs into benchmark questions with held-out wording."""
    from dcr2ad.commands import run_bench

    run_bench(
        data, out, split=split, max_images=max_images, datasets=dataset or [], knowledge=knowledge, seed=seed, fresh=fresh
    )


@app.command()
def evaluate(
    questions: Annotated[Path, typer.Argument(help="questions.jsonl of a benchmark.")],
    model: Model = "nano",
    shots: Annotated[int, typer.Option(help="References shown.")] = 1,
    context: Annotated[str, typer.Option(help="none, category, routed or oracle.")] = "none",
    expert: Annotated[bool, typer.Option("--expert/--no-expert", help="Visual expert's findings in the prompt.")] = True,
    answering: Annotated[str, typer.Option(help="score or reason.")] = "score",
    scoring: Annotated[str, typer.Option(help="strict or mmad-official.")] = "strict",
    out: Out = Path("runs/evaluate"),
    knowledge: Base = None,
    fresh: Fresh = False,
) -> None:
    """Ask a benchmark under one protocol; print accuracies with intervals."""
    from dcr2ad.commands import run_evaluate

    protocol = {"shots": shots, "context": context, "expert": expert, "answering": answering, "scoring": scoring}
    run_evaluate(questions, out, model=model, protocol=protocol, knowledge=knowledge, fresh=fresh)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Page to write; default RUN/report.html.")] = None,
) -> None:
    """Write a run's self-contained HTML page."""
    from dcr2ad.artifacts import write_text
    from dcr2ad.report.run_report import render_run

    target = out or run / "report.html"
    write_text(target, render_run(run))
    typer.echo(target)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe, for example recipes/nano.toml.")],
    data: Annotated[Path, typer.Option(help="Folder of labelled photographs.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; default runs/NAME.")] = None,
    dataset: Datasets = None,
) -> None:
    """All stages of a recipe; continues a stopped run."""
    from dcr2ad.commands import run_all

    run_all(recipe, data, out, datasets=dataset or [])


@app.command()
def pack(
    model: Annotated[Path, typer.Argument(help="model/ of a training stage: an adapter.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
) -> None:
    """Copy a trained adapter in bfloat16, half the size."""
    from dcr2ad.training.weights import pack_adapter

    typer.echo(pack_adapter(model, out).digest)


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


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path("demo"),
    model: Model = "nano",
) -> None:
    """Build the embedded model, diagnose drawn example parts, write a page."""
    from dcr2ad.commands import run_demo

    run_demo(out, model=model)


@app.command("build-nano")
def build_nano_verb() -> None:
    """Build the embedded model into the cache (done by itself where it is needed)."""
    from dcr2ad.models.nano import build_nano

    typer.echo(build_nano(progress=lambda text: typer.echo(text, err=True)))


@app.command()
def doctor() -> None:
    """Say what this machine has and what is missing."""
    from dcr2ad.commands import run_doctor

    run_doctor()


if __name__ == "__main__":
    main()
