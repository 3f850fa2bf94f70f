"""Child processes of detrkit that end with their parent, however the parent ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress

LAUNCHER = "DETRKIT_LAUNCHER"  # environment variable of the processes of `--devices`: their launcher's pid
_PR_SET_PDEATHSIG = 1


def end_with_launcher() -> None:
    """Have the system kill this process, if `--devices` started it, when its launcher ends (Linux).

    The launcher is the first process and writes all files, so that nothing is lost.
    """
    text = os.environ.get(LAUNCHER, "")
    if text.isdecimal():
        end_with_parent(int(text))


def end_with_parent(parent: int) -> None:
    """Have the system kill this process when its parent ends, at once if it has ended already (Linux; else nothing).

    The system regards the thread that started the process as its parent: that thread must outlive it.

    Args:
        parent: its pid in its own PID namespace.
    """
    if sys.platform != "linux":
        return
    if os.getppid() == parent:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent and not is_running(parent):  # the parent ended before the call, or just after the check
        os._exit(128 + signal.SIGKILL)


def is_running(process: int) -> bool:
    """Return whether there is a process of this number."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
