"""Standard output and standard error that cannot be written: lines are lost, work is not."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from detrkit.cli import main
from detrkit.utils.streams import BROKEN_PIPE, LossyStream, Streams, lossy_streams

FULL = "/dev/full"
pytestmark = pytest.mark.skipif(not os.path.exists(FULL), reason="needs /dev/full")


def _piped() -> io.TextIOWrapper:
    """A pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


@pytest.mark.parametrize("patient", [True, False])
def test_a_full_disk(patient):
    error = io.StringIO()
    with open(FULL, "w") as full:
        streams = Streams(LossyStream(full), LossyStream(error))
        streams.out.patient = patient
        for _ in range(3):
            assert streams.out.write("a line\n" * 5000) == 35000
            streams.out.flush()
        assert streams.status(0) == (0 if patient else 2)
        assert streams.status(1) == 1
    said = "standard output: No space left on device: what should be there is lost\n"
    assert error.getvalue().splitlines(True)[0] == f"detrkit: {'' if patient else 'error: '}{said}"


def test_a_reader_that_leaves():
    for patient, status in ((True, 1), (False, BROKEN_PIPE)):
        error = io.StringIO()
        with _piped() as pipe:
            streams = Streams(LossyStream(pipe), LossyStream(error))
            streams.out.patient = patient
            print("a line", file=streams.out)  # held back
            assert streams.status(1) == status and error.getvalue() == ""
    with _piped() as pipe:
        stream = LossyStream(pipe)
        stream.patient = False
        with pytest.raises(BrokenPipeError):
            print("a line", file=stream, flush=True)
        print("another one", file=stream, flush=True)  # once is enough


def test_streams_are_put_back():
    before = sys.stdout, sys.stderr
    with lossy_streams(program=False) as streams:
        assert (sys.stdout, sys.stderr) == (streams.out, streams.err)
    assert (sys.stdout, sys.stderr) == before


def test_a_closed_stream(monkeypatch, capsys):
    """As Python has it: there is no stream, and print(file=None) would go to the other one."""
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["predict", "nothing.pt", "nowhere"]) == 2
    assert capsys.readouterr().out == "" and sys.stderr is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "status", "error"),
    [
        ("models > /dev/full", 2, "detrkit: error: standard output: No space left on device: what should be there"),
        ("models | true", 141, ""),
        ("convert nowhere.pth out.safetensors <&- >&- 2> said", 2, ""),
    ],
)
def test_a_command_whose_output_goes_nowhere(tmp_path, words, status, error):
    """The file that is opened next must not get the number of a closed stream, into which libraries write."""
    command = f'"{sys.executable}" -m detrkit {words}'
    script = f"{command}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith(error) and len(done.stderr.splitlines()) == bool(error)
    said = tmp_path / "said"
    assert not said.exists() or said.read_text().startswith("detrkit: error: nowhere.pth")


@pytest.mark.slow
@pytest.mark.parametrize("columns", ["1", "-5", "999999999"])
def test_a_terminal_of_any_width(capsys, monkeypatch, columns):
    """In one column the layout of a help text has no end."""
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit) as leave:
        main(["data", "check", "--help"])
    out = capsys.readouterr().out
    assert leave.value.code == 0 and "usage: detrkit data check" in out
    assert max(map(len, out.splitlines())) <= 1000 and os.environ["COLUMNS"] == columns
    assert main(["models"]) == 0
    assert "detr-r50" in capsys.readouterr().out
