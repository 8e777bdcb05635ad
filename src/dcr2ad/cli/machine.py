"""Verbs about this machine."""

from __future__ import annotations

import typer

from dcr2ad.cli.options import app


@app.command("build-nano")
def build_nano_verb() -> None:
    """Build the embedded model into the cache (done by itself where it is needed)."""
    from dcr2ad.models.nano import build_nano

    typer.echo(build_nano(progress=lambda text: typer.echo(text, err=True)))


@app.command()
def doctor() -> None:
    """Say what this machine has and what is missing."""
    from dcr2ad.commands.machine import run_doctor

    run_doctor()
