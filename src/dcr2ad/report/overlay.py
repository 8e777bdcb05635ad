"""The visual expert's anomaly map: as a portable image, and laid over the photograph it belongs to.

Reads a map as an array or as the PNG data URI of `Diagnosis.expert_map`, and the expert's findings; returns arrays and
pictures. A map is in the units of `ExpertFindings.score` and covers the whole photograph, whatever its own size. Knows
nothing about models, pages or who drew the map. Not in the paper.
"""

from __future__ import annotations

import base64
import binascii
import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, PngImagePlugin

from dcr2ad.errors import ImageError
from dcr2ad.types import ExpertFindings

URI_PREFIX = "data:image/png;base64,"
"""How an encoded map begins."""

HEAT: tuple[tuple[int, int, int], ...] = (
    (87, 16, 110),
    (137, 34, 106),
    (187, 55, 84),
    (227, 89, 51),
    (249, 140, 10),
    (249, 201, 50),
    (252, 255, 164),
)
"""Upper part of matplotlib's "inferno": lightness rises evenly, so the order of the colours survives grey print."""

_LEVELS = 65535
_MAX_ALPHA = 0.72


class Scale(NamedTuple):
    """Values of a map between which the colours run; at `low` and below the photograph shows unchanged."""

    low: float
    high: float


def encode_map(anomaly_map: np.ndarray) -> str:
    """Write a map as a 16-bit grey PNG data URI that states its own scale.

    The PNG's text fields ``low`` and ``high`` hold the values of level 0 and level 65535; between them levels are linear,
    so a value comes back to within (high - low) / 65535.

    Args:
        anomaly_map: finite values, shape ``(height, width)``.

    Raises:
        ValueError: not two-dimensional, empty, or not finite.
    """
    values = np.asarray(anomaly_map, dtype=np.float64)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"a map is a finite array of height and width, not one of shape {values.shape}")
    low, high = float(values.min()), float(values.max())
    span = high - low
    levels = np.rint((values - low) / span * _LEVELS) if span > 0 else np.zeros_like(values)
    info = PngImagePlugin.PngInfo()
    info.add_text("low", repr(low))
    info.add_text("high", repr(high))
    buffer = io.BytesIO()
    Image.fromarray(levels.astype(np.uint16)).save(buffer, format="PNG", pnginfo=info)
    return URI_PREFIX + base64.b64encode(buffer.getvalue()).decode("ascii")


def decode_map(uri: str) -> np.ndarray:
    """Read a map that `encode_map` wrote; returns float32, shape ``(height, width)``.

    Raises:
        ImageError: not such a data URI, or a PNG that does not state its scale.
    """
    fix = "Use what dcr2ad.report.overlay.encode_map writes"
    if not uri.startswith(URI_PREFIX):
        raise ImageError("an anomaly map is not a PNG data URI", fix)
    try:
        data = base64.b64decode(uri.removeprefix(URI_PREFIX), validate=True)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
            low, high = float(image.info["low"]), float(image.info["high"])
            levels = np.asarray(image, dtype=np.float64)
    except KeyError:
        raise ImageError("an anomaly map does not state its scale", fix) from None
    except (binascii.Error, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"an anomaly map cannot be read ({error})", fix) from None
    if levels.ndim != 2 or not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise ImageError("an anomaly map is not one grey level a pixel with a scale", fix)
    return np.asarray(low + levels / _LEVELS * (high - low), dtype=np.float32)


def colour_scale(anomaly_map: np.ndarray, findings: ExpertFindings | None) -> Scale:
    """The scale an overlay is drawn with.

    With findings, colour begins at half the expert's limit and its middle is at or above the limit, so a good part stays
    uncoloured; without them it runs over the map's own upper half.
    """
    top = float(anomaly_map.max())
    if findings is not None and findings.threshold > 0:
        return Scale(findings.threshold / 2, max(top, findings.threshold * 2))
    low = float(np.median(anomaly_map))
    return Scale(low, top if top > low else low + 1.0)


def overlay(image: Image.Image, anomaly_map: np.ndarray | None, findings: ExpertFindings | None) -> Image.Image:
    """Lay a map over its photograph, with the 3x3 grid, the hottest cell and the hot region's box.

    Args:
        image: the photograph, RGB, at the size wanted.
        anomaly_map: values in units of the expert's score, shape ``(height, width)``, stretched over the photograph; None
            draws the marks only.
        findings: the expert's findings; None draws map and grid only.
    """
    picture = image.convert("RGB") if anomaly_map is None else _coloured(image, anomaly_map, findings)
    _draw_grid(picture, findings)
    return picture


def heat_colours(share: np.ndarray) -> np.ndarray:
    """Colour of each share between 0 and 1; adds a last axis of red, green, blue, 0 to 255."""
    stops = np.linspace(0.0, 1.0, len(HEAT))
    table = np.asarray(HEAT, dtype=np.float64)
    return np.stack([np.interp(share, stops, table[:, channel]) for channel in range(3)], axis=-1)


def _coloured(image: Image.Image, anomaly_map: np.ndarray, findings: ExpertFindings | None) -> Image.Image:
    low, high = colour_scale(anomaly_map, findings)
    stretched = Image.fromarray(np.asarray(anomaly_map, dtype=np.float32)).resize(image.size, Image.Resampling.BICUBIC)
    share = np.clip((np.asarray(stretched) - low) / (high - low), 0.0, 1.0)
    alpha = (_MAX_ALPHA * np.sqrt(share))[..., None]
    base = np.asarray(image.convert("RGB"), dtype=np.float64)
    mixed = base * (1.0 - alpha) + heat_colours(share) * alpha
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def _draw_grid(picture: Image.Image, findings: ExpertFindings | None) -> None:
    """Lines are white on a dark edge, so that they show on any photograph."""
    width, height = picture.size
    pen = max(1, round(min(picture.size) / 360))
    draw = ImageDraw.Draw(picture, "RGBA")
    for third in (1, 2):
        x, y = round(width * third / 3), round(height * third / 3)
        for line in ((x, 0, x, height), (0, y, width, y)):
            draw.line(line, fill=(0, 0, 0, 90), width=pen + 2)
            draw.line(line, fill=(255, 255, 255, 170), width=pen)
    if findings is None:
        return
    if findings.is_anomalous:
        row, column = divmod(findings.cell, 3)
        cell = (column / 3, row / 3, (column + 1) / 3, (row + 1) / 3)
        _draw_corners(draw, _pixels(cell, picture.size, inset=pen * 3), pen * 2)
    if findings.box is not None:
        x1, y1, x2, y2 = _pixels(findings.box, picture.size, inset=0)
        draw.rectangle((x1 - pen, y1 - pen, x2 + pen, y2 + pen), outline=(0, 0, 0, 200), width=pen * 4)
        draw.rectangle((x1, y1, x2, y2), outline=(255, 255, 255, 255), width=pen * 2)


def _draw_corners(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], pen: int) -> None:
    """Brackets at the corners of a cell: marked, without hiding what lies in it."""
    x1, y1, x2, y2 = box
    arm = round(min(x2 - x1, y2 - y1) * 0.16)
    for x, y, dx, dy in ((x1, y1, arm, arm), (x2, y1, -arm, arm), (x1, y2, arm, -arm), (x2, y2, -arm, -arm)):
        path = [(x + dx, y), (x, y), (x, y + dy)]
        draw.line(path, fill=(0, 0, 0, 200), width=pen + 3, joint="curve")
        draw.line(path, fill=(255, 255, 255, 255), width=pen, joint="curve")


def _pixels(box: tuple[float, float, float, float], size: tuple[int, int], inset: int) -> tuple[int, int, int, int]:
    """A box in shares of width and height, in pixels inside the picture and at least three pixels wide and high."""
    width, height = size
    x1, x2 = sorted(min(max(round(x * width), 0), width - 1) for x in (box[0], box[2]))
    y1, y2 = sorted(min(max(round(y * height), 0), height - 1) for y in (box[1], box[3]))
    x1, y1 = x1 + inset, y1 + inset
    return x1, y1, max(x2 - inset, x1 + 3), max(y2 - inset, y1 + 3)
