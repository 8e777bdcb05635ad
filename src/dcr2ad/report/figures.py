"""Numbers as inline SVG figures; with `dcr2ad.report.sunburst` the only module that imports matplotlib.

Reads sequences of numbers; returns SVG text without prologue, links or fixed colours: ink, lines and series take the page's
CSS variables, so one figure serves light, dark and print. Knows nothing about runs or files.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

# Each stands in the drawing for a variable of style.css and is replaced in the SVG.
_INK, _SOFT, _LINE, _CARD = "#010101", "#020202", "#030303", "#080808"
_SERIES = ("#040404", "#050505", "#060606", "#070707")
_VARIABLES = {
    _INK: "--ink",
    _SOFT: "--soft",
    _LINE: "--line",
    _CARD: "--card",
    _SERIES[0]: "--model",
    _SERIES[1]: "--expert",
    _SERIES[2]: "--knowledge",
    _SERIES[3]: "--warn",
}
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_STYLE = {"svg.fonttype": "none", "font.size": 9.5, "axes.linewidth": 0.8}
JOINED = 5
"""Answers from which a point of `reliability` is joined to the next."""
_SMOOTH_FROM = 40


def curve(
    title: str,
    of: str,
    steps: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    zero: bool = False,
    smooth: bool = True,
) -> Markup:
    """Curves over optimiser steps, one panel.

    Args:
        title: what is plotted.
        of: what it belongs to; with `title` it becomes the figure's accessible name, unique on its page.
        steps: optimiser steps.
        series: values by name, each as long as `steps`; NaN leaves a gap.
        zero: whether to mark the level 0.
        smooth: draw long curves pale, with their running mean on top.
    """
    window = len(steps) // 20 if smooth and len(steps) >= _SMOOTH_FROM else 1
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 2.9), layout="constrained")
        axes = figure.add_subplot()
        _plain_axes(axes)
        axes.grid(axis="y", color=_LINE, linewidth=0.7)
        if zero:
            axes.axhline(0, color=_SOFT, linewidth=0.8)
        for number, (name, values) in enumerate(series.items()):
            colour, dash = _SERIES[number % len(_SERIES)], _DASHES[number % len(_DASHES)]
            few = "o" if len(steps) < 3 else ""
            if window > 1:
                axes.plot(steps, values, color=colour, alpha=0.28, linewidth=0.9)
            axes.plot(steps, running_mean(values, window), color=colour, linestyle=dash, linewidth=1.7, label=name, marker=few)
        axes.set_xlabel("optimiser step", color=_SOFT)
        if len(series) > 1:
            axes.legend(frameon=False, labelcolor=_INK, loc="best", handlelength=2.4)
        shown = f"{title}, with mean over {window} steps" if window > 1 else title
        axes.set_title(shown, loc="left", color=_INK, fontsize=10.5, pad=8)
        return _svg(figure, f"{of}: {title}")


def intervals(title: str, rows: Sequence[tuple[str, str, float, float, float]]) -> Markup:
    """Points with their intervals, one line a row, rows of one group together.

    Args:
        title: what is plotted.
        rows: group, name, value, low and high of each.
    """
    groups = list(dict.fromkeys(row[0] for row in rows))
    lines = len(rows) + len(groups)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(11, 0.6 + 0.25 * lines), layout="constrained")
        axes = figure.add_subplot()
        _plain_axes(axes)
        axes.grid(axis="x", color=_LINE, linewidth=0.7)
        ticks, labels = [], []
        y = 0.0
        for group in groups:
            plate = {"facecolor": _CARD, "edgecolor": "none", "pad": 1.5}
            axes.text(0.0, y, group, color=_SOFT, va="center", bbox=plate, transform=axes.get_yaxis_transform())
            y += 1
            for name, value, low, high in (row[1:] for row in rows if row[0] == group):
                axes.plot([low, high], [y, y], color=_SERIES[0], linewidth=1.6, solid_capstyle="butt")
                axes.plot([value], [y], "o", color=_SERIES[0], markersize=5)
                axes.annotate(f"{value:.1f}", (high, y), (6, 0), textcoords="offset points", color=_INK, va="center")
                ticks.append(y)
                labels.append(name)
                y += 1
        axes.set_yticks(ticks, labels, color=_INK)
        axes.set_ylim(y - 0.3, -0.7)
        axes.margins(x=0.08)
        axes.set_title(title, loc="left", color=_INK, fontsize=10.5, pad=8)
        return _svg(figure, title)


def confusion_picture(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    counts: Sequence[Sequence[int]],
    hits: Sequence[tuple[int, int]] = (),
) -> bytes:
    """A table of counts as a PNG: what was true (rows) against what was chosen (columns), cells shaded by share of the row.

    Args:
        title: what is shown.
        rows: names of the rows.
        columns: names of the columns.
        counts: one list a row.
        hits: cells (row, column) where chosen is true, framed.
    """
    table = np.asarray(counts, dtype=float)
    totals = np.maximum(table.sum(axis=1, keepdims=True), 1)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(3.6 + 0.42 * len(columns), 2.6 + 0.28 * len(rows)), layout="constrained", dpi=130)
        axes = figure.add_subplot()
        _plain_axes(axes)
        axes.imshow(table / totals, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(table):
            if value:
                dark = value / totals[row, 0] > 0.55
                axes.text(
                    column, row, f"{int(value)}", ha="center", va="center", color="white" if dark else "black", fontsize=8
                )
        for row, column in hits:
            corner = (column - 0.5, row - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="#c2410c", linewidth=1.4, clip_on=False))
        names = [f"{name} ({int(total)})" for name, total in zip(rows, table.sum(axis=1), strict=True)]
        axes.set_yticks(range(len(rows)), names, color="black")
        axes.set_xticks(range(len(columns)), columns, rotation=50, ha="right", color="black")
        axes.set_title(title, loc="left", color="black", fontsize=10.5, pad=8)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", facecolor="white")
        return buffer.getvalue()


def histogram_png(title: str, counts: Sequence[int], bands: Sequence[tuple[float, float]]) -> bytes:
    """Histogram of probabilities as a PNG, bands behind it shaded.

    Args:
        title: what is counted.
        counts: number in each of equal bins over [0, 1].
        bands: low and high of each band.
    """
    figure = Figure(figsize=(6.4, 3.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for low, high in bands:
        axes.axvspan(low, high, color="#d9e6f2", linewidth=0)
    width = 1 / len(counts)
    axes.bar([(i + 0.5) * width for i in range(len(counts))], counts, width=0.92 * width, color="#1f5a8a")
    axes.set_xlim(0, 1)
    axes.set_xlabel("probability of the right option")
    axes.set_ylabel("questions")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=10.5)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def running_mean(values: Sequence[float], window: int) -> np.ndarray:
    """Mean over the `window` values around each, NaN left out; at the ends over what there is."""
    array = np.asarray(values, dtype=float)
    if window <= 1:
        return array
    known = np.isfinite(array)
    box = np.ones(window)
    sums = np.convolve(np.where(known, array, 0.0), box, mode="same")
    counts = np.convolve(known.astype(float), box, mode="same")
    return np.where(counts > 0.5, sums / np.maximum(counts, 1.0), math.nan)


def _plain_axes(axes: Any) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_LINE)
    axes.tick_params(colors=_SOFT, length=0, pad=5)
    axes.set_facecolor("none")
    axes.set_axisbelow(True)


def _svg(figure: Figure, name: str) -> Markup:
    """The figure as SVG for an HTML page: no prologue, no metadata, no namespace links, no ids that two figures could share."""
    buffer = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'\sid="[A-Za-z_.0-9]+_\d+"', "", text)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", text)
    text = re.sub(r"font:\s*([\d.]+px) inherit", r"font-size: \1", text)
    text = re.sub(r'<svg\s+width="[^"]*"\s+height="[^"]*"', "<svg", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(name)}"', 1))


def radar(title: str, axes_names: Sequence[str], series: Mapping[str, Sequence[float | None]]) -> Markup:
    """Accuracies on spokes, 0 to 100 per cent, one outline a series; a spoke without a figure is left out of the outline.

    Args:
        title: what is plotted.
        axes_names: name of each spoke.
        series: per cent by name, each as long as `axes_names`; at most four.
    """
    angles = np.linspace(0, 2 * math.pi, len(axes_names), endpoint=False)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 4.9), layout="constrained")
        axes: Any = figure.add_subplot(projection="polar")
        axes.set_theta_offset(math.pi / 2)
        axes.set_theta_direction(-1)
        axes.set_facecolor("none")
        for number, (name, values) in enumerate(list(series.items())[: len(_SERIES)]):
            known = [(a, v) for a, v in zip(angles, values, strict=True) if v is not None]
            closed = [*known, *known[:1]]
            colour = _SERIES[number]
            line = {"color": colour, "linestyle": _DASHES[number], "linewidth": 1.7, "label": name}
            axes.plot([a for a, _ in closed], [v for _, v in closed], **line)
            axes.fill([a for a, _ in closed], [v for _, v in closed], color=colour, alpha=0.06)
        axes.set_ylim(0, 100)
        axes.set_yticks([25, 50, 75, 100], ["25", "50", "75", "100"], color=_SOFT, fontsize=8)
        axes.set_xticks(angles, axes_names, color=_INK)
        axes.tick_params(axis="x", pad=10)
        axes.grid(color=_LINE, linewidth=0.7)
        axes.spines["polar"].set_color(_LINE)
        axes.set_title(title, loc="left", color=_INK, fontsize=10.5, pad=18)
        figure.legend(frameon=False, labelcolor=_INK, loc="outside lower center", handlelength=2.4, ncols=2)
        return _svg(figure, title)


def reliability(title: str, series: Mapping[str, Sequence[tuple[float, float, int]]]) -> Markup:
    """Accuracy over confidence beside the diagonal of a calibrated model; a point's area grows with its number of answers.

    A line joins the points of at least `JOINED` answers: between fewer it would show chance.

    Args:
        title: what is plotted.
        series: points by name: mean confidence, accuracy (shares), and number of answers; at most four.
    """
    most = max((n for points in series.values() for _, _, n in points), default=1)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 4.6), layout="constrained")
        axes = figure.add_subplot()
        _plain_axes(axes)
        axes.grid(color=_LINE, linewidth=0.7)
        axes.plot([0, 1], [0, 1], color=_SOFT, linewidth=0.9, linestyle=(0, (4, 3)))
        for number, (name, points) in enumerate(list(series.items())[: len(_SERIES)]):
            xs, ys = [p[0] for p in points], [p[1] for p in points]
            joined = [p for p in points if p[2] >= JOINED]
            line = {"color": _SERIES[number], "linestyle": _DASHES[number], "linewidth": 1.5, "label": name}
            axes.plot([p[0] for p in joined], [p[1] for p in joined], **line)
            axes.scatter(
                xs, ys, [8 + 70 * p[2] / most for p in points], color=_SERIES[number], alpha=0.75, linewidths=0, clip_on=False
            )
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("probability of the option given", color=_SOFT)
        axes.set_ylabel("share right", color=_SOFT)
        axes.legend(frameon=False, labelcolor=_INK, loc="upper left", handlelength=2.4)
        axes.set_title(title, loc="left", color=_INK, fontsize=10.5, pad=8)
        return _svg(figure, title)
