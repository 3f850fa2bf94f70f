"""Parquet with images in it: the same samples as the COCO json of the same data, from any process."""

from __future__ import annotations

import io
import multiprocessing
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from detrkit.data import eval_transform, make_loader, open_dataset, sources
from detrkit.data.dataset import Dataset
from detrkit.data.sources import ParquetImage
from detrkit.data.tools.check import check
from detrkit.data.tools.convert import convert
from detrkit.data.tools.cppe5 import _unpack
from detrkit.utils.errors import DetrkitError
from helpers.cppe5 import NAMES, SCHEMA, picture, replica, write_parquet, write_tar


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETRKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """The replica in the layout of the archive."""
    (tmp_path / "official").mkdir()
    _unpack(write_tar(tmp_path / "dataset.tar.gz"), tmp_path / "official")
    return tmp_path / "official"


def rewrite(file: Path, change: Callable[[list[dict[str, Any]]], Any], schema: pa.Schema | None = None) -> None:
    """Changes the rows of a parquet file; without a schema, pyarrow infers one."""
    table = pq.read_table(file)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema).replace_schema_metadata(table.schema.metadata), file)


def one_file(root: Path, **changes: Any) -> Path:
    """A dataset of one split; returns its parquet file."""
    write_parquet(root, **changes)
    (root / "data/test-00000-of-00001.parquet").unlink()
    return root / "data/train-00000-of-00001.parquet"


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("split", ["train", "test"])
def test_both_layouts_of_cppe5_give_the_same_samples(official: Path, tmp_path: Path, split: str, shards: int) -> None:
    coco = open_dataset(official, split=split)
    parquet = open_dataset(write_parquet(tmp_path / "hub", shards=shards), split=split)
    assert (coco.layout, parquet.layout) == ("coco", "parquet") and len(coco) == len(parquet)
    assert coco.class_names == parquet.class_names == list(NAMES)
    assert (coco.classes.ids, parquet.classes.ids) == ((1, 2, 3, 4, 5), (0, 1, 2, 3, 4))
    assert (
        (coco.dropped, coco.clamped) == (parquet.dropped, parquet.clamped) == ((1, 1) if split == "train" else (0, 0))
    )
    for k in range(len(coco)):
        ours, theirs, sample, reference = parquet.records[k], coco.records[k], parquet[k], coco[k]
        assert ours.file.name == theirs.file.name and sample.image_id == reference.image_id
        assert torch.equal(sample.image, reference.image) and sample.orig_size == reference.orig_size
        assert torch.equal(sample.boxes, reference.boxes) and torch.equal(sample.labels, reference.labels)
        for field in ("annotated", "areas", "crowd", "annotation_ids"):
            assert np.array_equal(getattr(ours, field), getattr(theirs, field)), field
    truth, reference = parquet.ground_truth(), coco.ground_truth()
    for annotation in truth["annotations"]:
        annotation["category_id"] += 1
    assert (truth["images"], truth["annotations"]) == (reference["images"], reference["annotations"])


def test_check_finds_the_same_in_both(official: Path, tmp_path: Path) -> None:
    reports = [check(official, decode=True), check(write_parquet(tmp_path / "hub"), decode=True)]
    for report in reports:
        assert report.ok and len(report.of("warning")) == 2
    coco, parquet = reports
    infos = [f.reason for f in coco.of("info") if "no object has a segmentation" not in f.reason]  # the jsons have []
    assert infos == [f.reason for f in parquet.of("info")]
    assert {f.reason for f in coco.of("warning")} == {f.reason for f in parquet.of("warning")}
    assert {f.id for f in parquet.of("warning")} == {"row 3, object 6", "row 4, object 6"}
    for ours, theirs in zip(parquet.splits, coco.splits, strict=True):
        counts = tuple(replace(c, id=c.id + 1) for c in ours.classes)
        assert replace(ours, classes=counts) == theirs


def batches(dataset: Dataset, **options: Any) -> list[Any]:
    loader = make_loader(dataset, transform=eval_transform(32), batch_size=2, training=False, **options)
    return [(batch.images, [target.boxes for target in targets]) for batch, targets in loader]


@pytest.mark.parametrize("options", [{"workers": 2}, {"workers": 0, "cache": "ram"}, {"workers": 2, "cache": "ram"}])
def test_loader(official: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    expected = batches(open_dataset(official, split="train"), workers=0)
    found = batches(open_dataset(write_parquet(tmp_path / "hub"), split="train"), **options)
    assert len(found) == len(expected) == 3
    for (images, boxes), (reference, reference_boxes) in zip(found, expected, strict=True):
        assert torch.equal(images, reference)
        assert all(torch.equal(a, b) for a, b in zip(boxes, reference_boxes, strict=True))


def _read_all(dataset: Dataset) -> list[bytes]:
    return [dataset.image(k).numpy().tobytes() for k in range(len(dataset))]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_several_processes_copy_the_images_once(tmp_path: Path, home: Path, method: str) -> None:
    dataset = open_dataset(write_parquet(tmp_path / "hub"), split="train")
    assert not home.exists()  # nothing was needed so far
    with multiprocessing.get_context(method).Pool(2) as pool:
        first, second = pool.map(_read_all, [dataset, dataset], chunksize=1)
    assert first == second == _read_all(dataset) and len(pickle.dumps(dataset)) < 20_000
    assert [p.suffix for p in (home / "parquet").iterdir()] == [".arrow"]


def test_another_content_is_another_copy(tmp_path: Path, home: Path) -> None:
    file = one_file(tmp_path / "hub")
    before = open_dataset(file).image(0)
    rewrite(file, lambda rows: rows[-1]["image"].update(bytes=picture(41, 61, seed=77)), SCHEMA)
    sources._images_of.cache_clear()  # as in another run
    after = open_dataset(file).image(0)
    assert before.shape == after.shape and not torch.equal(before, after)
    assert len(list((home / "parquet").iterdir())) == 2


def nested_as_now(names: list[str]) -> dict[str, Any]:
    """The description of the same columns by datasets 4."""
    return {"objects": {"category": {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "List"}}}


def test_names_from_the_metadata(tmp_path: Path) -> None:
    names = [name.lower() for name in NAMES]
    assert open_dataset(one_file(tmp_path / "a", features=nested_as_now(names))).class_names == names
    as_list = {"objects": [{"category": {"names": names, "_type": "ClassLabel"}}]}
    assert open_dataset(one_file(tmp_path / "b", features=as_list)).class_names == names


CARDS = {
    "sequence": "sequence:\n    - name: category\n      dtype:\n        class_label:\n          names:\n",
    "list": "list:\n    - name: category\n      dtype:\n        class_label:\n          names:\n",
    "struct": "struct:\n    - name: category\n      list:\n        class_label:\n          names:\n",
}


@pytest.mark.parametrize("kind", CARDS)
@pytest.mark.parametrize("configs", [False, True])
def test_names_from_the_dataset_card(tmp_path: Path, kind: str, configs: bool) -> None:
    file = one_file(tmp_path / "hub", features=None)
    numbered = "".join(f"            '{k}': {name}\n" for k, name in enumerate("defgh"))
    info = f"  features:\n  - name: image\n    dtype: image\n  - name: objects\n    {CARDS[kind]}{numbered}"
    if configs:  # a list with an entry for each
        info = "- config_name: default\n" + info
    (tmp_path / "hub/README.md").write_text(f"---\nlicense: unknown\ndataset_info:\n{info}---\n\n# A dataset\n")
    assert open_dataset(tmp_path / "hub").class_names == list("defgh") == open_dataset(file).class_names


def test_names_that_nothing_says(tmp_path: Path) -> None:
    file = one_file(tmp_path / "hub", features=None)
    with pytest.raises(DetrkitError, match=r"objects\.category has numbers, and neither metadata nor README\.md"):
        open_dataset(file)
    (tmp_path / "hub/README.md").write_text("---\ndataset_info: [\n---\n")
    with pytest.raises(DetrkitError, match=r"README\.md:2: malformed YAML"):
        open_dataset(file)
    names = "{features: [{name: objects, sequence: [{name: category, dtype: {class_label: {names: {a: b}}}}]}]}"
    (tmp_path / "hub/README.md").write_text(f"---\ndataset_info: {names}\n---\n")
    with pytest.raises(DetrkitError, match=r"README\.md: the names of class_label must be numbered"):
        open_dataset(file)


def test_names_in_the_column(tmp_path: Path) -> None:
    """In alphabetical order, over all splits; the objects as a list of structs, without ids, areas and sizes."""
    root = write_parquet(tmp_path / "hub", features=None)

    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            objects = row["objects"]
            row["objects"] = [
                {"bbox": box, "category": NAMES[label], "iscrowd": label == 4}
                for box, label in zip(objects["bbox"], objects["category"], strict=True)
                if file.name.startswith("test") or label > 0
            ]
            row["image"] = row["image"]["bytes"]
            del row["width"], row["height"], row["image_id"]

    for file in (root / "data").iterdir():
        rewrite(file, change)
    train, test = (open_dataset(root, split=split) for split in ("train", "test"))
    assert train.class_names == test.class_names == list(NAMES)
    value, files = replica()["train"]
    order = sorted(files, reverse=True)  # of the rows
    assert [r.image_id for r in train.records] == [1, 2, 3, 4, 5, 6]
    for record, name in zip(train.records, order, strict=True):
        image = next(i for i in value["images"] if i["file_name"] == name)
        own = [a for a in value["annotations"] if a["image_id"] == image["id"] and a["category_id"] > 1]
        assert (record.height, record.width) == (image["height"], image["width"])
        assert record.labels.tolist() == [a["category_id"] - 1 for a in own]
        assert record.crowd.tolist() == [a["category_id"] == 5 for a in own]
        widths = record.boxes[:, 2:] - record.boxes[:, :2]
        assert record.areas.tolist() == widths.prod(1).tolist()  # there is no other
    ids = [i for record in train.records for i in record.annotation_ids.tolist()]
    assert ids == list(range(1, len(ids) + 1))
    assert train.image(5).shape == (3, 41, 61) and train.records[5].file.name == "5"


def test_ids_that_are_used_twice_become_positions(tmp_path: Path) -> None:
    file = one_file(tmp_path / "hub")
    rewrite(file, lambda rows: [row.update(image_id=3) for row in rows], SCHEMA)
    dataset = open_dataset(file)
    assert [r.image_id for r in dataset.records] == [1, 2, 3, 4, 5, 6]
    assert [r.file.name for r in dataset.records] == ["6.png", "5.png", "4.png", "3.png", "2.png", "1.png"]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["data/train-00000-of-00001-70771d5bfa06455a.parquet", "data/test-00000-of-00001.parquet"], ["test", "train"]),
        (["train.parquet", "validation.parquet"], ["train", "validation"]),
        (["default/train/0000.parquet", "default/test/0000.parquet"], ["test", "train"]),
        (["train/0000.parquet", "train/0001.parquet"], ["train"]),
        (["my-set-v2.parquet"], ["my-set-v2"]),
    ],
)
def test_splits(tmp_path: Path, names: list[str], splits: list[str]) -> None:
    file = one_file(tmp_path / "hub")
    for name in names:
        (tmp_path / "other" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "other" / name).write_bytes(file.read_bytes())
    for split in splits:
        found = open_dataset(tmp_path / "other", split=split)
        assert (found.split, len(found)) == (split, 6 * sum(split in name for name in names))
    alone = open_dataset(tmp_path / "other" / names[0])
    assert (alone.split, len(alone)) == ("train" if "train" in names[0] else "my-set-v2", 6)
    with pytest.raises(DetrkitError, match=f"has no split 'extra'; it has {', '.join(splits)}"):
        open_dataset(tmp_path / "other", split="extra")


def test_unusable_images_are_left_out(tmp_path: Path) -> None:
    root = write_parquet(tmp_path / "hub", misfit=True)
    dataset = open_dataset(root, split="train", unusable="skip")
    assert (len(dataset), dataset.skipped) == (5, 1) and dataset.records[0].image_id == 2
    with pytest.raises(
        DetrkitError, match=r"row 5 \(1\.png\): the image is 71x51 pixels but its annotations say 61x41"
    ):
        open_dataset(root, split="train")[0]
    (fault,) = check(root, "train").of("error")
    assert fault.id == "image 1" and "is 71x51 pixels" in fault.reason and isinstance(fault.file, ParquetImage)


def test_convert(official: Path, tmp_path: Path) -> None:
    root = write_parquet(tmp_path / "hub")
    for to in ("coco", "voc", "yolo"):
        convert(root, tmp_path / to, to=to, split="train")
        ours, theirs = open_dataset(tmp_path / to, split="train"), open_dataset(official, split="train")
        for a, b in zip(ours.records, theirs.records, strict=True):
            assert isinstance(a.file, Path) and isinstance(b.file, Path) and a.file.read_bytes() == b.file.read_bytes()
            np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-6)
            assert a.labels.tolist() == b.labels.tolist()
    with pytest.raises(DetrkitError, match="cannot be linked: use --images copy"):
        convert(root, tmp_path / "linked", to="yolo", images="symlink")


def test_convert_names_images_by_their_format(tmp_path: Path) -> None:
    file = one_file(tmp_path / "hub")

    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["image"]["path"] = None

    rewrite(file, change, SCHEMA)
    convert(file, tmp_path / "coco", to="coco")
    names = sorted(p.name for p in (tmp_path / "coco/train").iterdir())
    assert names == ["1.png", "2.png", "3.png", "4.png", "5.png", "6.png"]


def drop(column: str) -> Callable[[list[dict[str, Any]]], Any]:
    return lambda rows: [row.pop(column) for row in rows]


def set_object(**values: Any) -> Callable[[list[dict[str, Any]]], Any]:
    return lambda rows: rows[1]["objects"].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("image"), r"no column image; it has image_id, width"),
        (drop("objects"), r"no column objects; it has image_id, image"),
        (lambda rows: [row["objects"].pop("bbox") for row in rows], r"row 0: column objects: no field bbox; it has "),
        (set_object(category=[0]), r"row 1: column objects: 5 values of bbox, but 1 of category"),
        (set_object(category=[0, 1, 7, 3, 4]), r"row 1, object 3: category 7 is not one of the 5 classes"),
        (set_object(category=[0, 1, None, 3, 4]), r"row 1, object 3: category None is not one of"),
        (set_object(bbox=[[1, 2, 3]] * 5), r"row 1, object 1: bbox \[1.*\] is not \[x, y, width, height\] in pixels"),
        (set_object(bbox=[[1.0, 2, 3, float("nan")]] * 5), r"row 1, object 1: box .* is not finite \(image 5\.png\)"),
    ],
)
def test_bad_rows(tmp_path: Path, change: Callable[[list[dict[str, Any]]], Any], message: str) -> None:
    file = one_file(tmp_path / "hub")
    rewrite(file, change)
    with pytest.raises(DetrkitError, match=message) as error:
        open_dataset(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)
    assert any(str(f.file).startswith(str(file)) or str(file) in f.reason for f in check(file).of("error"))


def test_rows_without_image(tmp_path: Path) -> None:
    file = one_file(tmp_path / "hub")
    rewrite(file, lambda rows: rows[-1]["image"].update(bytes=None), SCHEMA)
    with pytest.raises(DetrkitError, match=r"row 5 \(1\.png\): column image has no image bytes"):
        open_dataset(file)[0]
    assert open_dataset(file)[1].image_id == 2


def test_files_that_are_no_dataset(tmp_path: Path) -> None:
    file = one_file(tmp_path / "hub", shards=1)
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    with pytest.raises(DetrkitError, match=r"not a parquet file that can be read"):
        open_dataset(file)
    chunk = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0).column(5)
    assert chunk.path_in_schema.startswith("objects.id")
    start = chunk.dictionary_page_offset  # the footer is whole, a page is not
    file.write_bytes(content[:start] + b"\xff" * 40 + content[start + 40 :])
    with pytest.raises(DetrkitError, match=r"not a parquet file that can be read") as error:
        open_dataset(file)
    assert "\n" not in str(error.value)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(DetrkitError, match=r"only a pointer to the file; fetch it with `git lfs pull`"):
        open_dataset(file)
    file.rename(file.with_name("train-00000-of-00002.parquet"))
    with pytest.raises(DetrkitError, match=r"split train has 1 of its 2 parquet files"):
        open_dataset(tmp_path / "hub")
    for config in ("a", "b"):
        (tmp_path / "two" / config).mkdir(parents=True)
        (tmp_path / "two" / config / "train.parquet").write_bytes(content)
    with pytest.raises(DetrkitError, match=r"split train is in .*two/a and in .*two/b: open one of these"):
        open_dataset(tmp_path / "two")
    assert len(open_dataset(tmp_path / "two/b")) == 6


def test_masks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DetrkitError, match="parquet has no masks"):
        open_dataset(one_file(tmp_path / "hub"), masks=True)


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = one_file(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DetrkitError, match=r"needs pyarrow: pip install pyarrow"):
        open_dataset(file)


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = one_file(tmp_path / "hub")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DETRKIT_HOME", str(tmp_path / "file"))
    with pytest.raises(DetrkitError, match=r"cannot copy its images to .*file/parquet") as error:
        open_dataset(file)[0]
    assert "\n" not in str(error.value)
