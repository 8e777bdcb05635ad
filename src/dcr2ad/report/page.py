"""Jinja templates and inline pictures: what both pages are put together with.

Reads the packaged templates and pictures in memory; returns HTML text that refers to nothing outside itself. Every value is
escaped on its way in, and each page forbids scripts and network access to the browser. Knows nothing about what is shown.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from dcr2ad.report.overlay import HEAT

ABSENT = "–"
"""Shown where there is no value."""


def render(template: str, **values: Any) -> str:
    """Fill a template of ``report/templates``."""
    return _environment().get_template(template).render(heat=HEAT, **values)


def shrink(image: Image.Image, side: int) -> Image.Image:
    """The picture with its longer side at most `side` pixels; never enlarged beyond twice its size, and tiny ones kept crisp.

    Photographs smaller than half of `side` are doubled without smoothing, so that marks drawn on them stay thin.
    """
    longest = max(image.size)
    if longest * 2 <= side:
        return image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST)
    if longest <= side:
        return image
    scale = side / longest
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def picture_uri(image: Image.Image, quality: int = 85) -> str:
    """A picture as a JPEG data URI."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def probability_text(value: float) -> str:
    """Two decimals, and never a certainty the number does not carry: "> 0.99" rather than "1.00"."""
    if 0.995 <= value < 1:
        return "> 0.99"
    if 0 < value < 0.005:
        return "< 0.01"
    return f"{value:.2f}"


def _percent(value: float) -> str:
    """A share as a CSS length."""
    return f"{min(max(value, 0.0), 1.0) * 100:.1f}%"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("dcr2ad.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[[float], str]] = {"p": probability_text, "percent": _percent}
    environment.filters.update(filters)
    environment.globals["absent"] = ABSENT
    return environment
