"""Times the ways to compute multi-scale deformable attention against each other, in one run.

    python benchmarks/ms_deform.py                        encoder and decoder at 800 x 1333, batch 1 and 8
    python benchmarks/ms_deform.py --batch 1 --queries 300 --dtype bfloat16
    python benchmarks/ms_deform.py --model deformable-detr-r50      a whole model, forward, with each way
    python benchmarks/ms_deform.py --other my_package.ops:my_attention
    python benchmarks/ms_deform.py --official functions.ms_deform_attn_func:MSDeformAttnFunction.apply

Every operator gets the same tensors: 4 levels, 8 heads of 32 channels, 4 points; an encoder's queries are the cells, a
decoder's are spread at random; points lie around their query with a deviation of 3 pixels. Results are compared with
the reference's before anything is timed, then the operators take turns; times are medians.

Bytes are those that must move at least once: forward the pixels of the value that points can touch, locations, weights
and output; backward these again, with the gradients of the three, whole. They are set against the bandwidth of copying
a large tensor in the same run. --other takes a function with the arguments of `detrkit.ops.ms_deform_attn`, --official
one with those of the original code's autograd function (value, shapes, level starts, locations, weights, im2col step).
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detrkit import build_model
from detrkit.ops import ms_deform_attn, ms_deform_backend

Operator = Callable[[Tensor, list[tuple[int, int]], Tensor, Tensor], Tensor]
HEADS, CHANNELS, POINTS, STRIDES = 8, 32, 4, (8, 16, 32, 64)


def shapes_of(height: int, width: int) -> list[tuple[int, int]]:
    return [(-(-height // s), -(-width // s)) for s in STRIDES]


def inputs(
    shapes: list[tuple[int, int]], batch: int, queries: int | None, *, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value, locations, weights and a gradient of the output; the encoder's queries when `queries` is None."""
    random = torch.Generator().manual_seed(0)
    cells = [
        torch.stack(torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")[::-1], -1)
        for h, w in shapes
    ]
    centres = torch.cat([c.reshape(-1, 2) for c in cells])  # (S, 2) xy
    centres = centres.expand(batch, -1, -1) if queries is None else torch.rand(batch, queries, 2, generator=random)
    s, q, levels = sum(h * w for h, w in shapes), centres.shape[1], len(shapes)
    sides = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float32)[:, None]
    offsets = torch.randn(batch, q, HEADS, levels, POINTS, 2, generator=random) * 3 / sides
    locations = centres[:, :, None, None, None] + offsets
    weights = torch.randn(batch, q, HEADS, levels * POINTS, generator=random).softmax(-1)
    value = torch.randn(batch, s, HEADS, CHANNELS, generator=random)
    grad = torch.randn(batch, q, HEADS * CHANNELS, generator=random)
    # locations and weights stay in float32, as under autocast
    return (
        value.to(device, dtype),
        locations.to(device),
        weights.view(batch, q, HEADS, levels, POINTS).to(device),
        grad.to(device, dtype),
    )


def backend(name: str) -> Operator:
    def run(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
        with ms_deform_backend(name):  # type: ignore[arg-type]
            return ms_deform_attn(value, shapes, locations, weights)

    return run


def imported(path: str) -> Any:
    module, _, names = path.partition(":")
    return reduce(getattr, names.split("."), importlib.import_module(module))


def official(path: str) -> Operator:
    """The original's autograd function behind our arguments; its tensors of shapes are made beforehand, as there."""
    apply, made = imported(path), {}

    def run(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
        key = tuple(shapes)
        if key not in made:
            sizes = torch.tensor(shapes, device=value.device)
            areas = sizes.prod(1)
            made[key] = sizes, torch.cat([areas.new_zeros(1), areas.cumsum(0)[:-1]])
        return apply(value, *made[key], locations.to(value.dtype), weights.to(value.dtype), 64)

    return run


def seconds(function: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def bandwidth(device: str) -> float:
    """Bytes a second of copying 256 MiB, reading and writing counted, the best of ten."""
    a = torch.zeros(1 << 26, device=device)
    b = torch.ones_like(a)
    return 2 * a.numel() * 4 / min(seconds(lambda: b.copy_(a), device) for _ in range(10))


def difference(got: list[Tensor], want: list[Tensor]) -> float:
    """The share of entries further than 1 % of the largest one from the reference's; a few slopes may flip at kinks."""
    far = [
        ((a.float() - b.float()).abs() > 0.01 * b.float().abs().max()).float().mean()
        for a, b in zip(got, want, strict=True)
    ]
    return max(float(f) for f in far)


def measure(args: argparse.Namespace, operators: dict[str, Operator], batch: int, queries: int | None) -> list[dict]:
    shapes = shapes_of(*args.size)
    dtype = getattr(torch, args.dtype)
    value, locations, weights, grad = inputs(shapes, batch, queries, dtype=dtype, device=args.device)
    leaves = [t.clone().requires_grad_() for t in (value, locations, weights)]

    def forward(operator: Operator) -> Tensor:
        with torch.no_grad():
            return operator(value, shapes, locations, weights)

    def both(operator: Operator) -> list[Tensor]:
        out = operator(leaves[0], shapes, leaves[1], leaves[2])
        return [out.detach(), *torch.autograd.grad(out, leaves, grad)]

    want = both(operators["reference"])
    for name, operator in operators.items():
        off = difference(both(operator), want)
        if off > 1e-4:
            raise SystemExit(f"{name} does not compute the same: {off:.1%} of the entries differ from the reference")
    del want
    whole = [t.numel() * t.element_size() for t in (value, locations, weights, grad)]
    # no more than four corners a point; an encoder's points touch every pixel
    touched = min(whole[0], 4 * weights.numel() * CHANNELS * value.element_size())
    once = touched + sum(whole[1:])
    moved = {"forward": once, "forward + backward": 2 * once + sum(whole[:3])}
    rows = []
    for what, call in (("forward", forward), ("forward + backward", both)):
        times: dict[str, list[float]] = {name: [] for name in operators}
        for _ in range(args.repeats):
            for name, operator in operators.items():
                times[name].append(seconds(lambda c=call, o=operator: c(o), args.device))
        slowest = statistics.median(times["reference"])
        for name, taken in times.items():
            median = statistics.median(taken)
            rows.append(
                {
                    "queries": "encoder" if queries is None else f"decoder {queries}",
                    "batch": batch,
                    "pass": what,
                    "operator": name,
                    "milliseconds": round(median * 1e3, 3),
                    "least": round(min(taken) * 1e3, 3),
                    "times_reference": round(slowest / median, 2),
                    "megabytes": round(moved[what] / 1e6, 1),
                    "share_of_bandwidth": round(moved[what] / median / args.bandwidth, 4),
                }
            )
            print(
                f"{rows[-1]['queries']:12} {batch:5} {what:19} {name:20} {median * 1e3:10.2f} ms "
                f"{slowest / median:7.2f}x {moved[what] / 1e6:9.1f} MB {rows[-1]['share_of_bandwidth']:7.1%}",
                flush=True,
            )
    return rows


def measure_model(args: argparse.Namespace, names: list[str]) -> None:
    """Prints the time of a whole model's forward pass on one image, random weights."""
    torch.manual_seed(0)
    model = build_model(args.model).eval().to(args.device)
    image = [torch.randn(3, *args.size, device=args.device)]
    times: dict[str, list[float]] = {name: [] for name in names}
    found = {}
    for turn in range(args.repeats + 1):  # the first warms up
        for name in names:
            with ms_deform_backend(name), torch.inference_mode():  # type: ignore[arg-type]
                taken = seconds(lambda n=name: found.__setitem__(n, model(image)), args.device)
            times[name] += [taken] if turn else []
    print(f"{args.model}, batch 1, forward")
    slowest = statistics.median(times["reference"])
    for name in names:
        off = float((found[name].logits - found["reference"].logits).abs().max())
        median = statistics.median(times[name])
        print(f"{name:12} {median:8.3f} s {slowest / median:7.2f}x   logits differ by {off:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1333), metavar=("H", "W"), help="image, in pixels")
    parser.add_argument("--batch", type=int, nargs="+", default=(1, 8))
    parser.add_argument("--queries", type=int, nargs="+", default=(0, 300), help="0: the encoder's, all cells")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the values")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5, help="turns of every operator (default %(default)s)")
    parser.add_argument("--other", action="append", default=[], metavar="MODULE:FUNCTION", help="with our arguments")
    parser.add_argument(
        "--official", action="append", default=[], metavar="MODULE:FUNCTION", help="with the original's"
    )
    parser.add_argument("--model", help="time this model instead of the operator alone")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    args = parser.parse_args()

    fast = "triton" if args.device == "cuda" else "cpu"
    operators: dict[str, Operator] = {"reference": backend("reference"), fast: backend(fast)}
    operators |= {path.rpartition(":")[2]: imported(path) for path in args.other}
    operators |= {path.rpartition(":")[2]: official(path) for path in args.official}
    args.bandwidth = bandwidth(args.device)
    machine = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{machine}, torch {torch.__version__}, {args.dtype}, {args.size[0]} x {args.size[1]} pixels")
    print(f"copying moves {args.bandwidth / 1e9:.1f} GB/s\n")
    if args.model is not None:
        return measure_model(args, ["reference", fast])
    titles = f"{'queries':12} {'batch':>5} {'pass':19} {'operator':20}"
    print(f"{titles} {'time':>13} {'ratio':>8} {'bytes':>12} {'share':>7}")
    rows = []
    for batch in args.batch:
        for queries in args.queries:
            rows += measure(args, operators, batch, queries or None)
    if args.json is not None:
        record = {
            "machine": machine,
            "processor": platform.processor() or platform.machine(),
            "torch": torch.__version__,
        }
        record |= {"dtype": args.dtype, "size": list(args.size), "bandwidth": args.bandwidth, "rows": rows}
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
