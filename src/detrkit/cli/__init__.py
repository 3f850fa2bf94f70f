"""The command line: each command is a dataclass with `run()`; this module combines them."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, TextIO

import tyro

from detrkit import __version__
from detrkit.cli.bench import Bench
from detrkit.cli.compare import Compare
from detrkit.cli.convert import Convert
from detrkit.cli.data import DataCommand
from detrkit.cli.evaluate import Eval
from detrkit.cli.models import Models
from detrkit.cli.predict import Predict
from detrkit.cli.quickstart import Quickstart
from detrkit.cli.reproduce import Reproduce
from detrkit.cli.study import Study
from detrkit.cli.train import Train, with_defaults, with_values
from detrkit.utils.console import FIRST_PROCESS, MAX_COLUMNS, MIN_COLUMNS
from detrkit.utils.errors import DetrkitError, Interrupted, PeerError
from detrkit.utils.launch import check_ranks, several
from detrkit.utils.memory import MAPPING_FIX, is_out_of_memory
from detrkit.utils.parent import end_with_launcher
from detrkit.utils.ranges import as_option, check_values
from detrkit.utils.signals import SignalWatch, Stopped, number_of
from detrkit.utils.streams import BROKEN_PIPE, Streams, lossy_streams
from detrkit.utils.visible import one_line, visible
from detrkit.utils.workers import loading_failure

_FILES = (Quickstart, Train, Study, Eval, Predict, Reproduce)  # their results go into files, not to the terminal
# errors of the machine and not of the command: a full disk, no file handles left, a broken disk
_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.EIO, errno.EROFS)
_SHARED_OBJECT = re.compile(r"\.so(\.\d+)*(?![\w.])")
_ABOUT = "The toolkit for the DETR family: train, evaluate and use detection transformers on any data, on any machine."


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
        if list(words) == ["--version"]:
            print(f"detrkit {__version__}")
            return 0
        command: Any = _parse(words)
        _check_working_directory()
        streams.out.patient = isinstance(command, _FILES)
        check_values(command, format_field=as_option)
        check_ranks()
        if _has_nothing_to_do(command):
            return 0
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
    if isinstance(command, (Train, Study, Eval, Reproduce)) or not several():
        return False
    if isinstance(command, (Quickstart, Bench)):
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
    if "torch" not in sys.modules:  # some commands do without it
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


def _parse(words: Sequence[str]) -> Any:
    sub = tyro.conf.subcommand
    defaults = Train()
    if words[:1] == ["train"]:
        defaults, words = with_defaults(words), with_values(words)
    commands = (
        Annotated[Quickstart, sub("quickstart")]
        | Annotated[Train, sub("train", default=defaults)]
        | Annotated[Study, sub("study")]
        | Annotated[Eval, sub("eval")]
        | Annotated[Predict, sub("predict")]
        | Annotated[Reproduce, sub("reproduce")]
        | Annotated[DataCommand, sub("data", description="Check, convert, generate, preview and download datasets.")]
        | Annotated[Models, sub("models")]
        | Annotated[Convert, sub("convert")]
        | Annotated[Compare, sub("compare")]
        | Annotated[Bench, sub("bench")]
    )
    with _wide_terminal():
        return tyro.cli(
            commands,
            prog="detrkit",
            description=_ABOUT,
            args=list(words) or ["--help"],
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )


@contextmanager
def _wide_terminal() -> Iterator[None]:
    """Replace the width of a very narrow or very wide terminal by one that a layout can be made for."""
    before = os.environ.get("COLUMNS")
    columns = shutil.get_terminal_size().columns
    os.environ["COLUMNS"] = str(min(max(columns, MIN_COLUMNS), MAX_COLUMNS))
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
