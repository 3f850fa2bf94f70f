"""`detrkit predict`: the right pixels, and nothing of anybody's lost."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.cli import main, predict_files
from detrkit.cli.predict import Predict
from detrkit.cli.predict_files import Results, find_images, output_stems
from detrkit.detector import Detector
from detrkit.structures.classes import ClassList
from detrkit.utils.errors import DetrkitError
from detrkit.weights.checkpoint import ModelSpec, load_model, save_model
from helpers.disk import full_disk
from helpers.tiny import SMALLEST

SPEC = ModelSpec("detr-r50", SMALLEST, num_classes=2, classes=ClassList(("cat", "d[/]g"), (1, 2)), size=32, max_size=64)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    return save_model(tmp_path_factory.mktemp("model") / "a.safetensors", SPEC.build(), SPEC)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, name in enumerate(("a.jpg", "b.jpg", "c.png")):
        photo(folder / name, seed=i)
    return folder


def photo(file: Path, *, seed: int = 0, size: tuple[int, int] = (48, 32), **options) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, **options)
    return file


def run(weights, *inputs, **options) -> int:
    return Predict(str(weights), tuple(map(str, inputs)), device="cpu", threshold=0.0, **options).run()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientation -> Image.Transpose that makes it upright


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_all_orientations_are_drawn_and_boxed_as_one_sees_them(weights, tmp_path, suffix):
    """The stored pixels are turned so that each is the same picture once it is upright."""
    upright = np.zeros((60, 99, 3), np.uint8)
    upright[:30, :33], upright[30:, 66:] = (250, 60, 60), (60, 250, 60)
    back = {k: {5: 5, 6: 2, 7: 6, 8: 4}.get(k, turn) for k, turn in TURNS.items()}
    folder = tmp_path / "phone"
    folder.mkdir()
    for orientation in range(1, 9):
        stored = Image.fromarray(upright)
        if orientation > 1:
            stored = stored.transpose(Image.Transpose(back[orientation]))
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored.save(folder / f"{orientation}.{suffix}", exif=exif, **({"quality": 95} if suffix == "jpg" else {}))
    assert run(weights, folder, out=tmp_path / "out", scale=1) == 0
    found = json.loads((tmp_path / "out/predictions.json").read_text())
    boxes = [np.array([row["box"] for row in rows]) for rows in found.values()]
    want = Detector(*load_model(weights), device="cpu").predict(upright, threshold=0.0).boxes
    for orientation, box in zip(range(1, 9), boxes, strict=True):
        assert box.shape == (4, 4) and np.abs(box - want.numpy()).max() < 0.5, orientation
        drawn = np.asarray(Image.open(tmp_path / f"out/{orientation}.jpg"), int)
        first = np.asarray(Image.open(tmp_path / "out/1.jpg"), int)
        assert drawn.shape == (60, 99, 3) and np.abs(drawn - first).mean() < 3, orientation


def test_small_images_are_enlarged_unless_told_otherwise(weights, photos, tmp_path):
    for scale, size in ((None, (384, 256)), (1, (48, 32)), (2.5, (120, 80))):
        assert run(weights, photos / "c.png", out=tmp_path / "out", scale=scale) == 0
        with Image.open(tmp_path / "out/c.png") as drawn:
            assert drawn.size == size
    boxes = [
        row["box"] for rows in json.loads((tmp_path / "out/predictions.json").read_text()).values() for row in rows
    ]
    assert boxes and np.array(boxes).max() < 60  # pixels of the original


@pytest.mark.parametrize(
    ("inputs", "out"),
    [
        (("photos",), "photos"),
        (("photos/a.jpg",), "photos"),
        (("photos/*.jpg",), "photos/../photos"),
        (("photos",), "link"),  # a link to the folder
        (("photos",), "hard"),  # which holds a hard link to a picture
        (("photos/a.jpg",), "soft"),  # and this a link to one
        (("photos/sub/x.tif", "photos/a.jpg"), "photos"),
    ],
)
def test_inputs_are_never_written_to(weights, photos, inputs, out, capsys):
    (photos / "sub").mkdir()
    photo(photos / "sub/x.tif")
    Path("link").symlink_to(photos)
    for name, make in (("hard", os.link), ("soft", os.symlink)):
        Path(name).mkdir()
        make(photos / "a.jpg", Path(name) / "a.jpg")
    before = contents(Path())
    assert main(["predict", "no-such-model", *inputs, "--out", out, "--device", "cpu"]) == 2
    error = capsys.readouterr().err  # before the model is loaded
    assert "is one of the input images and would be overwritten: choose another folder with --out" in error
    assert error.count("\n") == 1
    assert contents(Path()) == before


def test_the_folder_of_the_inputs_is_allowed_where_no_name_meets(weights, photos):
    photo(photos / "d.tif")
    before = contents(photos)
    assert run(weights, "photos/d.tif", out=photos) == 0
    after = contents(photos)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"d.jpg", "predictions.json", "detrkit-files.json"}


def test_only_what_an_earlier_predict_wrote_is_written_over(weights, photos, tmp_path):
    out = tmp_path / "out"
    assert run(weights, photos, out=out) == 0
    first = contents(out)
    assert run(weights, photos, out=out) == 0
    assert set(contents(out)) == set(first)
    photo(out / "b.jpg", seed=9)  # somebody's own now
    before = contents(out)
    with pytest.raises(DetrkitError, match=r"b\.jpg is there and was not written by detrkit, or was changed since"):
        run(weights, photos, out=out)
    assert contents(out) == before
    (out / "b.jpg").unlink()
    (out / "predictions.json").write_text("mine")
    with pytest.raises(DetrkitError, match=r"predictions\.json is there and was not written by detrkit"):
        run(weights, photos, out=out)
    (out / "predictions.json").unlink()
    (out / "detrkit-files.json").write_text("mine")
    with pytest.raises(DetrkitError, match=r"detrkit-files\.json: damaged, or not written by detrkit"):
        run(weights, photos, out=out)
    assert (out / "detrkit-files.json").read_text() == "mine"


def test_what_a_killed_predict_wrote_is_in_nobodys_way(photos, tmp_path):
    files = sorted(photos.iterdir())[:2]
    killed = Results(tmp_path, files)
    killed.check()
    killed.begin()
    killed.write_image(files[0], Image.new("RGB", (8, 8)))
    again = Results(tmp_path, files)
    again.check()
    again.begin()
    again.write_image(files[0], Image.new("RGB", (8, 8)))
    again.save()  # of the second nothing could be written
    Results(tmp_path, files).check()
    name = f"{again.stems[files[1]]}{files[1].suffix}"
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(DetrkitError, match=rf"{name} is there and was not written by detrkit"):
        Results(tmp_path, files).check()


@pytest.mark.parametrize(
    ("names", "stems"),
    [
        (["a.jpg", "a.png"], ["a", "a-2"]),
        (["x/a.png", "y/a.png", "z/a.jpg", "a-2.png"], ["a", "a-3", "a-4", "a-2"]),
        (["a.jpg", "A.jpg", "y/A.png"], ["a", "A-2", "A-3"]),
        (["e\u0301.jpg", "y/\u00e9.jpg"], ["e\u0301", "\u00e9-2"]),
        (["predictions.json", "panoptic"], ["predictions", "panoptic"]),
        (["x" * 254, "y/" + "x" * 253], ["x" * 251, "x" * 249 + "-2"]),
    ],
)
def test_equal_names_are_numbered(names, stems):
    files = [Path(name) for name in names]
    assert list(output_stems(files).values()) == stems and list(output_stems(files)) == files


def test_numbers_do_not_depend_on_which_picture_fails(weights, photos, tmp_path, capsys):
    photo(photos / "a.bmp", seed=4)
    photo(photos / "a.png", seed=5)
    assert run(weights, photos, out=tmp_path / "one") == 0
    (photos / "a.bmp").write_text("not a picture")
    assert run(weights, photos, out=tmp_path / "two") == 1
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert set(one) == set(two) | {"a.jpg"} and one["a-2.jpg"] == two["a-2.jpg"] and one["a-3.png"] == two["a-3.png"]
    assert "a.bmp: not an image" in capsys.readouterr().err


def test_a_picture_too_wide_for_jpeg_is_a_png(weights, photos, tmp_path):
    photo(photos / "wide.tif", size=(65_501, 2))
    photo(photos / "w.bmp", size=(65_500, 2))
    assert run(weights, photos, out=tmp_path / "out") == 0
    assert Image.open(tmp_path / "out/wide.png").size == (65_501, 2)
    assert Image.open(tmp_path / "out/w.jpg").size == (65_500, 2)
    assert len(json.loads((tmp_path / "out/predictions.json").read_text())) == 5


def test_one_picture_that_cannot_be_written_does_not_cost_the_others(weights, photos, tmp_path, capsys):
    photo(photos / "b.jpg", size=(400, 300))
    with full_disk(20_000):
        assert run(weights, photos, out=tmp_path / "out", scale=1) == 1
    assert "File too large" in capsys.readouterr().err
    assert set(contents(tmp_path / "out")) == {"a.jpg", "c.png", "predictions.json", "detrkit-files.json"}
    assert list(json.loads((tmp_path / "out/predictions.json").read_text())) == [
        str(photos / name) for name in ("a.jpg", "c.png")
    ]


def test_a_full_disk_ends_it_with_what_is_done(weights, photos, tmp_path, monkeypatch):
    write = predict_files.write_atomic

    def full(path, content, **options):
        if path.name == "b.jpg":
            raise DetrkitError(f"cannot write {path}") from OSError(errno.ENOSPC, "No space left on device")
        return write(path, content, **options)

    monkeypatch.setattr(predict_files, "write_atomic", full)
    with pytest.raises(DetrkitError, match=r"cannot write .*b\.jpg; 1 of 3 images are done: .*predictions\.json"):
        run(weights, photos, out=tmp_path / "out")
    assert list(json.loads((tmp_path / "out/predictions.json").read_text())) == [str(photos / "a.jpg")]


def test_write_errors_keep_their_cause(tmp_path):
    from detrkit.utils.atomic import write_atomic

    with full_disk(), pytest.raises(DetrkitError) as failed:
        write_atomic(tmp_path / "a", b"content")
    assert failed.value.__cause__.errno == errno.EFBIG


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_is_done(weights, photos, tmp_path, monkeypatch, capsys, number):
    from detrkit.structures.detections import Detections

    draw, calls = Detections.draw, []

    def drawn(self, **options):
        calls.append(self)
        if len(calls) == 2:
            signal.raise_signal(number)
        return draw(self, **options)

    monkeypatch.setattr(Detections, "draw", drawn)
    out = tmp_path / "out"
    words = ["predict", str(weights), str(photos), "--out", str(out), "--device", "cpu"]
    assert main(words) == 128 + number
    assert list(json.loads((out / "predictions.json").read_text())) == [str(photos / "a.jpg")]
    assert f"1 of 3 images are done: {out / 'predictions.json'}" in capsys.readouterr().err
    assert not [name for name in contents(out) if name.endswith(".tmp")]
    monkeypatch.setattr(Detections, "draw", draw)
    assert main(words) == 0  # nothing of it is in the way


def test_what_is_left_out_is_said(weights, photos, tmp_path, capsys):
    for name in ("notes.txt", "film.mp4", "d.heic", "e.pdf", ".hidden.jpg", "._a.jpg"):
        (photos / name).write_text("")
    photo(photos / "f.jfif", format="JPEG")
    assert [f.name for f in find_images(("photos",)).files] == ["a.jpg", "b.jpg", "c.png", "f.jfif"]
    assert run(weights, photos, out=tmp_path / "out") == 0
    assert "4 files are no images: d.heic, e.pdf, film.mp4, ..." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [("pipe", "pipe: not a regular file"), ("~nobody-at-all/x.jpg", "no such user"), ("a\0b", "null character")],
)
def test_inputs_that_stand_for_nothing(photos, text, message):
    os.mkfifo("pipe")
    with pytest.raises(DetrkitError, match=message):
        find_images((text,))


def test_names_are_no_markup(weights, photos, capsys):
    Path("[red]x").mkdir()
    photo(Path("[red]x/[bold].jpg"))
    assert run(weights, "[red]x/[bold].jpg", out=Path("[/o]")) == 0
    printed = capsys.readouterr().out
    assert "[red]x/[bold].jpg" in printed and " cat" in printed and "[/o]/predictions.json" in printed


def test_a_picture_too_large_for_memory_does_not_cost_its_batch(weights, photos, tmp_path, monkeypatch, capsys):
    predict = Detector._ordinary

    def scarce(self, pictures, threshold):
        if any(picture.width > 90 for picture in pictures):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return predict(self, pictures, threshold)

    monkeypatch.setattr(Detector, "_ordinary", scarce)
    photo(photos / "b.jpg", size=(99, 60))
    assert run(weights, photos, out=tmp_path / "out", batch_size=3) == 1
    assert "b.jpg: too large for the memory of this machine: try a smaller --size" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "out/predictions.json").read_text())) == 2


def test_transparency_does_not_show_through(weights, photos, tmp_path):
    Image.new("RGB", (48, 32), (9, 9, 9)).save(photos / "d.png", transparency=(9, 9, 9))
    assert run(weights, photos / "d.png", out=tmp_path / "out") == 0
    assert "transparency" not in Image.open(tmp_path / "out/d.png").info


@pytest.mark.parametrize("words", [["--no-pictures"], ["--no-images"]])
def test_numbers_alone(weights, photos, tmp_path, words):
    assert run(weights, photos, out=tmp_path / "both") == 0
    command = [
        "predict",
        str(weights),
        str(photos),
        "--device",
        "cpu",
        "--threshold",
        "0",
        "--out",
        str(photos),
        *words,
    ]
    before = contents(photos)
    assert main(command) == 0  # beside the pictures: none of them would be written over
    after = contents(photos)
    assert set(after) - set(before) == {"predictions.json", "detrkit-files.json"}
    assert after["predictions.json"] == (tmp_path / "both/predictions.json").read_bytes()


def test_predictions_are_as_json_writes_them(weights, photos, tmp_path):
    (photos / "b.jpg").write_text("no picture")
    assert run(weights, photos, out=tmp_path / "out", batch_size=2) == 1
    text = (tmp_path / "out/predictions.json").read_text()
    found = json.loads(text)
    assert list(found) == [str(photos / "a.jpg"), str(photos / "c.png")]
    assert text == json.dumps(found, indent=1) + "\n"


def test_an_error_of_the_model_ends_it_with_what_is_done(weights, photos, tmp_path, monkeypatch):
    inferred, calls = Detector._ordinary, []

    def broken(self, *args):
        calls.append(args)
        if len(calls) == 3:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return inferred(self, *args)

    monkeypatch.setattr(Detector, "_ordinary", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run(weights, photos, out=tmp_path / "out", batch_size=1)
    assert len(json.loads((tmp_path / "out/predictions.json").read_text())) == 2
    assert not [name for name in contents(tmp_path / "out") if name.endswith(".tmp")]
    assert not [thread for thread in threading.enumerate() if thread.name == "detrkit prefetch"]


def test_a_killed_predict_keeps_what_was_saved(weights, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(predict_files, "_SECONDS_BETWEEN_SAVES", -1e9)  # after each picture
    out = tmp_path / "out"
    results = Results(out, sorted(photos.iterdir()))
    results.check()
    results.begin()
    results.add(photos / "a.jpg", [{"name": "cat"}])
    results.save_sometimes()
    results.add(photos / "b.jpg", [])  # not saved yet
    assert json.loads((out / "predictions.json").read_text()) == {str(photos / "a.jpg"): [{"name": "cat"}]}
    results.close()
    assert run(weights, photos, out=out) == 0
