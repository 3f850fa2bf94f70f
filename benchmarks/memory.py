"""Measures the peak memory of a training step beside the authors' code: one process after the other, each alone.

    python benchmarks/memory.py --original PATH --json docs/measurements/memory.json
    python benchmarks/memory.py --original PATH --model detr-r50 --size 512x512 --batch 2

The steps are those of training.py, which also checks that both compute the same. On a CPU peak memory is the resident
size; "kept pages" is what detrkit does by itself, without them and with gradient checkpointing less is held.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from original_code import ARGUMENTS
from side_by_side import Report, Worker, add_options, checkout, serve
from training import batches, contender


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    checkout(parser, "--original", "facebookresearch/detr or, for deformable models, fundamentalvision/Deformable-DETR")
    parser.add_argument("--model", choices=list(ARGUMENTS), default="detr-r50-dc5")
    parser.add_argument("--size", default="800x1333", help="HEIGHTxWIDTH in pixels (default %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="images a step (default %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0, help="of images and objects (default %(default)s)")
    parser.set_defaults(batches=1, group=False, compile=False)
    add_options(parser, repeats=1)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        (part,) = batches(args)
        step = contender(args.worker, args)
        return serve(lambda: step(part))

    unkept = {"DETRKIT_RETAIN_FREED_MEMORY": "0"}
    workers: dict[str, tuple[str, dict[str, str]]] = {"original": ("original", {})} if args.original else {}
    if args.device == "cpu":
        workers |= {"detrkit, kept pages": ("32", {}), "detrkit, pages not kept": ("32", unkept)}
    else:
        workers |= {"detrkit": ("32", {})}
    workers |= {"detrkit, gradient checkpointing": ("32 checkpointed", {})}

    report = Report(f"Peak memory of a training step of {args.model}, {args.batch} image(s) of {args.size} pixels")
    first = 0.0
    for name, (words, environment) in workers.items():
        worker = Worker("--worker", words, environment=environment)
        began = time.perf_counter()
        for _ in range(args.repeats):
            worker()
        seconds = (time.perf_counter() - began) / args.repeats
        worker.close()
        first = first or worker.memory
        row: dict[str, Any] = {"": name, "peak memory, MiB": round(worker.memory), "a step, s": seconds}
        report.add(**row | {"share of the first": worker.memory / first})
    report.write(args.json)


if __name__ == "__main__":
    main()
