"""A prompt as a server's message content: texts as they are, images as data URLs within limits of size.

Reads image files; returns plain dictionaries of the chat completions form. Knows nothing about HTTP.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable
from typing import Any

from dcr2ad.caches import ByteCache
from dcr2ad.images import file_key, file_keys, load_image
from dcr2ad.types import ImagePart, Prompt

MAX_PIXELS = 1280 * 28 * 28
"""Most pixels of an image sent without a limit on its side (Qwen2.5-VL's processing in MMAD)."""
_urls = ByteCache(128 * 1024 * 1024)


def prompt_content(prompt: Prompt, side: int) -> list[dict[str, Any]]:
    """The content of a user's message.

    Args:
        prompt: texts and images.
        side: longest side of an image in pixels; 0: as it is, up to `MAX_PIXELS`.

    Raises:
        ImageError: an image cannot be used.
    """
    content: list[dict[str, Any]] = []
    for part in prompt.parts:
        if isinstance(part, ImagePart):
            content.append({"type": "image_url", "image_url": {"url": image_url(part.path, side)}})
        else:
            content.append({"type": "text", "text": part.text})
    return content


def image_url(path: str, side: int) -> str:
    """An image file as a PNG data URL, scaled down to its limits; the last ones are kept, for questions on one image.

    Raises:
        ImageError: the image cannot be used.
    """
    key = (file_key(path), side)
    url: str | None = _urls.get(key)
    if url is None:
        url = _encoded(path, side)
        _urls.put(key, url, len(url))
    return url


def forget_urls(paths: Iterable[str], side: int) -> None:
    """Let go of images that will hardly be sent again."""
    for key in file_keys(paths):
        _urls.drop((key, side))


def _encoded(path: str, side: int) -> str:
    image = load_image(path)
    scale = side / max(image.size) if side else math.sqrt(MAX_PIXELS / (image.width * image.height))
    if scale < 1:
        image = image.resize((max(1, math.floor(image.width * scale)), max(1, math.floor(image.height * scale))))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
