from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from detrkit.data.images import decode, image_size, stored_size
from detrkit.utils.errors import DetrkitError
from helpers.datasets import picture


def save_oriented(file: Path, orientation: int, *, lossless: bool = True) -> np.ndarray:
    """A 2x3 picture with an EXIF orientation; returns its stored pixels."""
    array = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 10
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(array).save(file, exif=exif)
    return array


# What a viewer shows, from the EXIF standard: where the stored first row and first column go.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],  # first column at the right
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),  # first row at the left, first column at the top
    6: lambda a: np.rot90(a, -1),  # first row at the right
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a),  # first row at the left, first column at the bottom
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    file = tmp_path / "a.png"
    stored = save_oriented(file, orientation)
    expected = UPRIGHT[orientation](stored)
    assert np.array_equal(decode(file).permute(1, 2, 0).numpy(), expected)
    assert image_size(file) == expected.shape[:2]
    assert stored_size(file) == (2, 3)


@pytest.mark.parametrize("late", [False, True])
def test_the_header_of_a_png_is_read_without_its_pixels(
    tmp_path: Path, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless EXIF comes after them, as the format allows."""
    file = tmp_path / "a.png"
    stored = save_oriented(file, 6)
    content = file.read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    chunk = content[start:end] if late else b""
    file.write_bytes(content[:start] + content[end:-12] + chunk + content[-12:])
    decoded = []
    load = PngImageFile.load
    monkeypatch.setattr(PngImageFile, "load", lambda image: decoded.append(1) or load(image))
    assert image_size(file) == ((3, 2) if late else (2, 3)) and bool(decoded) == late
    expected = UPRIGHT[6](stored) if late else stored
    assert np.array_equal(decode(file).permute(1, 2, 0).numpy(), expected)


def test_annotated_as_stored_stays_as_stored(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    stored = save_oriented(file, 6)
    assert np.array_equal(decode(file, (2, 3)).permute(1, 2, 0).numpy(), stored)
    assert np.array_equal(decode(file, (3, 2)).permute(1, 2, 0).numpy(), UPRIGHT[6](stored))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "gif"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a.{suffix}"
    image = Image.new("RGB", (5, 4), (255, 0, 0))
    image.save(file, **({"lossless": True} if suffix == "webp" else {}))
    assert torch.equal(decode(file), torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1).expand(3, 4, 5))


def test_modes_become_rgb(tmp_path: Path) -> None:
    cases = {
        "gray.png": (Image.new("L", (3, 2), 77), (77, 77, 77)),
        "alpha.png": (Image.new("RGBA", (3, 2), (10, 20, 30, 0)), (10, 20, 30)),
        "palette.png": (Image.new("RGB", (3, 2), (1, 2, 3)).convert("P", palette=Image.Palette.ADAPTIVE), (1, 2, 3)),
        "bit.png": (Image.new("1", (3, 2), 1), (255, 255, 255)),
        "cmyk.tiff": (Image.new("CMYK", (3, 2), (0, 255, 255, 0)), (255, 0, 0)),
    }
    for name, (image, colour) in cases.items():
        image.save(tmp_path / name)
        out = decode(tmp_path / name)
        assert out.dtype == torch.uint8 and out.shape == (3, 2, 3), name
        assert tuple(out[:, 1, 1].tolist()) == colour, name


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    red, green, blue = decode(tmp_path / "a.jpg")[:, 8, 8].tolist()
    assert red > 245 and green < 10 and blue < 10


def test_16_bit_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32768], [65535, 128, 129]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    # value * 255 / 65535, rounded: 32768 / 257 = 127.5 -> 128, 129 / 257 = 0.502 -> 1
    assert decode(tmp_path / "deep.png")[0].tolist() == [[0, 1, 128], [255, 0, 1]]
    Image.fromarray(np.full((2, 2), 300, np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(DetrkitError, match="floating-point"):
        decode(tmp_path / "float.tiff")


def test_decoded_pixels_may_be_changed_and_are_interleaved(tmp_path: Path) -> None:
    picture(6, 5).save(tmp_path / "a.png")
    out = decode(tmp_path / "a.png")
    assert out.stride() == (1, 15, 3)
    out += 1


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DetrkitError, match=r"gone\.jpg: image file is missing"):
        decode(tmp_path / "gone.jpg")
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(DetrkitError, match=r"empty\.jpg: not an image"):
        decode(tmp_path / "empty.jpg")
    picture(100, 100).save(tmp_path / "cut.jpg")
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DetrkitError, match=r"cut\.jpg: the image is damaged or truncated"):
        decode(tmp_path / "cut.jpg")
    picture(10, 20).save(tmp_path / "other.png")
    with pytest.raises(DetrkitError, match=r"other\.png: the image is 20x10 pixels but its annotations say 30x10"):
        decode(tmp_path / "other.png", (10, 30))


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize(
    ("at_least", "factor"),  # of an upright picture of 200 x 328
    [((201, 20), 1), ((101, 20), 1), ((100, 164), 2), ((100, 165), 1), ((50, 82), 4), ((20, 20), 8), ((1, 1), 8)],
)
def test_a_jpeg_is_decoded_smaller_but_not_below_what_is_needed(
    tmp_path: Path, at_least: tuple[int, int], factor: int, orientation: int
) -> None:
    """Its pixels are about the means of squares of the whole one's."""
    file = tmp_path / "a.jpg"
    stored = (328, 200) if orientation == 6 else (200, 328)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(*stored, seed=2).save(file, exif=exif, quality=95)
    whole, small = decode(file, (200, 328)), decode(file, (200, 328), at_least=at_least)
    means = torch.nn.functional.avg_pool2d(whole.float(), factor)  # (3, 200 / factor, 328 / factor)
    assert whole.shape == (3, 200, 328) and small.shape == means.shape
    assert (small.float() - means).abs().max() < 4


@pytest.mark.parametrize(("height", "width"), [(203, 331), (97, 400)])
def test_a_part_of_a_square_at_the_edge_is_a_pixel(tmp_path: Path, height: int, width: int) -> None:
    file = tmp_path / "a.jpg"
    picture(height, width).save(file)
    for factor in (2, 4, 8):
        small = decode(file, (height, width), at_least=(height // factor, width // factor))
        assert small.shape == (3, -(-height // factor), -(-width // factor))


def test_an_image_annotated_as_stored_is_decoded_smaller_as_stored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(160, 320).save(tmp_path / "a.jpg", exif=exif)
    assert decode(tmp_path / "a.jpg", (160, 320), at_least=(80, 100)).shape == (3, 80, 160)


@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_other_formats_are_decoded_whole(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a.{suffix}"
    picture(64, 80).save(file)
    assert torch.equal(decode(file, at_least=(8, 10)), decode(file))


def test_a_truncated_jpeg_is_named_when_decoded_smaller(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    picture(200, 300).save(file)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(DetrkitError, match=r"a\.jpg: the image is damaged or truncated"):
        decode(file, (200, 300), at_least=(50, 75))
