"""Verbs of the knowledge base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcr2ad.cli.options import Base, Out, knowledge_app


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
    from dcr2ad.commands.knowledge import run_knowledge_build

    run_knowledge_build(out, mmad=mmad, real_iad=real_iad, own=own, builtin=builtin, exclude_sources=exclude_source or [])


@knowledge_app.command("list")
def knowledge_list(knowledge: Base = None) -> None:
    """List every entry: key and title."""
    from dcr2ad.commands.common import load_knowledge

    for entry in load_knowledge(knowledge):
        typer.echo(f"{entry.key}\t{entry.title}")


@knowledge_app.command("show")
def knowledge_show(key: Annotated[str, typer.Argument(help="Key or title.")], knowledge: Base = None) -> None:
    """Show one entry whole."""
    from dcr2ad.commands.common import load_knowledge

    base = load_knowledge(knowledge)
    typer.echo((base.resolve(key) or base.get(key)).model_dump_json(indent=2))


@knowledge_app.command("search")
def knowledge_search(
    words: Annotated[str, typer.Argument(help="What it looks like.")],
    count: Annotated[int, typer.Option("-k", help="How many.")] = 5,
    knowledge: Base = None,
    by_words: Annotated[bool, typer.Option("--words", help="By words (BM25) even where the extra is installed.")] = False,
) -> None:
    """Find entries by meaning where the extra `search` is installed, else by words."""
    from dcr2ad.commands.common import load_knowledge
    from dcr2ad.meaning import BY_WORDS, find

    found, used = find(load_knowledge(knowledge), words, count, words=by_words)
    for entry, score in found:
        typer.echo(f"{score:6.2f}  {entry.key}\t{entry.title}")
    hint = "; by meaning with `pip install dcr2ad[search]`" if used == BY_WORDS and not by_words else ""
    typer.echo(f"found {used}{hint}", err=True)


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
