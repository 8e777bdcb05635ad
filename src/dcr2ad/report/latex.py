"""Result rows as a LaTeX table (booktabs), one protocol a block.

Reads rows of `dcr2ad.report.tables`; returns text. Pure. Overkill and Miss always stand beside the accuracies.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from itertools import groupby

from dcr2ad.report.tables import SHORT, ResultRow, protocol_label

_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "²": r"\textsuperscript{2}"}
_SPECIAL |= {sign: f"\\{sign}" for sign in "&%$#_{}"}
_SPECIAL |= {
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "→": r"$\to$",
}
# What LaTeX sets of itself in its oldest encoding, found by setting every character of Latin-1.
_KNOWN = frozenset(map(chr, range(0xA1, 0x100))) - set("«»ÐÞðþ\xad") | set("–—‘’“”…•€™")
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
    """Text on one line that any LaTeX sets, whatever it holds.

    Special characters are written out; a letter that LaTeX does not know without packages loses its accent, and what has no
    plain form is named by its code point.
    """
    plain = "".join(map(_character, " ".join(text.split())))
    # A line of a table that begins so would be read as an argument of the line break before it.
    return f"{{}}{plain}" if plain.startswith(("[", "*")) else plain


def _character(sign: str) -> str:
    if sign in _SPECIAL:
        return _SPECIAL[sign]
    if sign in _KNOWN or (sign.isascii() and sign.isprintable()):
        return sign
    bare = unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode()
    return "".join(map(_character, bare)) if bare.isprintable() and bare else rf"\texttt{{U+{ord(sign):04X}}}"


def _line(row: ResultRow) -> str:
    span = "" if row.low is None or row.high is None else f"[{row.low:.1f}, {row.high:.1f}]"
    figures = [*row.values, row.average, None, row.f1, row.overkill, row.miss]
    cells = ["--" if value is None else f"{value:.2f}" for value in figures]
    cells[len(row.values) + 1] = span or "--"
    return " & ".join([escape(row.stage), *cells]) + r" \\"
