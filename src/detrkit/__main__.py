"""The program: `detrkit`, and `python -m detrkit` as torchrun starts it (`torchrun --nproc-per-node 8 -m detrkit`)."""

import sys


def main() -> int:
    """Run the command of the process; return its exit status.

    The command line takes a second to be imported, before any signal is looked at: Ctrl-C ends it without a traceback.
    """
    try:
        from detrkit.cli import main as run
    except KeyboardInterrupt:
        sys.stderr.write("detrkit: stopped by SIGINT\n")
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
