"""What the command shows while it works: progress bars with an estimate, and tables.

Knows nothing about stages; the only module besides the command that writes to a terminal.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

_WIDTH = max(shutil.get_terminal_size().columns, 140)
"""A table of results has fifteen columns: on a narrower terminal its lines wrap, rather than its figures."""
out = Console(highlight=False, soft_wrap=True, width=_WIDTH)
"""Results: standard output."""
err = Console(stderr=True, highlight=False, soft_wrap=True)
"""Progress, notes and errors: standard error, so that output can be piped."""


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar; yields ``update(done, total)``. On no terminal it writes a line each tenth instead."""
    if not err.is_terminal:
        yield _lines(label)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=False) as bar:
        task = bar.add_task(label, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield update


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table for the terminal; all but the first column are set to the right."""
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for number, column in enumerate(columns):
        made.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*("" if cell is None else str(cell) for cell in row))
    return made


def _lines(label: str) -> Callable[[int, int], None]:
    said = -1

    def update(done: int, total: int) -> None:
        nonlocal said
        tenth = 10 * done // max(total, 1)
        if tenth > said:
            said = tenth
            sys.stderr.write(f"{label}: {done}/{total}\n")
            sys.stderr.flush()

    return update
