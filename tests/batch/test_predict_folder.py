"""Many images in shards: each once, with its error where it has one; begun again, the shards that are missing."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import detrkit
from detrkit.batch.plan import shard_of
from detrkit.batch.shard import ShardWork
from detrkit.cli import main
from detrkit.detector import Detector
from detrkit.structures.classes import ClassList
from detrkit.utils.errors import DetrkitError, WriteError
from detrkit.weights.checkpoint import ModelSpec, save_model
from detrkit.weights.digest import weights_sha256
from helpers.disk import full_disk
from helpers.tiny import SMALLEST

SPEC = ModelSpec("detr-r50", SMALLEST, num_classes=2, classes=ClassList(("cat", "dog"), (1, 2)), size=32, max_size=64)
BAD = {"bad/text.jpg": "not an image", "bad/cut.jpg": "damaged", "bad/bomb.png": "too large", "bad/gone.jpg": "missing"}


def image(seed: int, width: int = 48, height: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def bomb() -> bytes:
    """A PNG whose header states 50,000 x 50,000 pixels."""
    buffer = io.BytesIO()
    Image.new("1", (8, 8)).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    import struct
    import zlib

    content[16:24] = struct.pack(">II", 50_000, 50_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return Detector(SPEC.build(), SPEC, device="cpu")


@pytest.fixture(scope="module")
def weights(detector, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "a.safetensors", detector.model, SPEC)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    (folder / "bad").mkdir(parents=True)
    for seed, name in enumerate(["a b.jpg", "n\nl.jpg", "\u00e9.png", *(f"{k:02}.jpg" for k in range(17))]):
        image(seed, 40 + seed).save(folder / name)
    (folder / "bad" / "text.jpg").write_text("no image")
    whole = io.BytesIO()
    image(1, 400, 300).save(whole, "JPEG")
    (folder / "bad" / "cut.jpg").write_bytes(whole.getvalue()[:5000])
    (folder / "bad" / "bomb.png").write_bytes(bomb())
    (folder / "bad" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    return folder


def predict(detector, source, out, **more):
    return detrkit.predict_folder(detector, source, out, **{"shards": 4, "threshold": 0.1, **more})


def rows(out, name="shards/*.jsonl") -> list[dict]:
    return [json.loads(line) for file in sorted(Path(out).glob(name)) for line in file.open("rb")]


def contents(out) -> dict[str, bytes]:
    out = Path(out)
    return {
        str(file.relative_to(out)): file.read_bytes()
        for file in out.rglob("*")
        if file.is_file() and file.parent.name != "reports" and file.name != "summary.json"  # with times
    }


def test_every_image_has_its_row_equal_to_a_prediction_alone(detector, photos):
    summary = predict(detector, photos, "out", merged=True)
    assert summary.images == 24 and summary.errors == {kind: 1 for kind in sorted(BAD.values())}
    found = rows("out")
    names = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*") if not p.is_dir())
    assert sorted(row["id"] for row in found) == names
    for number, file in enumerate(sorted(Path("out/shards").iterdir())):
        assert all(shard_of(json.loads(line)["id"], 4) == number for line in file.open())
    version = f"detr-r50-{weights_sha256(detector.model)[:12]}"
    for row in found:
        assert row["model"] == version
        if row["id"] in BAD:
            assert row["error"]["kind"] == BAD[row["id"]] and row["detections"] == [] and row["width"] is None
            assert str(photos) not in row["error"]["message"] and "\n" not in row["error"]["message"]
            continue
        alone = detector.predict(photos / row["id"], threshold=0.1)
        assert row["error"] is None and (row["width"], row["height"]) == alone.image.size
        assert [one["query"] for one in row["detections"]] == alone.queries.tolist() and len(alone) > 0
        assert [one["name"] for one in row["detections"]] == alone.names
        assert [one["category_id"] for one in row["detections"]] == [label + 1 for label in alone.labels.tolist()]
        torch.testing.assert_close(
            torch.tensor([one["box"] for one in row["detections"]]), alone.boxes, atol=1e-3, rtol=0
        )
        torch.testing.assert_close(torch.tensor([one["score"] for one in row["detections"]]), alone.scores)
    assert [row["id"] for row in rows("out", "merged.jsonl")] == names
    assert json.loads(Path("out/summary.json").read_text())["objects"] == sum(len(row["detections"]) for row in found)
    assert {path.name for path in Path("out").iterdir()} == {
        "manifest.jsonl",
        "merged.jsonl",
        "plan.json",
        "reports",
        "shards",
        "summary.json",
    }


def test_shards_that_are_missing_are_done_again_and_only_these(detector, photos, monkeypatch):
    predict(detector, photos, "whole", merged=True)
    predict(detector, photos, "out", merged=True)
    before = contents("out")
    assert before == contents("whole")
    for name in ("shards/00001.jsonl", "shards/00003.jsonl", "merged.jsonl", "reports/00000.json"):
        Path("out", name).unlink()
    done = []
    work = ShardWork.predict
    monkeypatch.setattr(ShardWork, "predict", lambda self, shard, **more: done.append(shard) or work(self, shard))
    summary = predict(detector, photos, "out", merged=True, batch_size=3)
    assert sorted(done) == [1, 3] and contents("out").keys() == before.keys()
    assert summary.images == 24 and sum(summary.errors.values()) == 4  # also of the shard without a report
    assert [row["id"] for row in rows("out", "merged.jsonl")] == [row["id"] for row in rows("whole", "merged.jsonl")]


def test_chosen_shards_alone(detector, photos):
    assert predict(detector, photos, "out", shard=[2]) is None
    assert [file.name for file in Path("out/shards").iterdir()] == ["00002.jsonl"]
    assert predict(detector, photos, "out", shard=[0, 1, 3]).images == 24
    with pytest.raises(DetrkitError, match="shard 4: must be from 0 to 3, as there are 4 shards"):
        predict(detector, photos, "out", shard=[4])


def test_a_folder_of_other_images_models_or_settings_is_refused(detector, photos):
    predict(detector, photos, "out")
    before = contents("out")
    torch.manual_seed(1)
    other = Detector(SPEC.build(), SPEC, device="cpu")
    for call, message in (
        (lambda: predict(other, photos, "out"), "was begun with the model"),
        (lambda: predict(detector, photos, "out", threshold=0.2), "threshold 0.1, not with threshold 0.2"),
        (lambda: predict(detector, photos, "out", size=64), "size 32, not with size 64"),
        (lambda: predict(detector, photos, "out", shards=5), "--shards 4, not with --shards 5"),
        (lambda: predict(detector, photos / "bad", "out"), "24 images of .*, not with 4 of"),
    ):
        with pytest.raises(DetrkitError, match=message):
            call()
    (photos / "new.jpg").write_bytes((photos / "00.jpg").read_bytes())
    with pytest.raises(DetrkitError, match=r"24 images of .*, not with 25 of"):
        predict(detector, photos, "out")
    assert contents("out") == before


def test_a_tar_and_a_list_keep_their_order(detector, photos):
    with tarfile.open("t.tar", "w") as tar:
        for name in ("05.jpg", "a b.jpg", "01.jpg", "bad/text.jpg"):
            tar.add(photos / name, name)
    Path("list.txt").write_text("photos/05.jpg\nphotos/a b.jpg\nphotos/01.jpg\nphotos/bad/text.jpg\nnowhere.jpg\n")
    predict(detector, "t.tar", "tar", merged=True)
    predict(detector, "list.txt", "list", merged=True)
    of_tar, of_list = rows("tar", "merged.jsonl"), rows("list", "merged.jsonl")
    assert [row["id"] for row in of_tar] == ["t.tar/05.jpg", "t.tar/a b.jpg", "t.tar/01.jpg", "t.tar/bad/text.jpg"]
    assert [row["id"].removeprefix("photos/") for row in of_list[:4]] == [row["id"][6:] for row in of_tar]
    assert [row["error"] and row["error"]["kind"] for row in of_list] == [None, None, None, "not an image", "missing"]
    for one, other in zip(of_tar, of_list, strict=False):
        assert one["error"] == other["error"] and len(one["detections"]) == len(other["detections"])


def test_parquet_has_the_same_rows(detector, photos):
    parquet = pytest.importorskip("pyarrow.parquet")
    predict(detector, photos, "lines", merged=True)
    predict(detector, photos, "out", merged=True, format="parquet")
    table = parquet.read_table("out/merged.parquet").to_pylist()
    for row, line in zip(table, rows("lines", "merged.jsonl"), strict=True):
        for one in row["detections"]:
            assert one.pop("segmentation") is None
            one["box"], one["score"] = np.float32(one["box"]).tolist(), np.float32(one["score"]).item()
        for one in line["detections"]:
            one["box"], one["score"] = np.float32(one["box"]).tolist(), np.float32(one["score"]).item()
        assert row.pop("segments") is None and row == line


@pytest.mark.parametrize("panoptic", [False, True])
def test_masks_and_segments_are_run_lengths(photos, panoptic):
    hotcoco = pytest.importorskip("hotcoco")
    torch.manual_seed(9)
    things = (True, False) if panoptic else None
    classes = ClassList(("cat", "sky"), (1, 2), things)
    spec = ModelSpec("detr-r50-panoptic", SMALLEST, num_classes=2, classes=classes, size=32, max_size=64)
    detector = Detector(spec.build(), spec, device="cpu")
    predict(detector, photos / "00.jpg", "out", threshold=0.0, shards=1)
    (row,) = rows("out")
    alone = detector.predict(photos / "00.jpg", threshold=0.0)
    found = row["segments" if panoptic else "detections"]
    assert len(found) == len(alone) > 0
    for one, mask in zip(found, alone.masks, strict=True):
        rle = {"size": one["segmentation"]["size"], "counts": one["segmentation"]["counts"].encode()}
        assert np.array_equal(hotcoco.mask.decode(rle).astype(bool), mask.numpy())
    if not panoptic:
        predict(detector, photos / "00.jpg", "bare", threshold=0.0, shards=1, masks=False)
        assert "segmentation" not in rows("bare")[0]["detections"][0]


def test_more_shards_than_images_and_than_files_that_are_merged_at_once(detector, photos, monkeypatch):
    from detrkit.batch import merging

    predict(detector, photos, "few", merged=True)
    monkeypatch.setattr(merging, "_AT_ONCE", 3)
    assert predict(detector, photos, "many", merged=True, shards=50).shards == 50
    few, many = rows("few", "merged.jsonl"), rows("many", "merged.jsonl")
    assert [row["id"] for row in few] == [row["id"] for row in many]
    assert len(list(Path("many/shards").iterdir())) == 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[1:], "row 1: is not that of"),
        (lambda lines: [*lines, lines[0]], "has more rows than its shard has images"),
        (lambda lines: lines[:-1], "is not that of"),
        (lambda lines: [b"{\n", *lines[1:]], "malformed JSON"),
        (lambda lines: [b"[]\n", *lines[1:]], "is no row of results"),
    ],
)
def test_a_file_of_results_that_was_changed_is_noticed_when_it_is_merged(detector, photos, change, message):
    predict(detector, photos, "out")
    file = Path("out/shards/00002.jsonl")
    file.write_bytes(b"".join(change(file.read_bytes().splitlines(keepends=True))))
    with pytest.raises(DetrkitError, match=message):
        predict(detector, photos, "out", merged=True)
    assert not Path("out/merged.jsonl").exists()


def test_a_full_disk_keeps_what_is_done_and_the_same_call_goes_on(detector, photos):
    predict(detector, photos, "whole", merged=True)
    sizes = {file.name: file.stat().st_size for file in Path("whole/shards").iterdir()}
    smallest = min(sizes.values())
    predict(detector, photos, "out", shard=[int(min(sizes, key=sizes.get)[:5])])
    with full_disk(smallest), pytest.raises(WriteError, match=r"out/shards/0000.*: File too large"):
        predict(detector, photos, "out")
    assert {f.name: f.read_bytes() for f in Path("out/shards").iterdir()}.items() <= {
        f.name: f.read_bytes() for f in Path("whole/shards").iterdir()
    }.items()
    assert [p for p in Path("out").rglob("*") if p.name.endswith(".tmp")] == []
    assert [p for p in Path("out/leases").iterdir()] == []
    predict(detector, photos, "out", merged=True)
    assert contents("out") == contents("whole")


def test_a_source_that_goes_away_is_no_error_of_its_images(detector, photos):
    """A disk that is unmounted in the middle must not mark thousands of images as missing."""
    from detrkit.batch import worker

    predict(detector, photos, "out", shard=[0])
    work = ShardWork.predict

    def unmounted(self, shard, **more):
        if photos.exists():
            photos.rename("elsewhere")
        return work(self, shard)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker.ShardWork, "predict", unmounted)
        with pytest.raises(DetrkitError, match="photos is gone"):
            predict(detector, photos, "out")
    assert [file.name for file in Path("out/shards").iterdir()] == ["00000.jsonl"]


def test_a_machine_without_handles_is_no_error_of_an_image(detector, photos, monkeypatch):
    from detrkit.batch import reading

    def refused(file):
        raise DetrkitError(f"{file}: cannot read the image") from OSError(24, os.strerror(24))

    monkeypatch.setattr(reading, "as_rgb", refused)
    with pytest.raises(DetrkitError, match="photos: "):
        predict(detector, photos, "out")
    assert not Path("out/shards").exists()


def test_a_file_server_that_was_away_for_a_moment_is_asked_again(detector, photos, monkeypatch):
    from detrkit.batch import reading

    read, asked = reading.as_rgb, []

    def flaky(file):
        asked.append(file)
        if asked.count(file) == 1:
            raise DetrkitError(f"{file}: cannot read the image") from OSError(5, os.strerror(5))
        return read(file)

    monkeypatch.setattr(reading, "as_rgb", flaky)
    monkeypatch.setattr(reading, "_PAUSES", (0.0, 0.0))
    assert sum(predict(detector, photos, "out").errors.values()) == 4


def test_the_command_prints_what_it_came_to_and_goes_on(weights, photos, capsys):
    words = [
        "predict",
        str(weights),
        "photos",
        "--shards",
        "4",
        "--out",
        "out",
        "--device",
        "cpu",
        "--threshold",
        "0.1",
    ]
    assert main([*words, "--shard", "1", "2"]) == 0
    assert "2 of 4 shards are done, in out" in capsys.readouterr().out
    assert main([*words, "--merge"]) == 0
    printed = capsys.readouterr().out
    assert "2 of 4 shards were done before: going on" in printed
    assert "4 images could not be predicted: 1 damaged, 1 missing, 1 not an image, 1 too large" in printed
    assert "out/merged.jsonl" in printed
    assert len(rows("out", "merged.jsonl")) == 24
    assert main([*words, "--merge"]) == 0
    assert "4 of 4 shards were done before\n" in capsys.readouterr().out


@pytest.mark.slow
def test_an_exported_model_finds_the_same(detector, photos):
    pytest.importorskip("onnxruntime")
    detrkit.export(detector, "detr.onnx", format="onnx")
    predict(detector, photos, "out", merged=True)
    predict("detr.onnx", photos, "exported", merged=True)
    original, exported = rows("out", "merged.jsonl"), rows("exported", "merged.jsonl")
    assert original[0]["model"] != exported[0]["model"]
    for one, other in zip(original, exported, strict=True):
        assert (one["id"], one["error"], one["width"]) == (other["id"], other["error"], other["width"])
        assert len(one["detections"]) == len(other["detections"])
        for first, second in zip(one["detections"], other["detections"], strict=True):
            assert first["query"] == second["query"] and first["box"] == pytest.approx(second["box"], abs=1e-2)
    with pytest.raises(DetrkitError, match="was begun with the model"):
        predict("detr.onnx", photos, "out")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--shard 1", "--shard is for many images: it needs --shards N"),
        ("--merge", "--merge is for many images: it needs --shards N"),
        ("--shards 4 --scale 2", "--scale 2: with --shards no images are drawn"),
        ("--shards 0", "--shards 0: must be at least 1"),
        ("--shards 4 --shard 7", "shard 7: must be from 0 to 3"),
        ("--shards 4 --ray-workers 2", "--ray-workers needs --engine ray"),
        ("--shards 4 --lease-seconds 0", "must be at least 0.5"),
        ("--shards 4 --format xml", "choose one of jsonl, parquet"),
        ("--shards 4 --out photos", "photos holds '00.jpg', which is of no prediction in shards"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(weights, photos, capsys, words, message):
    assert main(["predict", str(weights), "photos", "--device", "cpu", *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_wrong_source_or_folder_is_refused_before_torch(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys; from detrkit.cli import main\n"
        "status = main(['predict', 'detr-r50', 'nowhere', '--shards', '4'])\n"
        "print(status, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"] and "nowhere: no such file or folder" in done.stderr
