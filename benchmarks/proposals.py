"""What two-stage models save in inference by scoring and boxing the tokens that become queries alone.

    python benchmarks/proposals.py

"all" reads `outputs.encoder`, which then computes classes and boxes of every token, as the losses need them and as the
original always does; "chosen" does not. Both make the same queries (tests/models/test_deferred_proposals.py).
"""

from __future__ import annotations

import argparse

import torch

from detrkit import build_model
from detrkit.profiling.floor import count_operations
from side_by_side import Report, add_options, by_turns

NAMES = ("deformable-detr-r50-two-stage", "h-deformable-detr-r50")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1199), metavar=("H", "W"), help="image, in pixels")
    add_options(parser, repeats=9)
    args = parser.parse_args()
    report = Report(f"Proposals of one image of {args.size[0]} x {args.size[1]} pixels")
    images = [torch.randn(3, *args.size, generator=torch.Generator().manual_seed(1))]
    for name in NAMES:
        torch.manual_seed(0)
        model = build_model(name).eval()
        ways = {"all": lambda m=model: m(images).encoder.boxes, "chosen": lambda m=model: m(images).boxes}
        with torch.inference_mode():
            tokens = model(images).encoder.boxes.shape[1]
            operations = {way: count_operations(run) for way, run in ways.items()}
            seconds = by_turns(ways, repeats=args.repeats, warmup=2)
        report.add(
            **{
                "model": name,
                "tokens": tokens,
                "queries": model.num_queries,
                "all, ms": 1000 * seconds["all"],
                "chosen, ms": 1000 * seconds["chosen"],
                "saved, ms": 1000 * (seconds["all"] - seconds["chosen"]),
                "saved, billion operations": (operations["all"] - operations["chosen"]) / 1e9,
                "of all operations, %": 100 * (1 - operations["chosen"] / operations["all"]),
            }
        )
    report.write(args.json)


if __name__ == "__main__":
    main()
