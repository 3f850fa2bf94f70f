"""Whatever is written is whole or not there, and says in one line why not."""

import fcntl
import os
import signal
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from PIL import Image

from detrkit.utils.atomic import atomic_file, locked_temporary, write_atomic, write_errors
from detrkit.utils.errors import DetrkitError
from helpers.disk import full_disk


def test_replaces_and_leaves_nothing_else(tmp_path):
    write_atomic(tmp_path / "new" / "a.txt", "one")
    write_atomic(tmp_path / "new" / "a.txt", b"two")
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"two"
    assert os.listdir(tmp_path / "new") == ["a.txt"]


def test_an_error_inside_keeps_the_old_file(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(KeyError), atomic_file(file) as part:
        part.write_text("half")
        raise KeyError
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def save_torch(part):
    torch.save({"a": torch.zeros(90_000)}, part)


def save_tensors(part):
    part.write_bytes(safetensors.torch.save({"a": torch.zeros(90_000)}))


def save_picture(part):
    Image.effect_noise((400, 400), 80).save(part, format="PNG")


@pytest.mark.parametrize("write", [save_torch, save_tensors, save_picture])
def test_a_full_disk_is_one_line_and_changes_nothing(write, tmp_path):
    file = tmp_path / "last.pt"
    file.write_text("old")
    line = r"^cannot write .*last\.pt: [^;]*$"
    with pytest.raises(DetrkitError, match=line) as caught, full_disk(50_000), atomic_file(file) as part:
        write(part)
    assert "\n" not in str(caught.value)
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["last.pt"]


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes"), write_errors("x"):
        raise RuntimeError("shapes do not fit")


def test_a_name_as_long_as_names_may_be(tmp_path):
    file = tmp_path / ("é" * 125 + ".json")  # 255 bytes
    write_atomic(file, "{}")
    assert os.listdir(tmp_path) == [file.name]
    with pytest.raises(DetrkitError, match="File name too long"):
        write_atomic(tmp_path / ("x" * 256), "")
    assert os.listdir(tmp_path) == [file.name]


def test_a_folder_or_a_file_in_the_way(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(DetrkitError, match="a folder has this name"):
        write_atomic(tmp_path / "a", "")
    (tmp_path / "b").write_text("")
    with pytest.raises(DetrkitError, match="b is a file"):
        write_atomic(tmp_path / "b" / "c", "")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_permissions_and_links_stay(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "real.txt").chmod(0o640)
    (tmp_path / "link.txt").symlink_to("real.txt")
    write_atomic(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"
    assert (tmp_path / "real.txt").stat().st_mode & 0o777 == 0o640


HOLD = """
import sys, time
from detrkit.utils.atomic import atomic_file
with atomic_file(sys.argv[1]) as part:
    part.write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path):
    def begin(name):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path / name)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "ready\n"
        return process

    dead, living = begin("dead.txt"), begin("living.txt")
    try:
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        before = os.listdir(tmp_path)
        assert len(before) == 2
        write_atomic(tmp_path / "mine.txt", "")  # the first file that this process writes here
        left = sorted(os.listdir(tmp_path))
        assert left[0].startswith(".living.txt.detrkit-")
        assert left[1:] == ["mine.txt"]
    finally:
        living.kill()
        dead.wait(), living.wait()


@pytest.mark.parametrize("folder", [False, True])
def test_what_is_swept_before_it_is_locked_is_made_again(folder, tmp_path, monkeypatch):
    real, rivals = fcntl.flock, []

    def flock(handle, operation):
        if not rivals:  # another process has just found the temporary file, and is about to remove it
            rivals.append(os.open(tmp_path / os.listdir(tmp_path)[0], os.O_RDONLY))
            real(rivals[0], operation)
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked_temporary(tmp_path / "a", folder=folder) as part:
        assert not os.path.samestat(os.fstat(rivals[0]), part.stat())
    os.close(rivals[0])


def test_files_of_others_are_not_swept(tmp_path):
    other = tmp_path / ".notes.tmp"
    other.write_text("mine")
    write_atomic(tmp_path / "a", "")
    assert other.read_text() == "mine"
