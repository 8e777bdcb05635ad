"""The paper's Tables 1 to 4 as records, to stand beside our own figures.

Reads the packaged transcription ``paper_tables.json``; returns frozen records. A row whose printed average is not the mean of
its printed cells carries the recomputed value, or says why there is none. Knows nothing about our own results.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

from dcr2ad.types import Context, Record, Subtask


class PaperRow(Record):
    """One model's row, in per cent, as printed."""

    model: str
    """Name as printed."""
    scale: str | None
    """Size as printed; None for people and closed models."""
    f1: float | None = None
    """F1 of anomaly discrimination (Table 1 only)."""
    values: tuple[float | None, ...]
    """The seven sub-tasks in the order of `PaperTables.columns`; None where the cell is not printed."""
    average: float
    """Average as printed."""
    improvement: float | None = None
    """Gain over the same model without domain knowledge (Table 2 only)."""
    recomputed: float | None = None
    """Mean of the printed cells, where it is not the printed average."""
    same_as: str | None = None
    """Row of Table 1 that this row of the ablation repeats."""
    note: str = ""
    """What is odd about the row."""


class PaperTable(Record):
    """One table, with the protocol its rows were measured under."""

    number: int
    """Number of the table in the paper."""
    caption: str
    """What it shows, in our words."""
    shots: int
    """References shown with each query."""
    context: Context
    """External knowledge in the prompt."""
    rows: tuple[PaperRow, ...]
    """Rows in the paper's order."""

    def row(self, model: str, scale: str | None = None) -> PaperRow:
        """The row of a model; raises KeyError when there is none."""
        for row in self.rows:
            if row.model == model and scale in (None, row.scale):
                return row
        raise KeyError(f"Table {self.number} has no row {model!r}")


class PaperTables(Record):
    """All tables of results."""

    source: str
    """What is cited."""
    columns: tuple[Subtask, ...]
    """Sub-task of each value."""
    tables: tuple[PaperTable, ...]
    """Tables 1 to 4."""

    def table(self, number: int) -> PaperTable:
        """A table by its number; raises KeyError when there is none."""
        for table in self.tables:
            if table.number == number:
                return table
        raise KeyError(f"the paper has no Table {number} here")


@cache
def paper_tables() -> PaperTables:
    """The tables, read once."""
    text = resources.files(__package__).joinpath("paper_tables.json").read_text(encoding="utf-8")
    return PaperTables.model_validate_json(text)
