"""A terminal that closes takes standard output with it; the command goes on to where it can stop."""

from __future__ import annotations

import fcntl
import os
import pty
import subprocess
import sys
import termios

_COMMAND = """
import sys, time
from detrkit.utils.console import console
from detrkit.utils.signals import SignalWatch, Stopped
try:
    with SignalWatch() as watch, watch.waiting():
        console.print("ready")
        while not watch.asked:
            time.sleep(0.01)
        console.print("saving")
        print("saved", flush=True)
except Stopped as stop:
    with open(sys.argv[1], "w") as file:
        print(stop, file=file)
"""


def test_a_terminal_that_closes_does_not_keep_the_state_from_being_saved(tmp_path):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _COMMAND, str(tmp_path / "said")],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    said = b""
    while b"ready" not in said:
        said += os.read(ours, 100)
    os.close(ours)
    assert process.wait(60) == 0
    assert (tmp_path / "said").read_text() == "stopped by SIGHUP\n"
