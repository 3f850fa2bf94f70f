"""A process that another one of detrkit has started ends with it, however that one ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress

LAUNCHER = "DETRKIT_LAUNCHER"  # in the environment of the processes of `--devices`: their launcher's number
_PR_SET_PDEATHSIG = 1


def end_with_launcher() -> None:
    """In one of the processes that `--devices` starts: has the system kill it at its launcher's end (Linux).

    The launcher is the first process and writes what there is to be written, so that nothing is lost.
    """
    text = os.environ.get(LAUNCHER, "")
    if text.isdecimal():
        end_with_parent(int(text))


def end_with_parent(parent: int) -> None:
    """Has the system kill this process at its parent's end, at once if that has ended already (Linux; else nothing).

    The system takes the thread that started the process for its parent: that has to be one that lasts.

    Args:
        parent: its number, as the parent itself knows it.
    """
    if sys.platform != "linux":
        return
    if os.getppid() == parent:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent and not lives(parent):  # before the call, or a moment after the question
        os._exit(128 + signal.SIGKILL)


def lives(process: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
