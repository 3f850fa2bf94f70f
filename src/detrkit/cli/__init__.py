"""The command line: each command is a dataclass with `run()`; this module combines them."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, TextIO

from detrkit import __version__
from detrkit.cli.commands import command_of, family_help, find_command, overview
from detrkit.utils.errors import DetrkitError, Interrupted, PeerError
from detrkit.utils.launch import FIRST_PROCESS, check_ranks, several
from detrkit.utils.memory import MAPPING_FIX, is_out_of_memory
from detrkit.utils.parent import end_with_launcher
from detrkit.utils.signals import SignalWatch, Stopped, number_of
from detrkit.utils.streams import BROKEN_PIPE, Streams, lossy_streams
from detrkit.utils.visible import one_line, visible
from detrkit.utils.workers import loading_failure

# errors of the machine and not of the command: a full disk, no file handles left, a broken disk
_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.EIO, errno.EROFS)
_SHARED_OBJECT = re.compile(r"\.so(\.\d+)*(?![\w.])")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the words after `detrkit`; by default those of the process.

    Returns:
        The exit status: 0 done, 1 the command's answer is no (faults found, nothing learned), 2 bad input, with
        one line on stderr; 128 + n when a signal stopped it.
    """
    warnings.showwarning = _print_warning
    # Torch's OpenMP threads wait for each other by spinning: when another process uses the CPU, for threads that do not
    # run. Training the quickstart on two cores beside one busy process took over 300 ms per image, with short spinning
    # 36 ms; alone 12 to 15 ms either way. libgomp reads this when torch is imported, which has not happened yet.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    # What MPS has no kernel for, such as the gradient of grid_sample, is computed on the CPU; torch reads this, too.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    words = list(sys.argv[1:] if argv is None else argv)
    program = argv is None
    end_with_launcher()
    with lossy_streams(program=program) as streams:
        try:
            with SignalWatch(program=program):
                status = _run(words, streams)
        except SystemExit as leave:  # of --help and of words that no command takes
            raise SystemExit(streams.status(int(leave.code or 0))) from None
        return streams.status(status)


def _run(words: Sequence[str], streams: Streams) -> int:
    """Run a command and return its status; an error is printed in one line, by one of several processes."""
    streams.out.patient = False
    try:
        if list(words) in (["--version"], ["-V"], ["version"]):
            print(f"detrkit {__version__}")
            return 0
        command = _parse(words, check=True)
        _check_working_directory()
        streams.out.patient = command_of(command).in_files
        _check_values(command)
        check_ranks()
        if _has_nothing_to_do(command):
            return 0
        # several processes must end together, which the checks inside the command see to
        if hasattr(command, "check") and not several():
            command.check()
        status = int(command.run())
        return _leave_processes() or status
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, Interrupted) and error.agreed:  # a process that leaves alone would wait for the others
            _leave_processes()
        end, job = _ending(error), _job()
        if job is not None:
            status, lines = end or (1, traceback.format_exc().splitlines())
            job.fail(error, lines, status)
        if end is None:
            raise
        status, lines = end
        if FIRST_PROCESS or not isinstance(error, Interrupted | KeyboardInterrupt):
            for line in lines:
                print(line, file=sys.stderr)
        return status


def _ending(error: BaseException) -> tuple[int, list[str]] | None:
    """Return status and message for an error that ends a command; None if it may be a bug of detrkit."""
    if isinstance(error, PeerError):
        return error.status, []
    if isinstance(error, BrokenPipeError):  # the reader of a pipe has left: no traceback
        return BROKEN_PIPE, []
    if isinstance(error, Interrupted):
        return 128 + error.number, [f"detrkit: {error}"]
    if isinstance(error, KeyboardInterrupt):
        return 128 + number_of(error), [f"detrkit: {Stopped(number_of(error))}"]
    status, reason = 2, None
    if isinstance(error, DetrkitError):
        status, reason = error.status, visible(str(error))
    elif isinstance(error, UnicodeEncodeError) and error.encoding != "utf-8":
        reason = (
            f"{visible(str(error.object))}: the encoding of this locale, {error.encoding}, cannot name it: set "
            "LC_ALL=C.UTF-8 or PYTHONUTF8=1"
        )
    elif (failure := loading_failure(error)) is not None:  # at any moment, when a signal ends the process
        reason = failure
    elif isinstance(error, MemoryError | RuntimeError | ImportError | OSError):
        reason = _of_the_machine(error)
    return None if reason is None else (status, [f"detrkit: error: {reason}"])


def _check_working_directory() -> None:
    """Check that the working directory exists: without it relative paths fail, and libraries end the process.

    Raises:
        DetrkitError: it has been deleted.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise DetrkitError(f"the working directory cannot be entered ({error.strerror}): cd to another one") from error


def _of_the_machine(error: Exception) -> str | None:
    """Describe an error in one line that is not of detrkit's own code; return None if it may be."""
    library = next(filter(_SHARED_OBJECT.search, str(error).splitlines()), None)
    of_loader = isinstance(error, ImportError) or (isinstance(error, OSError) and error.filename is None)
    if of_loader and library is not None:
        return f"cannot load a library: {one_line(library.strip())}{MAPPING_FIX if is_out_of_memory(error) else ''}"
    if is_out_of_memory(error):
        reason = one_line(str(error).partition(". ")[0].partition("\n")[0])
        return f"out of memory: {reason}; smaller images, a smaller batch or a smaller model need less"
    if isinstance(error, OSError) and error.filename is not None:
        # Python's own message for a file: in a folder that may not be entered, even asking what a file is raises
        return f"{visible(str(error.filename))}: {error.strerror}"
    if "initialize cpuinfo" in str(error):
        return f"{one_line(str(error))} torch reads the CPU's features from /proc and /sys: mount them"
    if isinstance(error, FileNotFoundError) and "temporary directory" in str(error):
        return "no folder for temporary files can be written: set TMPDIR to one"
    if isinstance(error, OSError) and error.errno in _TROUBLE:
        return f"{error.strerror}"
    return None


def _has_nothing_to_do(command: Any) -> bool:
    """Return whether the command works in one process and this is not the first of several.

    Raises:
        DetrkitError: several processes for a command that trains or measures in one process alone.
    """
    processes = command_of(command).processes
    if processes == "several" or not several():
        return False
    if processes == "alone":
        raise DetrkitError("this command works in one process: start it without torchrun and srun")
    if FIRST_PROCESS:
        print("detrkit: this command works in one process: the others that were started do nothing", file=sys.stderr)
    return not FIRST_PROCESS


def _job() -> Any:
    """Return the job of the processes that this command runs in, or None for a single process."""
    job = sys.modules.get("detrkit.engine.job")
    return None if job is None else job.Job.current


def _leave_processes() -> int:
    """Leave the processes of the command; return the status of those that this one started."""
    if "detrkit.engine.job" not in sys.modules:  # nothing was joined; the import takes two seconds
        return 0
    from detrkit.engine.processes import leave_processes

    return leave_processes()


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as one line, without the source line, which is of no use on the command line."""
    if issubclass(category, UserWarning):
        print(f"warning: {one_line(str(message))}", file=sys.stderr)


def _parse(words: Sequence[str], *, check: bool = False) -> Any:
    """Return the command of a command line, an instance of its dataclass.

    Args:
        words: of the command line.
        check: also check the paths and names in it as far as the command's defaults depend on them.

    Raises:
        UsageError: words that no command takes.
        SystemExit: help was asked for, and is printed.
    """
    words = list(words)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if not words or words[0] in ("-h", "--help", "--help-all"):
        print(overview(__version__))
        raise SystemExit(0)
    command, rest = find_command(words)
    if isinstance(command, str):
        print(family_help(command))
        raise SystemExit(0)
    from detrkit.cli.parsing import parse  # tyro and the command's own module: 0.2 s that the texts above do without

    return parse(command, rest, check=check)


def _check_values(command: Any) -> None:
    from detrkit.utils.ranges import as_option, check_values

    check_values(command, format_field=as_option)
