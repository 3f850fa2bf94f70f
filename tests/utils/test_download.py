"""Downloads against a server on this machine that misbehaves as asked."""

from __future__ import annotations

import hashlib
import os
import socket
import threading

import pytest

from detrkit.utils import download as module
from detrkit.utils.download import DownloadError, download, home, md5
from detrkit.utils.errors import DetrkitError
from helpers.file_server import serving

CONTENT = bytes(range(256)) * 2000  # 512 000 bytes
PREFIX = hashlib.sha256(CONTENT).hexdigest()[:8]


@pytest.fixture
def server():
    with serving(CONTENT, f"/files/model-{PREFIX}.pth") as server:
        yield server


def get(server, folder):
    return download(server.url, sha256_prefix=PREFIX, folder=folder, pause=0.0)


def test_fetches_once_and_leaves_nothing_else(server, tmp_path):
    path = get(server, tmp_path / "new" / "folder")
    assert path.read_bytes() == CONTENT
    assert get(server, path.parent) == path
    assert server.requests == [None]
    assert [p.name for p in path.parent.iterdir()] == [f"model-{PREFIX}.pth"]


def test_resumes_a_cut_connection(server, tmp_path):
    server.cut = [100_000, 200_000]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=100000-", "bytes=300000-"]


def test_resumes_in_a_later_call(server, tmp_path):
    server.cut = [100_000] + [0] * module.ATTEMPTS
    with pytest.raises(DetrkitError, match=r"100,000 bytes are kept, run again"):
        get(server, tmp_path)
    assert not (tmp_path / f"model-{PREFIX}.pth").exists()
    server.requests.clear()
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == ["bytes=100000-"]


def test_server_without_ranges_starts_over(server, tmp_path):
    server.ranges, server.cut = False, [100_000]
    assert get(server, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"x" * 1000, CONTENT, CONTENT + b"more"], ids=["foreign", "complete", "too long"])
def test_what_was_left_behind(server, tmp_path, left):
    (tmp_path / f"model-{PREFIX}.pth.part").write_bytes(left)
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_wrong_file(server, tmp_path):
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(DetrkitError, match=rf"not the expected file.*not with {PREFIX}"):
        get(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_md5_where_that_is_what_is_published(server, tmp_path):
    digest = hashlib.md5(CONTENT).hexdigest()
    path = download(server.url, md5_digest=digest, folder=tmp_path, name="data.tar.gz", pause=0.0)
    assert path == tmp_path / "data.tar.gz" and path.read_bytes() == CONTENT and md5(path) == digest
    server.content = CONTENT[:-1] + b"!"
    path.unlink()
    with pytest.raises(DownloadError, match=f"its MD5 starts with .{{8}}, not with {digest[:8]}$") as error:
        download(server.url, md5_digest=digest, folder=tmp_path, name="data.tar.gz", pause=0.0)
    assert error.value.reason.startswith("not the expected file") and list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="either"):
        download(server.url, folder=tmp_path)


def test_damaged_cache_is_replaced(server, tmp_path):
    (tmp_path / f"model-{PREFIX}.pth").write_bytes(CONTENT[:1000])
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_server_errors(server, tmp_path):
    server.status = [503, 503]
    assert get(server, tmp_path).read_bytes() == CONTENT
    (tmp_path / f"model-{PREFIX}.pth").unlink()
    server.status = [404]
    with pytest.raises(DetrkitError, match="HTTP 404"):
        get(server, tmp_path)


def test_offline_says_which_file_goes_where(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/model.pth"  # bound but not listening: refused
        with pytest.raises(DetrkitError) as error:
            download(url, sha256_prefix=PREFIX, folder=tmp_path, pause=0.0)
    assert url in str(error.value) and str(tmp_path / "model.pth") in str(error.value)
    (tmp_path / "model.pth").write_bytes(CONTENT)
    assert download(url, sha256_prefix=PREFIX, folder=tmp_path).read_bytes() == CONTENT


def test_two_at_once(server, tmp_path):
    found = []
    threads = [threading.Thread(target=lambda: found.append(get(server, tmp_path).read_bytes())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 4
    assert [p.name for p in tmp_path.iterdir()] == [f"model-{PREFIX}.pth"]


def test_home(monkeypatch, tmp_path):
    monkeypatch.setenv("DETRKIT_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.delenv("DETRKIT_HOME")
    assert home().parts[-2:] == (".cache", "detrkit")
    monkeypatch.setenv("DETRKIT_HOME", "~nosuchuser/x")
    with pytest.raises(DetrkitError, match=r"^~nosuchuser/x: no such home folder: set DETRKIT_HOME"):
        home()


def test_unwritable_folder(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DetrkitError, match="DETRKIT_HOME"):
        get(server, tmp_path / "file")


@pytest.mark.parametrize("suffix", ["", ".part"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_what_is_no_file_in_the_cache_is_not_waited_for(server, tmp_path, kind, suffix):
    place = tmp_path / f"model-{PREFIX}.pth{suffix}"
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("/dev/zero")
    with pytest.raises(DetrkitError, match=rf"^{place}: not a regular file, in the place of a download: remove it"):
        get(server, tmp_path)
    assert server.requests == []


@pytest.mark.parametrize("target", ["nowhere", "itself"])
def test_a_link_to_nothing_in_the_cache_is_replaced(server, tmp_path, target):
    place = tmp_path / f"model-{PREFIX}.pth"
    place.symlink_to(place if target == "itself" else tmp_path / target)
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert [(p.name, p.is_symlink()) for p in tmp_path.iterdir()] == [(f"model-{PREFIX}.pth", False)]
