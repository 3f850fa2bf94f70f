"""Times matching and losses against the authors' code, on the same outputs and targets.

    python benchmarks/losses.py --detr PATH --deformable PATH --json docs/measurements/losses.json
    python benchmarks/losses.py --detr PATH --parts                    where detrkit's time goes

Both get the outputs of six decoder layers, and random objects, as many an image as COCO has: 7 on average, some images
with up to 60. A turn is a number of different batches; times are of one batch. Before, terms and gradients of every
batch are compared. glibc keeps freed memory for both, as it does in a run of detrkit.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from detrkit.models.criterion import SetCriterion, build_criterion
from detrkit.ops.malloc import retain_freed_memory
from detrkit.structures.outputs import Outputs, Target
from original_code import OriginalCode, their_outputs, their_targets
from side_by_side import Report, add_options, by_turns, checkout

CLASSES = 91
# model, whose code, queries, columns of the logits
MODELS = (("detr-r50", "detr", 100, CLASSES + 1), ("deformable-detr-r50", "deformable", 300, CLASSES))
TOLERANCE = 1e-5  # of terms and gradients, as a share of the largest value


class Problem:
    """A batch: outputs of all layers, with a gradient, and targets.

    Args:
        seed: of everything random.
        layers, batch, queries, columns: the shape of the logits.
    """

    def __init__(self, seed: int, *, layers: int, batch: int, queries: int, columns: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        # log-normal: mean 7, one image in twenty with more than 20
        counts = torch.empty(batch).log_normal_(1.5, 0.95, generator=generator).round().clamp(max=60).int().tolist()
        self.targets = []
        for count in counts:
            size = torch.rand(count, 2, generator=generator) ** 2 * 0.9 + 0.02
            center = size / 2 + torch.rand(count, 2, generator=generator) * (1 - size)
            labels = torch.randint(1, CLASSES, (count,), generator=generator)
            self.targets.append(Target(labels, torch.cat([center, size], 1)))
        self.logits = torch.randn(layers, batch, queries, columns, generator=generator).requires_grad_()
        self.boxes = torch.rand(layers, batch, queries, 4, generator=generator).mul_(0.9).add_(0.05).requires_grad_()

    def ours(self) -> Outputs:
        """As detrkit's models give them."""
        aux = [Outputs(c, b) for c, b in zip(self.logits[:-1], self.boxes[:-1], strict=True)]
        return Outputs(self.logits[-1], self.boxes[-1], aux=aux)

    def theirs(self) -> dict[str, Any]:
        """As the authors' models give them."""
        return their_outputs(self.logits, self.boxes)

    def gradients(self) -> list[Tensor]:
        """Those of logits and boxes, which are taken off."""
        found = [tensor.grad for tensor in (self.logits, self.boxes)]
        self.logits.grad = self.boxes.grad = None
        assert found[0] is not None and found[1] is not None
        return [found[0], found[1]]


def our_terms(criterion: SetCriterion, problem: Problem) -> tuple[dict[str, Tensor], Tensor]:
    """All terms, and their weighted sum."""
    terms = criterion(problem.ours(), problem.targets)
    return terms, criterion.total(terms)


def their_terms(criterion: nn.Module, problem: Problem) -> tuple[dict[str, Tensor], Tensor]:
    """All terms, and their weighted sum as their engine.py has it."""
    terms = criterion(problem.theirs(), their_targets(problem.targets))
    weights: Any = criterion.weight_dict
    return terms, sum(terms[k] * weights[k] for k in terms if k in weights)  # type: ignore[return-value]


def difference(ours: SetCriterion, theirs: nn.Module, problem: Problem) -> float:
    """The largest difference of a term or a gradient, as a share of the largest value.

    Raises:
        SystemExit: the two do not compute the same.
    """
    terms, total = our_terms(ours, problem)
    total.backward()
    gradients = problem.gradients()
    their, total = their_terms(theirs, problem)
    total.backward()
    if terms.keys() != their.keys():
        raise SystemExit(f"terms differ: {sorted(terms.keys() ^ their.keys())}")
    shares = [(terms[name] - their[name]).abs().item() / max(their[name].abs().item(), 1e-6) for name in their]
    for own, other in zip(gradients, problem.gradients(), strict=True):
        shares.append((own - other).abs().max().item() / other.abs().max().item())
    if max(shares) > TOLERANCE:
        raise SystemExit(f"the results differ by {max(shares):.1e} of the largest value")
    return max(shares)


def turns(
    terms: Callable[[Problem], tuple[Any, Tensor]], problems: list[Problem], *, backward: bool
) -> Callable[[], None]:
    """What is timed: all problems, with their gradients if wanted."""

    def run() -> None:
        for problem in problems:
            _, total = terms(problem)
            if backward:
                total.backward()
                problem.gradients()

    return run


def parts(criterion: SetCriterion, problems: list[Problem], repeats: int) -> None:
    """Prints torch's own account of the time, by operator."""
    run = turns(lambda p: our_terms(criterion, p), problems, backward=True)
    run()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(repeats):
            run()
    print(profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=40))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    checkout(parser, "--detr", "facebookresearch/detr")
    checkout(parser, "--deformable", "fundamentalvision/Deformable-DETR")
    parser.add_argument("--batch", type=int, default=8, help="images a batch (default %(default)s)")
    parser.add_argument("--batches", type=int, default=10, help="different batches a turn (default %(default)s)")
    parser.add_argument("--layers", type=int, default=6, help="decoder layers (default %(default)s)")
    parser.add_argument("--parts", action="store_true", help="print where detrkit's time goes instead")
    add_options(parser, repeats=15)
    args = parser.parse_args()
    if args.detr is None and args.deformable is None:
        parser.error("give --detr, --deformable or both")

    retain_freed_memory()
    report = Report(f"Matching and losses, {args.layers} layers, batch {args.batch}")
    for name, whose, queries, columns in MODELS:
        path: Path | None = getattr(args, whose)
        if path is None:
            continue
        original = OriginalCode(path)
        _, theirs = original.build(original.arguments(name))
        ours = build_criterion(name)
        shape = {"layers": args.layers, "batch": args.batch, "queries": queries, "columns": columns}
        problems = [Problem(seed, **shape) for seed in range(args.batches)]
        worst = max(difference(ours, theirs, problem) for problem in problems)
        if args.parts:
            parts(ours, problems, args.repeats)
            continue
        for backward in (False, True):
            times = by_turns(
                {
                    "original": turns(lambda p, c=theirs: their_terms(c, p), problems, backward=backward),
                    "detrkit": turns(lambda p, c=ours: our_terms(c, p), problems, backward=backward),
                },
                repeats=args.repeats,
                warmup=2,
            )
            report.add(
                **{
                    "losses of": name,
                    "queries": queries,
                    "pass": "forward + backward" if backward else "forward",
                    "original, ms": 1000 * times["original"] / args.batches,
                    "detrkit, ms": 1000 * times["detrkit"] / args.batches,
                    "times original": times["original"] / times["detrkit"],
                    "largest difference": f"{worst:.0e}",
                }
            )
    report.write(args.json)


if __name__ == "__main__":
    main()
