"""Result rows as a LaTeX table (booktabs), one protocol a block.

Reads rows of `dcr2ad.report.tables`; returns text. Pure. Overkill and Miss always stand beside the accuracies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby

from dcr2ad.report.tables import SHORT, ResultRow, protocol_label

_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "²": r"\textsuperscript{2}"}
_SPECIAL |= {sign: f"\\{sign}" for sign in "&%$#_{}"}
_HEADS = ("Model", *SHORT.values(), "Average", "95\\,\\%", "F1", "Overkill", "Miss")


def to_latex(groups: Iterable[tuple[str, Sequence[ResultRow]]]) -> str:
    """One ``tabular`` over groups of rows.

    Args:
        groups: caption and rows of each block.
    """
    lines = [f"\\begin{{tabular}}{{l{'r' * (len(_HEADS) - 1)}}}", "\\toprule", " & ".join(_HEADS) + r" \\"]
    for caption, rows in groups:
        lines += ["\\midrule", f"\\multicolumn{{{len(_HEADS)}}}{{l}}{{\\emph{{{escape(caption)}}}}} \\\\"]
        lines += [_line(row) for row in rows]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def grouped(rows: Iterable[ResultRow]) -> list[tuple[str, list[ResultRow]]]:
    """Neighbouring rows of one protocol together, under its words."""
    return [(protocol_label(protocol), list(members)) for protocol, members in groupby(rows, key=lambda row: row.protocol)]


def escape(text: str) -> str:
    """Text with LaTeX's special characters written out, and on one line."""
    return re.sub(r"[\\~^²&%$#_{}]", lambda m: _SPECIAL[m.group()], " ".join(text.split()))


def _line(row: ResultRow) -> str:
    span = "" if row.low is None or row.high is None else f"[{row.low:.1f}, {row.high:.1f}]"
    figures = [*row.values, row.average, None, row.f1, row.overkill, row.miss]
    cells = ["--" if value is None else f"{value:.2f}" for value in figures]
    cells[len(row.values) + 1] = span or "--"
    return " & ".join([escape(row.stage), *cells]) + r" \\"
