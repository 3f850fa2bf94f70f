"""The logs of a run: whole lines only, and no trouble with TensorBoard ends a run."""

import os

import pytest

from detrkit.engine.logs import CsvLog, TensorBoardLog
from detrkit.utils.errors import DetrkitError, WriteError
from helpers.disk import full_disk


def write(path, steps):
    log = CsvLog(path, key="step")
    for step in steps:
        log.add({"step": step, "loss": step / 7})
    return log


def test_a_full_disk_leaves_whole_lines_and_the_next_run_the_same_bytes(tmp_path):
    write(tmp_path / "whole.csv", range(1, 8))
    file = tmp_path / "steps.csv"
    log = write(file, range(1, 4))
    before = file.read_bytes()
    with pytest.raises(WriteError, match=r"^cannot write .*steps\.csv: File too large$"), full_disk(len(before) + 5):
        log.add({"step": 4, "loss": 4 / 7})
    assert file.read_bytes() == before
    log = CsvLog(file, key="step")
    log.keep_before(3)  # the state is that of step 2
    for step in range(3, 8):
        log.add({"step": step, "loss": step / 7})
    assert file.read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-7],
        lambda b: b + b"37",
        lambda b: b + bytes(40),
        lambda b: b[:-20] + bytes(20),
        lambda b: b + b"5\r\n",
    ],
)
def test_what_a_kill_or_a_power_cut_left_is_dropped(damage, tmp_path):
    write(tmp_path / "whole.csv", range(1, 8))
    file = tmp_path / "steps.csv"
    write(file, range(1, 6))
    file.write_bytes(damage(file.read_bytes()))
    log = CsvLog(file, key="step")
    log.keep_before(4)
    for step in range(4, 8):
        log.add({"step": step, "loss": step / 7})
    assert file.read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.parametrize("content", [b"", bytes(300)])
def test_a_log_without_a_whole_line_begins_anew(content, tmp_path):
    file = tmp_path / "steps.csv"
    file.write_bytes(content)
    CsvLog(file, key="step").keep_before(3)
    write(file, [3])
    assert file.read_bytes() == b"step,loss\r\n3,0.42857142857142855\r\n"


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", bytes(range(256)), b"step,step\n1,2\n"])
def test_another_file_is_refused_and_kept(content, tmp_path):
    file = tmp_path / "steps.csv"
    file.write_bytes(content)
    with pytest.raises(DetrkitError, match=r"^[^\n]*steps\.csv: damaged[^\n]*move it away$"):
        CsvLog(file, key="step")
    assert file.read_bytes() == content


def test_a_log_that_has_been_deleted_is_begun_anew_and_a_folder_is_not(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    log = write(folder / "steps.csv", [1, 2])
    (folder / "steps.csv").unlink()
    log.add({"step": 3, "loss": 0.5})
    assert (folder / "steps.csv").read_bytes() == b"step,loss\r\n3,0.5\r\n"
    folder.rename(tmp_path / "moved")
    with pytest.raises(WriteError, match=r"run is gone: it has been deleted or renamed$"):
        log.add({"step": 4, "loss": 0.5})
    assert os.listdir(tmp_path) == ["moved"]


def points(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, round(e.value, 4)) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_tensorboard_reads_what_is_written_and_forgets_what_a_resumed_run_does_again(tmp_path):
    board = TensorBoardLog(tmp_path, on=True, purge_step=1)
    for step in (1, 2, 3):
        board.add({"loss": step / 10, "note": "text", "lr": 1}, step)
    assert points(tmp_path) == {"loss": [(1, 0.1), (2, 0.2), (3, 0.3)], "lr": [(1, 1), (2, 1), (3, 1)]}
    (first,) = tmp_path.iterdir()
    first.rename(first.with_name(first.name.replace("tfevents.", "tfevents.0")))  # as if begun earlier
    TensorBoardLog(tmp_path, on=True, purge_step=3).add({"loss": 0.5, "lr": 1}, 3)
    assert points(tmp_path)["loss"] == [(1, 0.1), (2, 0.2), (3, 0.5)]


def test_trouble_with_tensorboard_is_said_once(tmp_path, capsys):
    board = TensorBoardLog(tmp_path, on=True)
    with full_disk(0):
        for step in (1, 2):
            board.add({"loss": 0.5}, step)
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert said.startswith(f"warning: cannot write {tmp_path}/events")
    assert said.endswith(": File too large; the run goes on without TensorBoard\n")
    (tmp_path / "file").write_text("")
    TensorBoardLog(tmp_path / "file", on=True).add({"loss": 0.5}, 1)
    assert "file is a file" in capsys.readouterr().out
