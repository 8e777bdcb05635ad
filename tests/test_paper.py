"""The paper's tables recompute, but for the rows named here; and the index from paper to code names only what is real."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dcr2ad.config import Recipe, Settings
from dcr2ad.report.paper_tables import PaperRow, paper_tables
from dcr2ad.types import Subtask

TABLES = paper_tables()
ROWS = [(table.number, row) for table in TABLES.tables for row in table.rows]

DIFFERENT_MEAN = {(1, "Claude-3.5-sonnet"): 68.62}
"""Rows whose seven printed cells have another mean than the printed average."""
CELLS_MISSING = {
    (3, "Gemini-1.5-flash"),
    (3, "LLaVA-NEXT-Interleave"),
    (3, "InternLM-XComposer2-VL"),
    (3, "LLaVA-NeXT"),
}
"""Rows whose two object columns are not printed."""


def mean(row: PaperRow) -> float:
    return sum(value for value in row.values if value is not None) / 7


def test_shape() -> None:
    assert TABLES.columns == tuple(Subtask)
    assert {table.number: len(table.rows) for table in TABLES.tables} == {1: 28, 2: 16, 3: 20, 4: 3}
    assert [(table.shots, table.context) for table in TABLES.tables] == [(1, "none"), (1, "category"), (0, "none"), (1, "none")]
    assert all(len(row.values) == 7 for _, row in ROWS)


@pytest.mark.parametrize(
    ("number", "row"), [pair for pair in ROWS if pair[0] != 4], ids=lambda part: getattr(part, "model", part)
)
def test_average_is_the_plain_mean_of_seven(number: int, row: PaperRow) -> None:
    """Equal to 0.01, or listed by name with what it recomputes to."""
    if (number, row.model) in CELLS_MISSING:
        assert None in row.values
        assert row.recomputed is None and "not printed" in row.note
    elif (number, row.model) in DIFFERENT_MEAN:
        assert row.recomputed == DIFFERENT_MEAN[number, row.model] == pytest.approx(mean(row), abs=0.005)
        assert abs(mean(row) - row.average) > 0.01
    else:
        assert None not in row.values
        assert round(mean(row), 2) == pytest.approx(row.average, abs=0.0101)
        assert row.recomputed is None and not row.note


@pytest.mark.parametrize("row", TABLES.table(4).rows, ids=lambda row: row.model)
def test_ablation_repeats_table_1(row: PaperRow) -> None:
    """Table 4 prints no object columns; its rows are rows of Table 1, whose averages include them."""
    assert row.same_as is not None
    original = TABLES.table(1).row(row.same_as, row.scale)
    assert original.average == row.average
    for here, there in zip(row.values, original.values, strict=True):
        assert here is None or here == there


def test_improvement_is_the_gain_over_table_1() -> None:
    """Table 2's last column, for every model that also stands in Table 1."""
    known = {(row.model, row.scale): row for row in TABLES.table(1).rows}
    compared = 0
    for row in TABLES.table(2).rows:
        base = known.get((row.model, row.scale))
        if base is not None and row.improvement is not None:
            assert row.average - base.average == pytest.approx(row.improvement, abs=0.0101), row.model
            compared += 1
    assert compared == 12


def test_gains_like_for_like() -> None:
    """The abstract's +6.00 and +8.64 compare unlike protocols; under one protocol the gains are these."""
    without, knowing = TABLES.table(1), TABLES.table(2)

    def gain(ours: str, scale: str, base: str = "Qwen2.5-VL-Instruct") -> tuple[float, float]:
        return tuple(round(t.row(ours, scale).average - t.row(base, scale).average, 2) for t in (without, knowing))  # type: ignore[return-value]

    assert gain("DCR²-AD-7B", "7B") == (5.82, 4.18)
    assert gain("DCR²-AD-72B", "72B") == (3.01, 3.15)
    assert round(knowing.row("DCR²-AD-72B").average - without.row("Qwen2.5-VL-Instruct", "72B").average, 2) == 6.00
    assert round(knowing.row("DCR²-AD-7B").average - without.row("Qwen2.5-VL-Instruct", "7B").average, 2) == 8.64


def test_unknown_rows_are_refused() -> None:
    with pytest.raises(KeyError, match="no row"):
        TABLES.table(1).row("DCR²-AD-7B", "72B")
    with pytest.raises(KeyError, match="Table 9"):
        TABLES.table(9)


INDEX = Path(__file__).parents[1] / "docs" / "paper.md"
NAMED = sorted(set(re.findall(r"`([^`]+)`", INDEX.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("name", NAMED)
def test_the_index_names_only_what_is_real(name: str) -> None:
    """Each word in code type is a file of the project, a test in one, or a key of the recipe."""
    if "/" in name:
        path, _, test = name.partition("::")
        file = INDEX.parents[1] / path
        assert file.is_file(), f"no such file: {path}"
        assert not test or f"def {test}(" in file.read_text(encoding="utf-8"), f"no such test: {name}"
        return
    stage, _, key = name.partition(".")
    settings = getattr(Recipe(name="x"), stage, None)
    assert isinstance(settings, Settings) and key in type(settings).model_fields, f"no such key: {name}"


def test_every_row_of_the_index_is_whole() -> None:
    rows = [line for line in INDEX.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert len(rows) > 20
    assert all(line.count("|") == 6 for line in rows)
