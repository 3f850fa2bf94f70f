"""Explanations of torch's errors about failed loading processes, in one line with a fix."""

from __future__ import annotations

import re

_FIXES = (
    (
        r"bus error|shared memory|\(shm\)|no space left",
        "shared memory (/dev/shm) is used up: give the machine or container more (docker run --shm-size=2g), or use "
        "fewer --workers or a smaller batch; --workers 0 needs none",
    ),
    (
        r"too many open files|ancdata|errno 24",
        "no more files may be opened: raise the limit (ulimit -n), or use fewer --workers; --workers 0 needs none",
    ),
    (
        r"worker.*(killed by signal|exited unexpectedly)",
        "killed, perhaps for want of memory: use fewer --workers or smaller images",
    ),
)
_OF_A_WORKER = re.compile(r"DataLoader worker|shared memory|\(shm\)|ancdata|Communication with the workers")


def loading_failure(error: BaseException) -> str | None:
    """Explain in one line why a loading process ended and how to fix it; return None for other errors.

    Args:
        error: raised while batches are loaded, or at any moment if a signal ended a process.
    """
    text = str(error)
    if not isinstance(error, RuntimeError | OSError) or not _OF_A_WORKER.search(text):
        return None
    fix = next((fix for pattern, fix in _FIXES if re.search(pattern, text, re.IGNORECASE | re.DOTALL)), None)
    if fix is None or ("Original Traceback" in text and fix is _FIXES[2][1]):
        return None  # an error in a worker's own code
    process = re.search(r"pid(?:\(s\))? ([\d, ]+)", text)
    return f"a process that loads images{f' ({process[1]})' if process else ''} has failed: {fix}"
