"""Image files -> 8-bit RGB pictures, or one clear error.

Reads image files of any mode Pillow knows; returns upright RGB images. Size is checked from the header, before anything is
decoded. Knows nothing about models, masks' meaning or data sets. Not in the paper.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dcr2ad.artifacts import write_bytes
from dcr2ad.caches import ByteCache
from dcr2ad.errors import ImageError

MAX_PIXELS = 100_000_000
"""Larger images are refused before decoding: 100 megapixels is 300 MB as RGB."""
MIN_SIDE = 16
"""Smaller images show nothing a model could judge: one patch is 14 pixels."""
KEPT_BYTES = 96 * 1024 * 1024
"""Decoded images kept at most: the expert, the model and the page look at the same few photographs one after the other."""
_BYTES_A_PIXEL = 4
"""Pillow keeps an RGB pixel in four bytes."""
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
"""File names that count as images when a folder is read."""

_decoded = ByteCache(KEPT_BYTES)


def load_image(path: str | Path, *, min_side: int = MIN_SIDE, keep: bool = True) -> Image.Image:
    """Open an image as upright 8-bit RGB; the last ones are kept, and a file that changed is read again.

    16-bit and 32-bit grey levels are scaled linearly over the type's full range, CMYK and palettes converted, transparency
    laid on white, EXIF rotation applied, and of an animation the first frame taken.

    Args:
        path: the file.
        min_side: pixels a side has at least.
        keep: whether it may be looked at again soon.

    Raises:
        ImageError: missing, empty, truncated, not an image, under `min_side` or over `MAX_PIXELS`.
    """
    path = Path(path)
    if not path.exists():
        raise ImageError(f"no such image: {path}", "Check the path")
    if path.is_dir():
        raise ImageError(f"{path} is a folder, an image was expected", "Name one image file")
    if path.stat().st_size == 0:
        raise ImageError(f"{path} is empty (0 bytes)", "Copy the file again")
    key = file_key(path)
    image = _decoded.get(key)
    if image is None:
        image = _decode(path, min_side)
        if keep and (size := _BYTES_A_PIXEL * image.width * image.height) <= KEPT_BYTES:
            _decoded.put(key, image, size)
    _check_size(path, image.size, min_side)
    return image.copy()


def forget_images(paths: Iterable[str | Path]) -> None:
    """Let go of decoded images that will hardly be looked at again."""
    for key in file_keys(paths):
        _decoded.drop(key)


def file_keys(paths: Iterable[str | Path]) -> Iterator[tuple[str, int, int]]:
    """`file_key` of each file that is still there; what was kept of the others goes when room is needed."""
    for path in paths:
        with contextlib.suppress(ImageError):
            yield file_key(path)


def file_key(path: str | Path) -> tuple[str, int, int]:
    """Identity of a file's content, without reading it: a changed file has another key.

    Raises:
        ImageError: there is no such file.
    """
    try:
        status = Path(path).stat()
    except OSError as error:
        raise ImageError(f"no such image: {path} ({error.strerror})", "Check the path") from None
    return (str(path), status.st_mtime_ns, status.st_size)


def _decode(path: Path, min_side: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                _check_size(path, image.size, min_side)
                return _to_rgb(image)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{path} is not an image Pillow can read", "Save it as PNG or JPEG") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{path} is larger than {MAX_PIXELS // 1_000_000} megapixels", "Scale or crop it") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ImageError(f"{path} cannot be decoded ({error})", "The file is damaged; copy it again") from None


def load_mask(path: str | Path) -> np.ndarray:
    """Open a mask image as a boolean array, shape ``(height, width)``; non-zero pixels are the defect.

    Raises:
        ImageError: as `load_image`.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            _check_size(path, image.size, 1)
            array = np.asarray(image.convert("L") if image.mode in {"P", "RGB", "RGBA", "CMYK", "LA", "1"} else image)
    except ImageError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ImageError(f"mask {path} cannot be read ({error})", "Check the mask file") from None
    return np.asarray(array > 0)


def content_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal: the name under which features and answers are cached.

    Raises:
        ImageError: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ImageError(f"no such image: {path} ({error.strerror})", "Check the path") from None


def list_images(folder: str | Path) -> list[Path]:
    """Image files below a folder, sorted; hidden files left out.

    Raises:
        ImageError: the folder does not exist or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageError(f"no such folder: {folder}", "Check the path")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not found:
        raise ImageError(f"{folder} holds no image", f"Known names end in {', '.join(sorted(SUFFIXES))}")
    return found


def write_png(path: Path, image: Image.Image) -> None:
    """Write a picture as PNG; the file appears whole, its folder with it."""
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())


def _check_size(path: Path, size: tuple[int, int], min_side: int) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        limit = MAX_PIXELS // 1_000_000
        raise ImageError(f"{path} has {width}x{height} pixels, more than {limit} megapixels", "Scale or crop it")
    if min(width, height) < min_side:
        raise ImageError(f"{path} has {width}x{height} pixels, under {min_side} on a side", "Use a larger photograph")


def _to_rgb(image: Image.Image) -> Image.Image:
    image.seek(0)
    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I") or upright.mode == "F":
        upright = _deep_grey_to_8_bit(upright)
    if upright.mode in {"RGBA", "LA", "PA"} or "transparency" in upright.info:
        rgba = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return upright.convert("RGB")


def _deep_grey_to_8_bit(image: Image.Image) -> Image.Image:
    """Scale deep grey levels by their type's range; by the maximum where the range is open (float)."""
    levels = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
    high = float(levels.max())
    if image.mode.startswith("I;16"):
        top = 65535.0
    elif image.mode == "I":
        top = max(65535.0, high)
    else:
        top = 1.0 if high <= 1 else high
    return Image.fromarray(np.clip(levels / top * 255.0 + 0.5, 0, 255).astype(np.uint8))
