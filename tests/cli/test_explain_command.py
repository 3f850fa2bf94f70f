"""`detrkit explain`: a folder for each image, a line for each fault, and the queries over a dataset."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import detrkit
from detrkit.cli import main
from detrkit.data.tools.shapes import write_shapes
from detrkit.weights.checkpoint import save_model
from helpers.explanations import noise, tiny_detector


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for kind in ("plain", "two-stage"):
        detector = tiny_detector(kind)
        save_model(folder / f"{kind}.safetensors", detector.model, detector.spec)
    return folder


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", images={"train": 1, "val": 5}, sides=(64, 80))


@pytest.fixture
def here(tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    for kind in ("plain", "two-stage"):
        shutil.copy(weights / f"{kind}.safetensors", tmp_path)
    (tmp_path / "my photos").mkdir()
    noise().save(tmp_path / "my photos" / "a b.png")
    noise(seed=1).save(tmp_path / "my photos" / "c.jpg")
    return tmp_path


def explained(*words: str, device: tuple[str, ...] = ("--device", "cpu")) -> int:
    return main(["explain", *words, *device])


def test_each_image_has_a_folder(here, capsys):
    noise(seed=2).save(here / "a b.jpg")
    assert explained("plain.safetensors", "my photos", "a b.jpg", "--threshold", "0", "--objects", "1") == 0
    out = capsys.readouterr().out
    folders = sorted(path.name for path in (here / "explanations").iterdir())
    assert folders == ["a b", "a b-2", "c"]
    for folder in folders:
        assert f"explanations/{folder}: 7 files\n" in out.replace("\\", "/")
    assert "15 objects in 3 images" in out
    numbers = json.loads((here / "explanations/a b-2/explanation.json").read_text())
    e = detrkit.explain(detrkit.load("plain.safetensors", device="cpu"), "a b.jpg", threshold=0.0)
    assert np.allclose(numbers["detections"][0]["attention"], e.cross_attention(0), rtol=1e-3)
    assert explained("plain.safetensors", "my photos", "--threshold", "0", "--objects", "0") == 0  # written over


def test_a_bad_image_does_not_stop_the_others(here, capsys):
    (here / "my photos" / "bad.jpg").write_bytes(b"no image")
    noise(20, 20).save(here / "my photos" / "small.png")
    words = ["two-stage.safetensors", "my photos", "--points", "50", "30", "--objects", "0", "--threshold", "0"]
    assert explained(*words) == 1
    shown = capsys.readouterr()
    assert "error" in shown.err and "bad.jpg" in shown.err and len(shown.err.splitlines()) == 2
    assert "small.png: pixel (50, 30) is outside the image of 20 x 20 pixels (width x height)" in shown.err
    assert sorted(path.name for path in (here / "explanations").iterdir()) == ["a b", "c"]
    (pixel,) = json.loads((here / "explanations/c/explanation.json").read_text())["pixels"]
    assert (pixel["x"], pixel["y"]) == (50, 30)


def test_no_good_image_is_an_error(here, capsys):
    (here / "bad.jpg").write_bytes(b"no image")
    assert explained("plain.safetensors", "bad.jpg") == 2
    assert "detrkit: error: no image could be explained, see above" in capsys.readouterr().err
    assert not (here / "explanations").exists()


def test_nothing_found_says_what_would_show_something(here, capsys):
    assert explained("plain.safetensors", "my photos/c.jpg", "--threshold", "0.99") == 0
    out = capsys.readouterr().out
    assert "nothing was found: nothing above 0.99; best score 0." in out and "look with --threshold" in out


def test_an_image_named_as_a_dot_has_a_folder_below(here):
    noise().save(here / "...jpg", format="JPEG")
    assert explained("plain.safetensors", "...jpg", "--threshold", "0", "--objects", "0", "--out", "seen") == 0
    assert [path.name for path in (here / "seen").iterdir()] == ["image.."]


def test_pictures_of_explanations_are_no_images_of_a_pattern(here, capsys):
    words = ["plain.safetensors", "my photos/**/*.*", "--out", "my photos", "--objects", "0", "--threshold", "0"]
    assert explained(*words) == 0
    assert explained(*words) == 0  # its pictures lie beside the photographs now
    assert "10 objects in 2 images" in capsys.readouterr().out.splitlines()[-2]
    assert sorted(path.name for path in (here / "my photos").iterdir() if path.is_dir()) == ["a b", "c"]
    assert explained("plain.safetensors", "my photos/c/*.jpg", "--out", "my photos") == 2
    assert "no images but the pictures of explanations in my photos" in capsys.readouterr().err
    own = ["plain.safetensors", "my photos/c/objects.jpg", "--out", "my photos", "--objects", "0", "--threshold", "0"]
    assert explained(*own) == 0  # named


def test_an_input_is_never_replaced(here, capsys):
    (here / "c").mkdir()
    shutil.copy(here / "my photos/c.jpg", here / "c/c.jpg")
    before = (here / "c/c.jpg").read_bytes()
    assert explained("plain.safetensors", "c/c.jpg", "--out", ".") == 2
    assert "c holds files that detrkit did not write, so it is not replaced" in capsys.readouterr().err
    assert (here / "c/c.jpg").read_bytes() == before


def test_the_queries_of_a_dataset(here, shapes, capsys):
    words = ["plain.safetensors", "--queries", str(shapes), "--threshold", "0", "--out", "q", "--limit", "3"]
    assert explained(*words) == 0
    assert "5 of 5 queries have a detection in 3 images" in capsys.readouterr().out
    assert explained(*words[:-1], "1") == 0
    assert "5 of 5 queries have a detection in 1 image\n" in capsys.readouterr().out
    assert explained(*words) == 0
    assert sorted(path.name for path in (here / "q").iterdir()) == [
        "detrkit-files.json",
        "queries.json",
        "queries.png",
    ]
    numbers = json.loads((here / "q/queries.json").read_text())
    assert (numbers["model"], numbers["data"], numbers["split"], numbers["images"]) == ("detr-r50", "shapes", "val", 3)
    dataset = detrkit.open_dataset(shapes, split="val").subset(range(3))
    detector = detrkit.load("plain.safetensors", device="cpu")
    boxes = []
    for k in range(3):
        image = dataset.image(k)
        found = detector.predict(image, threshold=0.0)
        row = found.boxes[found.queries.argsort()] / found.boxes.new_tensor([*image.shape[:0:-1]] * 2)
        boxes.append(row)
    mean = sum(boxes) / 3
    for query, one in enumerate(numbers["queries"]):
        x0, y0, x1, y1 = mean[query].tolist()
        assert one["mean_box"] == pytest.approx([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], abs=2e-4)
    assert explained(*words[:-2], "--batch-size", "2") == 0  # written over, of all images
    assert json.loads((here / "q/queries.json").read_text())["images"] == 5


def test_two_stages_are_no_learned_queries(here, shapes, capsys):
    assert explained("two-stage.safetensors", "--queries", str(shapes), "--out", "q") == 0
    assert "a query is the rank of a proposal by its score, no learned query" in capsys.readouterr().out
    assert json.loads((here / "q/queries.json").read_text())["slot"] == "rank of a proposal"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plain.safetensors"], "no images given: name files, folders or patterns, or --queries and a dataset"),
        (["plain.safetensors", "c.jpg"], "c.jpg: no such file or folder"),
        (["plai.safetensors", "my photos"], "plai.safetensors: no such weights file"),
        (["plain.safetensors", "my photos", "--queries", "d"], "--queries takes a dataset and no images: leave out my"),
        (["plain.safetensors", "--queries", "nowhere"], "nowhere: no such file or folder"),
        (["plain.safetensors", "my photos", "--points", "3"], "--points 3: give X Y pairs, such as 120 80"),
        (["plain.safetensors", "my photos", "--points", "-3", "4"], "--points -3 4: must be at least 0"),
        (["plain.safetensors", "my photos", "--out", "plain.safetensors"], "plain.safetensors is a file: choose"),
        (["plain.safetensors", "my photos", "--limit", "2"], "--limit is of a dataset: give --queries, too"),
        (
            ["plain.safetensors", "--queries", ".", "--page"],
            "--page is of images: leave out --queries, and name images",
        ),
        (["plain.safetensors", "--queries", ".", "--points", "1", "2"], "--points is of images: leave out --queries"),
        (["plain.safetensors", "my photos", "--threshold", "2"], "--threshold 2.0: must be at most 1"),
        (["plain.safetensors", "my photos", "--threshold", "auto"], "threshold auto: this checkpoint holds no"),
        (["plain.safetensors", "my photos", "--page-out"], "unknown option --page-out"),
    ],
)
def test_bad_words_are_one_line_and_nothing_is_written(here, capsys, words, message):
    before = sorted(here.rglob("*"))
    assert explained(*words) == 2
    err = capsys.readouterr().err
    assert err.startswith("detrkit: error: ") and message in err and len(err.splitlines()) == 1, err
    assert sorted(here.rglob("*")) == before


def test_other_words_for_the_command(capsys):
    assert main(["attention", "x"]) == 2
    assert "did you mean `detrkit explain`?" in capsys.readouterr().err
