"""The command `dcr2ad`: parses, calls a stage, prints. No logic, and no heavy import before a verb needs it.

A user's error is one line on standard error and exit status 2; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

# The order in which the verbs register is that of the help.
# isort: off
from dcr2ad.cli import diagnosis, knowledge, data, training, evaluation, machine  # noqa: F401

# isort: on
from dcr2ad.cli.options import app
from dcr2ad.errors import Dcr2adError


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
