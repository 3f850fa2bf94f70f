from __future__ import annotations

from pathlib import Path

import pytest
import torch
import tyro
from PIL import Image

import detrkit.visualize
from detrkit.cli.data import DataCommand
from detrkit.data import TrainSampler, merge_datasets, open_dataset
from detrkit.data.sampling import plan_sampling
from detrkit.data.tools.shapes import write_shapes
from detrkit.data.transforms import train_transform
from detrkit.utils.errors import DetrkitError
from detrkit.visualize.preview import preview
from helpers.odd_dataset import write_odd


def run(*arguments: str | Path) -> int:
    command = tyro.cli(DataCommand, args=[str(a) for a in arguments])  # type: ignore[call-overload]
    status = command.run()
    assert isinstance(status, int)
    return status


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("command") / "shapes", images={"train": 4, "val": 2}, sides=(32, 48))


def test_shapes_check_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "s"
    arguments = ["--train", "3", "--val", "0", "--sides", "32", "40", "--objects", "1", "2", "--classes", "2"]
    assert run("shapes", root, *arguments) == 0
    assert str(root) in capsys.readouterr().out
    dataset = open_dataset(root)
    assert dataset.split == "train2017" and dataset.class_names == ["circle", "square"]
    assert run("check", root) == 0
    out = capsys.readouterr().out
    assert "circle" in out and "(coco): 0 errors, 0 warnings, " in out
    assert run("convert", root, tmp_path / "y", "--to", "yolo") == 0
    assert str(tmp_path / "y") in capsys.readouterr().out
    assert len(open_dataset(tmp_path / "y")) == 3


def test_convert_says_what_it_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("convert", write_odd(tmp_path / "odd"), tmp_path / "yolo", "--to", "yolo") == 0
    out = capsys.readouterr().out
    assert "│ train │     32 │" in out
    assert "boxes that left their image and end at its border now: 1\n" in out
    assert "and lie upright now, as EXIF turns the image: 8\n" in out
    assert "images of a format that yolo does not know, written as PNG: 1\n" in out


def test_panoptic_shapes_check_preview_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "s"
    arguments = ["--train", "3", "--val", "0", "--sides", "32", "40", "--classes", "2", "--panoptic"]
    assert run("shapes", root, *arguments) == 0
    assert open_dataset(root, masks=True).class_names == ["circle", "square", "sky", "grass", "sand"]
    capsys.readouterr()
    assert run("check", root) == 0
    assert "panoptic annotations are here too: check them with --layout coco-panoptic" in capsys.readouterr().out
    assert run("check", root, "--layout", "coco-panoptic") == 0
    out = capsys.readouterr().out
    assert "stuff" in out and "no pixel is void" in out and "(coco-panoptic): 0 errors, 0 warnings, " in out
    options = ["--count", "2", "--variants", "1", "--size", "32"]
    sheets = []
    for words in ([], ["--masks"], ["--masks", "--layout", "coco"]):  # boxes; segments; boxes and masks
        assert run("preview", root, "--out", tmp_path / "sheet.png", *options, *words) == 0
        with Image.open(tmp_path / "sheet.png") as sheet:
            sheets.append(sheet.tobytes())
    assert len(set(sheets)) == 3
    words = ["--to", "coco", "--layout", "coco-panoptic"]
    assert run("convert", root, tmp_path / "all", *words) == 0
    assert run("convert", root, tmp_path / "things", *words, "--things-only") == 0
    assert len(open_dataset(tmp_path / "all").classes) == 5
    assert open_dataset(tmp_path / "things").class_names == ["circle", "square"]


def test_check_exits_with_1_and_names_the_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_shapes(tmp_path / "s", images={"train": 3}, sides=(32, 40))
    first, second, _ = sorted((root / "train2017").glob("*.jpg"))
    first.unlink()
    second.write_bytes(b"")
    assert run("check", root) == 1
    out = capsys.readouterr().out
    assert f"error {first}: image 1: image file is missing" in out and "2 errors" in out
    assert run("check", root, "--limit", "1") == 1
    out = capsys.readouterr().out
    assert str(first) in out and str(second) not in out and "... and 1 more" in out


def test_help_tells_units_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run("shapes", "--help")
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert stop.value.code == 0
    assert "Smallest and largest side of an image, pixels. (default: 96 128)" in out
    with pytest.raises(SystemExit) as stop:
        run("convert", "a", "b", "--to", "kitti")
    assert stop.value.code == 2


def test_preview(shapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "sheet.png"
    assert (
        run("preview", shapes, "--split", "train", "--out", out, "--count", "3", "--variants", "2", "--size", "32") == 0
    )
    with Image.open(out) as sheet:
        assert sheet.width > 3 * 300 and sheet.height > 3 * 200  # three columns and rows of tiles
        first = sheet.tobytes()
    # The sheet follows from the seed, and nothing is drawn from torch's own generator.
    dataset = open_dataset(shapes, split="train")
    before = torch.get_rng_state()
    for seed, same in ((0, True), (1, False)):
        preview(dataset, train_transform(32), count=3, variants=2, out=out, seed=seed)
        with Image.open(out) as sheet:
            assert (sheet.tobytes() == first) == same
    assert torch.equal(before, torch.get_rng_state())


def test_a_preview_of_several_datasets_and_rare_classes(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are the first images of a training with the same seed and settings, each once."""
    other = write_shapes(tmp_path / "other", images={"train": 4}, classes=2, sides=(32, 40), objects=(0, 2), seed=3)
    titles: list[str] = []
    drawn = detrkit.visualize.grid

    def grid(*args: object, **kwargs: list[str]) -> object:
        titles.extend(kwargs["titles"])
        return drawn(*args, **kwargs)

    monkeypatch.setattr(detrkit.visualize, "grid", grid)
    words = ["--weights", "1", "1", "--repeat-rare", "0.9", "--count", "5", "--variants", "1", "--size", "32"]
    assert run("preview", shapes, other, *words, "--seed", "4", "--out", tmp_path / "mix.png") == 0
    sources = [open_dataset(path, split="train") for path in (shapes, other)]
    merged = merge_datasets(sources)
    rates = plan_sampling(merged, sources=sources, weights=(1, 1), repeat_rare=0.9).rates
    assert rates is not None
    first = list(dict.fromkeys(b[0].image for b in TrainSampler(len(merged), batch_size=1, seed=4, rates=rates)))[:5]
    shown = [title.split("  ")[0] for title in titles[::2]]
    assert shown == [merged.records[k].file.name for k in first]
    assert titles[0].endswith(f"{rates[first[0]]:.2g} times an epoch")


def test_preview_refuses(shapes: Path, tmp_path: Path) -> None:
    dataset = open_dataset(shapes, split="val")
    with pytest.raises(DetrkitError, match="count is 0"):
        preview(dataset, train_transform(32), count=0, out=tmp_path / "a.png")
    with pytest.raises(DetrkitError, match=r"a\.tiff: name a \.png"):
        preview(dataset, train_transform(32), out=tmp_path / "a.tiff")
    photo = dataset.records[0].file  # an image of the dataset must not become a sheet of itself
    content = photo.read_bytes()
    with pytest.raises(DetrkitError, match="was not written by this command: choose another name"):
        preview(dataset, train_transform(32), out=photo)
    assert photo.read_bytes() == content


def test_the_preview_squashes_images_as_the_training_of_a_model_of_squares(shapes, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr("detrkit.visualize.preview.preview", lambda _, transform, **rest: given.append(transform))
    for words in ([], ["--square"]):
        run("preview", shapes, "--size", "64", "--augment", "flip", "--out", tmp_path / "p.png", *words)
    plain, square = given
    assert plain == train_transform(64, augment="flip")
    assert square == train_transform(64, augment="flip", square=True) and square != plain
    sample = open_dataset(shapes, split="train2017")[0]
    changed = square(sample, torch.Generator().manual_seed(0))
    assert tuple(changed.image.shape[-2:]) == (64, 64)
