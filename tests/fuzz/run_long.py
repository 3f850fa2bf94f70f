"""Runs the fuzz test for minutes instead of seconds: `python tests/fuzz/run_long.py --minutes 12 [coco state ...]`.

Every round has another seed. What fails is printed as hypothesis shrank it, with the seed that finds it again, and the
next round goes on. Exit status 1 if anything failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

READERS = ("coco", "panoptic", "voc", "yolo", "parquet", "settings")
CHECKPOINTS = ("safetensors", "state", "official", "hub")
KINDS = (*READERS, *CHECKPOINTS)
HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=KINDS, metavar="KIND", help=f"of {', '.join(KINDS)}; default: all")
    parser.add_argument("--minutes", type=float, default=12, help="for each kind")
    parser.add_argument("--examples", type=int, default=500, help="in a round")
    parser.add_argument("--seed", type=int, default=1, help="of the first round")
    given = parser.parse_args()
    failed = 0
    for kind in given.kinds:
        began, seed, rounds = time.monotonic(), given.seed, 0
        while time.monotonic() - began < 60 * given.minutes:
            words = [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-x",
                "-p",
                "no:cacheprovider",
                "--show-capture=no",
                f"--hypothesis-seed={seed}",
            ]
            file = "test_fuzz_checkpoints.py" if kind in CHECKPOINTS else "test_fuzz_readers.py"
            words += [str(HERE / file), "-k", f"test_any_files and {kind}"]
            environment = {**os.environ, "DETRKIT_FUZZ_EXAMPLES": str(given.examples)}
            done = subprocess.run(words, env=environment, capture_output=True, text=True)
            if done.returncode != 0:
                failed += 1
                print(
                    f"== {kind}, seed {seed}: status {done.returncode}\n{done.stdout[-6000:]}{done.stderr[-2000:]}",
                    flush=True,
                )
            seed, rounds = seed + 1, rounds + 1
        spent = (time.monotonic() - began) / 60
        print(
            f"{kind}: {rounds} rounds of up to {given.examples} examples in {spent:.1f} min, {failed} failed so far",
            flush=True,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
