"""`detrkit data download coco`: the real path, with tiny archives from a server on this machine."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import textwrap
import zipfile

import pytest

from detrkit.cli import main
from detrkit.data.tools import coco2017
from detrkit.utils.errors import DetrkitError
from helpers.file_server import serving_files


def zipped(files):
    """A zip file of name -> content."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def images(split, count, suffix="jpg"):
    return {f"{split}/{k:012d}.{suffix}": os.urandom(2000) for k in range(count)}


@pytest.fixture
def official(monkeypatch):
    """Tiny archives with the names of the official ones, some of which are not to be written; path -> content."""
    files = {
        "annotations": {
            "annotations/instances_train2017.json": b'{"of": "train"}',
            "annotations/instances_val2017.json": b'{"of": "val"}',
            "annotations/captions_val2017.json": b"{}",
        },
        "panoptic": {
            f"annotations/panoptic_{split}2017.{kind}": content
            for split, count in (("train", 3), ("val", 2))
            for kind, content in (
                ("json", b'{"of": "segments"}'),
                ("zip", zipped(images(f"panoptic_{split}2017", count, "png") | {f"__MACOSX/._{split}": b"x"})),
            )
        },
        "val": images("val2017", 2)
        | {"../outside.jpg": b"x", "/val2017/000000000009.jpg": b"x", "val2017/a.jpg": b"x"},
        "train": images("train2017", 3),
    }
    counts = {"train2017": 3, "val2017": 2, "panoptic_train2017": 3, "panoptic_val2017": 2}
    contents = {}
    for name, archive in coco2017.ARCHIVES.items():
        content = zipped(files[name])
        contents[f"/{archive.path}"] = content
        parts = tuple(part._replace(files=counts.get(part.target, 1)) for part in archive.parts)
        tiny = archive._replace(
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            unpacked={split: 10_000 for split in archive.unpacked},
            parts=parts,
        )
        monkeypatch.setitem(coco2017.ARCHIVES, name, tiny)
    return contents


@pytest.fixture
def server(official, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with serving_files(official) as running:
        monkeypatch.setenv("DETRKIT_COCO_URL", running.url)
        yield running


def listing(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


INSTANCES = ["annotations/instances_train2017.json", "annotations/instances_val2017.json"]


def test_the_whole_dataset_and_nothing_else(server, tmp_path, capsys):
    assert main(["data", "download", "coco"]) == 0
    out, err = capsys.readouterr()
    assert "evaluate on it: detrkit eval detr-r50 coco --split val2017" in out
    assert "train on it: detrkit train coco --recipe detr-150" in out
    assert "of disk" in err and "train2017.zip: 0.0 MB" in err
    pictures = [f"train2017/{k:012d}.jpg" for k in range(3)] + [f"val2017/{k:012d}.jpg" for k in range(2)]
    assert listing(tmp_path / "coco") == sorted([*INSTANCES, "detrkit-download.json", *pictures])
    assert listing(tmp_path) == [f"coco/{name}" for name in listing(tmp_path / "coco")]  # nothing outside
    asked = len(server.requests)
    assert main(["data", "download", "coco"]) == 0
    assert len(server.requests) == asked


def test_panoptic_is_added_to_what_is_there(server, tmp_path):
    assert main(["data", "download", "coco", "--only", "val"]) == 0
    assert listing(tmp_path / "coco") == [
        "annotations/instances_val2017.json",
        "detrkit-download.json",
        "val2017/000000000000.jpg",
        "val2017/000000000001.jpg",
    ]
    asked = len(server.requests)
    assert main(["data", "download", "coco-panoptic", "--only", "val", "--keep-archives"]) == 0
    assert [path for path, _ in server.requests[asked:]] == ["/annotations/panoptic_annotations_trainval2017.zip"]
    assert listing(tmp_path / "coco" / "panoptic_val2017") == ["000000000000.png", "000000000001.png"]
    assert json.loads((tmp_path / "coco/annotations/panoptic_val2017.json").read_text()) == {"of": "segments"}
    assert listing(tmp_path / "coco" / "archives") == ["panoptic_annotations_trainval2017.zip"]


def test_a_cut_download_goes_on_where_it_was(server, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.cut = [100]
    assert main(["data", "download", "coco", "--only", "train"]) == 0
    assert [header for path, header in server.requests][:2] == [None, "bytes=100-"]


@pytest.mark.slow
def test_a_killed_download_goes_on_where_it_was(server, tmp_path):
    """kill -9 while an archive is unpacked: what is complete is not downloaded again, and nothing half is left."""
    table = {name: tuple(archive) for name, archive in coco2017.ARCHIVES.items()}
    program = textwrap.dedent(f"""
        import os, signal, sys
        from detrkit.data.tools import coco2017
        for name, (path, size, sha256, unpacked, parts) in {table!r}.items():
            parts = tuple(coco2017.Part(*part) for part in parts)
            coco2017.ARCHIVES[name] = coco2017.Archive(path, size, sha256, unpacked, parts)
        copy = coco2017._copy
        def killed(archive, info, to):
            copy(archive, info, to)
            if to.name == "000000000001.jpg" and "train2017" in str(to) and sys.argv[1] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
        coco2017._copy = killed
        from detrkit.cli import main
        sys.exit(main(["data", "download", "coco"]))
    """)
    program = "from detrkit.data.tools.coco2017 import Part\n" + program
    done = subprocess.run([sys.executable, "-c", program, "kill"], cwd=tmp_path)
    assert done.returncode == -9
    assert not (tmp_path / "coco" / "train2017").exists() and len(listing(tmp_path / "coco" / "val2017")) == 2
    asked = len(server.requests)
    again = subprocess.run([sys.executable, "-c", program, "go"], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert len(server.requests) == asked  # its archive was complete
    assert len(listing(tmp_path / "coco" / "train2017")) == 3
    assert [name for name in os.listdir(tmp_path / "coco") if name.startswith(".")] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content + b"x", "bytes there, not"),
        (lambda content: b"x" + content[1:], "its SHA-256 starts with"),
    ],
)
def test_another_file_is_refused(server, change, message, tmp_path, capsys):
    path = "/zips/val2017.zip"
    server.files[path] = change(server.files[path])
    assert main(["data", "download", "coco", "--only", "val"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "coco" / "val2017").exists()


def test_what_is_in_the_way_is_refused(server, tmp_path, capsys):
    (tmp_path / "coco" / "val2017").mkdir(parents=True)
    assert main(["data", "download", "coco"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "coco/val2017 is there and was not made by this command: remove or rename it, or choose another" in error
    assert server.requests == []


def test_too_little_disk_is_said_before_anything(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(coco2017.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10_000}))
    assert main(["data", "download", "coco"]) == 2
    assert "0.0 MB are free there" in capsys.readouterr().err.splitlines()[-1]
    assert server.requests == [] and not (tmp_path / "coco").exists()


def test_archives_from_elsewhere(official, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zips").mkdir()
    assert main(["data", "download", "coco", "--archives", "zips"]) == 2
    assert (
        "annotations_trainval2017.zip: not there; get it from http://images.cocodataset.org" in capsys.readouterr().err
    )
    for path, content in official.items():
        (tmp_path / "zips" / path.rpartition("/")[2]).write_bytes(content)
    assert main(["data", "download", "coco-panoptic", "--archives", "zips"]) == 0
    assert len(listing(tmp_path / "coco" / "panoptic_train2017")) == 3
    assert len(listing(tmp_path / "zips")) == 4


def test_a_damaged_archive_is_one_line(official, tmp_path, monkeypatch):
    path = "/zips/val2017.zip"
    content = official[path][:-30]
    archive = coco2017.ARCHIVES["val"]
    damaged = archive._replace(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(coco2017.ARCHIVES, "val", damaged)
    (tmp_path / "val2017.zip").write_bytes(content)
    name = "annotations_trainval2017.zip"
    (tmp_path / name).write_bytes(official[f"/annotations/{name}"])
    with pytest.raises(DetrkitError, match=r"val2017.zip: damaged archive \(File is not a zip file\): remove it"):
        coco2017.download_coco(tmp_path / "coco", splits=("val",), archives=tmp_path)
    assert listing(tmp_path / "coco") == ["annotations/instances_val2017.json", "detrkit-download.json"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["coco", "--force"], "--force is for cppe5"),
        (["cppe5", "--only", "val"], "--only is for coco and coco-panoptic"),
        (["coco", "--archives", "nowhere"], "the folder with COCO's zip files expected"),
    ],
)
def test_options_of_another_dataset(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "download", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_official_numbers_belong_together():
    """The sum of the sizes is what --help and the pages say: 20.4 GB to download, 1.07 GB for val."""
    sizes = {name: archive.size for name, archive in coco2017.ARCHIVES.items()}
    assert round((sum(sizes.values()) - sizes["panoptic"]) / 1e9, 1) == 20.4
    assert round((sizes["annotations"] + sizes["val"]) / 1e9, 2) == 1.07
    assert all(len(archive.sha256) == 64 for archive in coco2017.ARCHIVES.values())
