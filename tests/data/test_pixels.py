"""Every mode of Pillow as 8-bit RGB, against closed forms; and one way to pixels from every kind of picture."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.data.images import SUFFIXES, as_rgb, decode, image_size, is_image_file, read_rgb, stored_size
from detrkit.data.sources import ParquetImage
from detrkit.utils.errors import DetrkitError


@pytest.mark.parametrize(
    ("mode", "value", "rgb"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("LA", (77, 0), (77, 77, 77)),
        ("La", (77, 255), (77, 77, 77)),
        ("P", 7, (1, 2, 3)),
        ("PA", (7, 0), (1, 2, 3)),
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (10, 20, 30)),
        ("RGBa", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBX", (10, 20, 30, 0), (10, 20, 30)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("CMYK", (255, 0, 0, 0), (0, 255, 255)),
        ("YCbCr", (100, 128, 128), (100, 100, 100)),
        ("YCbCr", (100, 128, 178), (170, 64, 100)),  # R = Y + 1.402 * 50, G = Y - 0.714 * 50
        ("HSV", (85, 255, 255), (0, 255, 0)),  # a hue of 120 degrees
        ("LAB", (255, 128, 128), (255, 255, 255)),
        ("LAB", (0, 128, 128), (0, 0, 0)),
    ],
)
def test_modes(mode: str, value: object, rgb: tuple[int, ...]) -> None:
    image = Image.new(mode, (3, 2), value)
    if mode in ("P", "PA"):
        image.putpalette([0] * 21 + [1, 2, 3] + [0] * 744)
    out = as_rgb(image)
    assert out.mode == "RGB" and out.size == (3, 2)
    assert np.abs(np.asarray(out, int)[1, 2] - rgb).max() <= 1


def scaled(values: list[int], full: int) -> list[int]:
    return [round(v * 255 / full) for v in values]


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        (np.uint16, [0, 257, 32768, 65535, 128, 129], [0, 1, 128, 255, 0, 1]),
        (np.uint16, [0, 1000, 2000, 4095], scaled([0, 1000, 2000, 4095], 4095)),  # 12 bits in 16
        (np.uint16, [0, 4096], [0, 16]),  # no longer 12 bits
        (np.uint16, [0, 0], [0, 0]),
        (np.int32, [0, 7, 250], [0, 7, 250]),  # 8 bits in 32
        (np.int32, [0, 256, 4095], [0, 16, 255]),
        (np.int32, [0, 40000], scaled([0, 40000], 65535)),
        (np.float32, [0, 0.5, 1], [0, 128, 255]),
        (np.float32, [0, 100.4, 255], [0, 100, 255]),
    ],
)
def test_deep_pixels_are_scaled_not_clipped(tmp_path: Path, kind: type, values: list, expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], kind))
    image.save(tmp_path / "a.tif")
    for out in (as_rgb(image), as_rgb(tmp_path / "a.tif"), as_rgb(Image.open(tmp_path / "a.tif"))):
        assert np.asarray(out)[0].tolist() == [[v] * 3 for v in expected]
    assert decode(tmp_path / "a.tif")[1, 0].tolist() == expected


@pytest.mark.parametrize("mode", ["I;16B", "I;16L"])
def test_both_byte_orders(mode: str) -> None:
    values = np.array([[0, 4000, 65535]], ">u2" if mode == "I;16B" else "<u2")
    image = Image.frombytes(mode, (3, 1), values.tobytes())
    assert np.asarray(as_rgb(image))[0, :, 0].tolist() == scaled([0, 4000, 65535], 65535)


def test_formats_that_say_their_largest_value(tmp_path: Path) -> None:
    """Pillow scales a PGM to 16 bits: a dark one is dark, not an image of 8 or 12 bits."""
    for largest, value, expected in ((65535, 200, 1), (1023, 1023, 255), (4095, 2048, 128)):
        header = f"P5 2 1 {largest}\n".encode()
        (tmp_path / "a.pgm").write_bytes(header + np.array([0, value], ">u2").tobytes())
        assert decode(tmp_path / "a.pgm")[0, 0].tolist() == [0, expected]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.float32([0, 300]), "floating-point pixels from 0 to 300: scale them to 0..1 or to 0..255"),
        (np.float32([-1, 1]), "floating-point pixels from -1 to 1"),
        (np.float32([0, np.nan]), "floating-point pixels from nan to nan"),
        (np.float32([0, np.inf]), "floating-point pixels from 0 to inf"),
        (np.int32([0, 70000]), r"32-bit pixels from 0 to 70000: only 0..255 \(8 bits\)"),
        (np.int32([-3, 7]), "32-bit pixels from -3 to 7"),
    ],
)
def test_unknown_ranges_are_refused(tmp_path: Path, values: np.ndarray, message: str) -> None:
    image = Image.fromarray(values[None])
    image.save(tmp_path / "a.tif")
    with pytest.raises(DetrkitError, match=rf"^image 3: {message}"):
        as_rgb(image, "image 3")
    with pytest.raises(DetrkitError, match=rf"a\.tif: {message}"):
        decode(tmp_path / "a.tif")


def turned_file(file: Path, orientation: int, **options: object) -> np.ndarray:
    """A lossless picture of 32 x 48 pixels whose corners differ, with an EXIF orientation; returns it upright."""
    stored = np.zeros((32, 48, 3), np.uint8)
    stored[:16, :24], stored[:16, 24:], stored[16:, :24] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(file, exif=exif, **options)
    turns = (None, lambda a: a[:, ::-1], lambda a: a[::-1, ::-1], lambda a: a[::-1], lambda a: a.transpose(1, 0, 2))
    turns += (lambda a: np.rot90(a, -1), lambda a: np.rot90(a, 2).transpose(1, 0, 2), np.rot90)
    return stored if orientation == 1 else turns[orientation - 1](stored)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "lzw.tif"])
def test_orientation_is_followed_once(tmp_path: Path, suffix: str, orientation: int) -> None:
    """Pillow turns a TIFF by itself when it loads it, and no other format."""
    file = tmp_path / f"a.{suffix}"
    options = {"jpg": {"quality": 95}, "webp": {"lossless": True}, "lzw.tif": {"compression": "tiff_lzw"}}
    upright = turned_file(file, orientation, **options.get(suffix, {}))
    loaded = Image.open(file)
    loaded.load()
    once = read_rgb(file)
    for out in (once, as_rgb(once), as_rgb(file), as_rgb(Image.open(file)), as_rgb(loaded), as_rgb(file.read_bytes())):
        assert out.size == upright.shape[1::-1]
        # away from the borders of the colours, where a JPEG differs
        assert np.abs(np.asarray(out, int)[4::8, 4::8] - upright[4::8, 4::8]).max() < 10
    assert image_size(file) == upright.shape[:2] and stored_size(file) == (32, 48)
    if orientation >= 5:  # annotated as stored
        stored = np.asarray(read_rgb(file, (32, 48)))
        assert stored.shape == (32, 48, 3) and np.abs(stored[4, 4].astype(int) - (250, 0, 0)).max() < 10
        assert np.abs(stored[4, 44].astype(int) - (0, 250, 0)).max() < 10
        assert as_rgb(read_rgb(file, (32, 48))).size == (48, 32)


@pytest.mark.filterwarnings("ignore:(Corrupt EXIF|Tag data larger):UserWarning")
def test_damaged_exif_is_upright(tmp_path: Path) -> None:
    turned_file(tmp_path / "a.jpg", 6)
    data = (tmp_path / "a.jpg").read_bytes()
    start = data.index(b"Exif\0\0") + 6
    for cut in range(start, start + 23):
        (tmp_path / "b.jpg").write_bytes(data[:cut] + b"\xff\x00\xee" + data[cut + 3 :])
        assert as_rgb(tmp_path / "b.jpg").size in {(48, 32), (32, 48)}
    (tmp_path / "b.jpg").write_bytes(data[:start] + b"JJ" + data[start + 2 :])
    assert as_rgb(tmp_path / "b.jpg").size == (48, 32)


def test_one_way_from_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upright = turned_file(tmp_path / "a.png", 6)
    data = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(ParquetImage, "read", lambda self: data)
    row = ParquetImage(tmp_path / "a.parquet", 3, "a.png")
    array = np.ascontiguousarray(upright)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for picture in (tmp_path / "a.png", str(tmp_path / "a.png"), row, data, BytesIO(data), array, tensor):
        image = Image.open(picture) if isinstance(picture, BytesIO) else picture
        assert np.array_equal(np.asarray(as_rgb(image)), upright)


def test_the_picture_given_is_not_kept() -> None:
    image = Image.new("RGB", (4, 3))
    out = as_rgb(image)
    image.paste((9, 9, 9), (0, 0, 4, 3))
    assert out.getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize(
    "empty",
    [np.zeros((0, 50, 3), np.uint8), torch.zeros(3, 0, 50, dtype=torch.uint8), Image.new("RGB", (50, 0))],
)
def test_empty_crops(empty: object) -> None:
    with pytest.raises(ValueError, match=r"^image 7 is 50 x 0 pixels \(width x height\)"):
        as_rgb(empty, "image 7")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("pipe.jpg", "folder.jpg"):
        with pytest.raises(DetrkitError, match=rf"{name}: not a regular file"):
            decode(tmp_path / name)


def test_drawings_are_refused(tmp_path: Path) -> None:
    """Pillow would start another program on them, whatever they are called."""
    Image.new("RGB", (4, 3)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(DetrkitError, match=r"a\.jpg: a drawing \(EPS\), not an image of pixels"):
        image_size(tmp_path / "a.jpg")


def test_which_files_are_pictures() -> None:
    for name in ("a.jpg", "b.JFIF", "c.jpe", "d.Tga", "e.pnm", "f.mpo", "g.webp"):
        assert is_image_file(Path(name)), name
    for name in ("a.txt", "b.pdf", "c.mpg", "d.eps", ".e.jpg", "._f.jpg", "jpg", "g.heic", "h.h5", "i.svg"):
        assert not is_image_file(Path(name)), name
    Image.init()
    known = Image.registered_extensions()
    # MPO is opened as a JPEG is
    assert all(known[suffix] in Image.OPEN for suffix in SUFFIXES - {".mpo"})


def test_a_plugin_makes_its_suffix_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Image.EXTENSION, ".heic", "HEIF")
    assert is_image_file(Path("a.heic"))
