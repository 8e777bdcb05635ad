"""Image files of every kind, good and bad."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcr2ad.errors import ImageError
from dcr2ad.images import content_digest, list_images, load_image, load_mask


def _png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_each_bad_file_is_one_clear_line(tmp_path: Path) -> None:
    good = tmp_path / "good.jpg"
    Image.effect_noise((200, 150), 60).convert("RGB").save(good)
    bad = {
        "missing.png": None,
        "empty.png": b"",
        "text.png": b"this is no image at all\n" * 20,
        "truncated.jpg": good.read_bytes()[:900],
        "huge.png": _png_header(20000, 20000),
    }
    for name, data in bad.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError) as caught:
            load_image(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value) and caught.value.fix
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    with pytest.raises(ImageError, match="1x1 pixels, under 16"):
        load_image(tmp_path / "one.png")
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path)


def test_16_bit_grey_is_scaled_over_its_range(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    read = np.asarray(load_image(tmp_path / "deep.png"))
    assert read.shape == (32, 32, 3) and read.dtype == np.uint8
    assert np.abs(read[..., 0].astype(int) - np.round(levels / 257.0)).max() <= 1
    # A dark photograph stays dark: the scale is the type's, not the picture's.
    Image.fromarray((levels // 8).astype(np.uint16)).save(tmp_path / "dark.png")
    assert np.asarray(load_image(tmp_path / "dark.png")).max() <= 32


def test_modes_are_converted(tmp_path: Path) -> None:
    Image.new("CMYK", (20, 20), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=95)
    red = np.asarray(load_image(tmp_path / "cmyk.jpg"))[10, 10]
    assert red[0] > 200 and red[1] < 60 and red[2] < 60
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(load_image(tmp_path / "clear.png")).min() == 255
    frames = [Image.new("P", (20, 20), i) for i in range(3)]
    frames[0].putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    frames[0].save(tmp_path / "animated.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "animated.gif").mode == "RGB"
    Image.new("1", (20, 20), 1).save(tmp_path / "bits.png")
    assert np.asarray(load_image(tmp_path / "bits.png")).min() == 255


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 20))
    picture.paste((255, 255, 255), (0, 0, 10, 20))
    exif = picture.getexif()
    exif[0x0112] = 6  # camera turned: rotate by 90 degrees clockwise to see it upright
    picture.save(tmp_path / "turned.png", exif=exif)
    upright = load_image(tmp_path / "turned.png")
    assert upright.size == (20, 40)
    assert np.asarray(upright)[:8].mean() > 250 and np.asarray(upright)[12:].mean() < 5


def test_masks_are_boolean(tmp_path: Path) -> None:
    levels = np.zeros((10, 12), np.uint8)
    levels[2:4, 3:6] = 1
    Image.fromarray(levels).save(tmp_path / "m.png")
    mask = load_mask(tmp_path / "m.png")
    assert mask.shape == (10, 12) and mask.dtype == bool and mask.sum() == 6
    with pytest.raises(ImageError, match="mask"):
        load_mask(tmp_path / "none.png")


def test_a_folder_is_listed_in_order(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "sub/c.bmp", ".hidden.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path)] == ["a.JPG", "b.png", "sub/c.bmp"]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ImageError, match="holds no image"):
        list_images(tmp_path / "nothing")
    assert content_digest(tmp_path / "b.png") == content_digest(tmp_path / "a.JPG")


def test_a_picture_handed_out_is_the_callers_own_and_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (40, 30), "red").save(path)
    first = load_image(path)
    first.paste((0, 0, 0), (0, 0, 40, 30))
    assert load_image(path).getpixel((5, 5)) == (255, 0, 0)
    with pytest.raises(ImageError, match="under 50"):
        load_image(path, min_side=50)
    Image.new("RGB", (50, 30), "blue").save(path)
    assert load_image(path).getpixel((5, 5)) == (0, 0, 255)
    path.unlink()
    with pytest.raises(ImageError, match="no such image"):
        load_image(path)
