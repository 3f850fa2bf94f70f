"""`data download cppe5` against a server on this machine that gives a small replica of the archive."""

from __future__ import annotations

import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import tyro

from detrkit.cli.data import DataCommand
from detrkit.config import load_config
from detrkit.data import open_dataset
from detrkit.data.tools import cppe5
from detrkit.data.tools.cppe5 import download_cppe5
from detrkit.engine.splits import open_splits
from detrkit.utils import download as downloading
from detrkit.utils.download import md5
from detrkit.utils.errors import DetrkitError
from helpers.cppe5 import NAMES, write_tar
from helpers.file_server import Server, serving


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A replica, which is then the published archive; with a cache of its own, and no mirror."""
    monkeypatch.setenv("DETRKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(downloading.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(cppe5, "URLS", ())
    return published(write_tar(tmp_path / "dataset.tar.gz"), monkeypatch)


def published(archive: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cppe5, "MD5", md5(archive))
    return archive


@pytest.fixture
def server(archive: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving(archive.read_bytes(), "/v0.1.0/dataset.tar.gz") as server:
        monkeypatch.setattr(cppe5, "URLS", (server.url,))
        yield server


def run(*arguments: str | Path) -> int:
    command = tyro.cli(DataCommand, args=["download", "cppe5", *map(str, arguments)])  # type: ignore[call-overload]
    return int(command.run())


def test_what_is_published() -> None:
    assert cppe5.MD5 == "f4e043f983cff94ef82ef7d57a879212"
    assert all(url.startswith("https://") for url in cppe5.URLS)


def test_command(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run() == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "│ train │ 6 │ 0 │ 26 │" in out and "│ test │ 3 │ 0 │ 10 │" in out
    assert str(tmp_path / "cppe5") in out and out.endswith("train on it: detrkit train cppe5 --recipe cppe5")
    train, test = (open_dataset(tmp_path / "cppe5", split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (6, 3)
    assert tuple(train.class_names) == NAMES and train.classes.ids == (1, 2, 3, 4, 5)
    assert sorted({int(label) for record in train.records for label in record.labels}) == [0, 1, 2, 3, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cppe5", "dataset.tar.gz", "home"]
    # again: there already; elsewhere: from the archive in the cache
    with pytest.raises(DetrkitError, match="exists already; choose another output folder or pass force"):
        run()
    assert run("--to", "again") == 0
    assert server.requests == [None]


def test_cut_connection_is_resumed(server: Server, tmp_path: Path) -> None:
    whole = len(server.content)
    server.cut = [10_000, 7_000]
    root = download_cppe5(tmp_path / "one")
    assert server.requests == [None, "bytes=10000-", "bytes=17000-"] and len(open_dataset(root, split="train")) == 6
    (tmp_path / "home/datasets/cppe5-dataset.tar.gz").unlink()
    # for good: the next call goes on, and no other mirror is asked to begin anew
    server.requests.clear()
    server.cut = [12_000] + [0] * downloading.ATTEMPTS
    with pytest.raises(DetrkitError, match="12,000 bytes are kept, run again to continue"):
        download_cppe5(tmp_path / "two")
    assert not (tmp_path / "two").exists()
    server.requests.clear()
    assert len(open_dataset(download_cppe5(tmp_path / "two"), split="train")) == 6
    assert server.requests == ["bytes=12000-"] and whole > 17_000


def test_wrong_md5(server: Server, tmp_path: Path) -> None:
    server.content = server.content[:-1] + b"!"
    with pytest.raises(DetrkitError, match=r"not the expected file: its MD5 starts with .*--archive dataset\.tar\.gz"):
        download_cppe5(tmp_path / "cppe5")
    assert not (tmp_path / "cppe5").exists() and list((tmp_path / "home/datasets").iterdir()) == []


def test_next_mirror(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(b"<html>quota exceeded</html>", "/download?id=1&confirm=t") as other:
        monkeypatch.setattr(cppe5, "URLS", (other.url, server.url))
        assert len(open_dataset(download_cppe5(tmp_path / "cppe5"), split="test")) == 3
    assert (other.requests, server.requests) == ([None], [None])


def test_offline(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/dataset.tar.gz"  # bound but not listening: refused
        monkeypatch.setattr(cppe5, "URLS", (url, url + "?mirror"))
        with pytest.raises(DetrkitError) as error:
            download_cppe5(tmp_path / "cppe5")
    line = str(error.value)
    assert "\n" not in line and url in line and f"{url}?mirror" in line and "refused" in line
    assert "detrkit data download cppe5 --archive dataset.tar.gz" in line
    assert run("--to", tmp_path / "cppe5", "--archive", archive) == 0  # as the line says
    assert len(open_dataset(tmp_path / "cppe5", split="train")) == 6 and archive.exists()


def test_archive_of_another_content(archive: Path, tmp_path: Path) -> None:
    archive.write_bytes(archive.read_bytes() + b"!")
    with pytest.raises(DetrkitError, match=rf"is not the published dataset\.tar\.gz: its MD5 is .*, not {cppe5.MD5}"):
        download_cppe5(tmp_path / "cppe5", archive=archive)
    with pytest.raises(DetrkitError, match="not a regular file"):
        download_cppe5(tmp_path / "cppe5", archive="/dev/zero")
    with pytest.raises(DetrkitError, match=r"none\.tar\.gz: cannot be read"):
        download_cppe5(tmp_path / "cppe5", archive=tmp_path / "none.tar.gz")


@pytest.mark.parametrize("wrapped", ["dataset/", "./", "a/b/"])
def test_folder_around_it(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrapped: str) -> None:
    published(write_tar(archive, wrapped=wrapped), monkeypatch)
    root = download_cppe5(tmp_path / "cppe5", archive=archive)
    assert {p.name for p in root.iterdir()} == {"annotations", "images", "detrkit-files.json"}
    assert len(open_dataset(root, split="train")) == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"../outside.txt": b"x"}, "not unpacked, it is not safe"),
        ({"images/../../outside.txt": b"x"}, "not unpacked, it is not safe"),
    ],
)
def test_archive_that_writes_elsewhere(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: dict[str, bytes], message: str
) -> None:
    published(write_tar(archive, extra=content), monkeypatch)
    with pytest.raises(DetrkitError, match=message):
        download_cppe5(tmp_path / "new" / "cppe5", archive=archive)
    assert list((tmp_path / "new").iterdir()) == [] and not (tmp_path / "outside.txt").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_archive_with_links(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: bytes) -> None:
    """Also those that stay inside."""
    with tarfile.open(archive, "w:gz") as tar:
        info = tarfile.TarInfo("images/1.png")
        info.type, info.linkname = kind, "images/2.png"
        tar.addfile(info)
    with pytest.raises(DetrkitError, match=r"not safe \('images/1\.png' is a link or a device\)"):
        download_cppe5(tmp_path / "cppe5", archive=published(archive, monkeypatch))
    assert not (tmp_path / "cppe5").exists()


@pytest.mark.parametrize(("limit", "value"), [("_MAX_FILES", 5), ("_MAX_BYTES", 5000)])
def test_archive_that_fills_the_disk(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(cppe5, limit, value)
    with pytest.raises(DetrkitError, match="not safe \\(it holds more than "):
        download_cppe5(tmp_path / "cppe5", archive=archive)
    assert not (tmp_path / "cppe5").exists()


@pytest.mark.parametrize("damage", ["half", "none"])
def test_damaged_archive(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2] if damage == "half" else b"no archive at all")
    with pytest.raises(DetrkitError, match=r"dataset\.tar\.gz: damaged archive"):
        download_cppe5(tmp_path / "cppe5", archive=published(archive, monkeypatch))
    assert not (tmp_path / "cppe5").exists()


def test_archive_is_no_dataset_to_open(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(DetrkitError, match=r"dataset\.tar\.gz is an archive: unpack it .*detrkit data download"):
        open_dataset(archive)
    download_cppe5(tmp_path / "unpacked" / "dataset", archive=archive)
    with pytest.raises(DetrkitError, match=r"unpacked: no layout recognized, but .*unpacked/dataset has one"):
        open_dataset(tmp_path / "unpacked")


def test_images_of_another_size(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    published(write_tar(archive, misfit=True), monkeypatch)
    root = tmp_path / "cppe5"
    assert run("--to", root, "--archive", archive) == 0
    assert "│ train │ 6 │ 1 │ 21 │" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(DetrkitError, match=r"1\.png: the image is 71x51 pixels but its annotations say 61x41"):
        open_dataset(root, split="train")[0]
    splits = open_splits(load_config("cppe5", data=str(root)))
    assert (len(splits.train), splits.train.skipped) == (5, 1) and splits.val is not None and len(splits.val) == 3
    assert "1 images of train are left out; `detrkit data check` says why" in capsys.readouterr().out
    assert [splits.train[k].image_id for k in range(5)] == [2, 3, 4, 5, 6]
    (root / "images/2.png").unlink()
    (root / "images/3.png").write_bytes(b"")
    assert open_dataset(root, split="train", unusable="skip").skipped == 3
    with pytest.raises(DetrkitError, match='choose "error" or "skip"'):
        open_dataset(root, split="train", unusable="ignore")  # type: ignore[arg-type]


def test_recipe() -> None:
    config = load_config("cppe5")
    optim = config.optim
    assert (config.data.train_split, config.data.val_split, config.data.unusable) == ("train", "test", "skip")
    assert config.data.batch_size * optim.accumulate == 16
    assert (optim.epochs, optim.lr, optim.schedule, optim.lr_drop, optim.weight_decay) == (50, 1e-4, "step", 40, 1e-4)
    assert config.model.name == "deformable-detr-r50-refine"
