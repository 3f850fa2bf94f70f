"""Times whole training steps against the authors' code: forward, losses, backward, clipping, AdamW.

    python benchmarks/training.py --original PATH --json docs/measurements/training.json
    python benchmarks/training.py --original PATH --model deformable-detr-r50 --precision 32 bf16-mixed
    python benchmarks/training.py --original PATH --device cuda --size coco --group --batch 8 --batches 20
    python benchmarks/training.py --original PATH --model detr-r50-dc5 --size 800x1333 --batch 1 --checkpointing
    python benchmarks/training.py --parts                            where detrkit's time goes

Without --original it is detrkit alone. Both have the same weights, images and objects. Before, the terms and the
gradients of the first step are compared, with dropout off and padding as published; then each trains by itself, as it
does by default, in a process of its own. "tuned" is the original under MALLOC_MMAP_MAX_=0 and MALLOC_TRIM_THRESHOLD_
of 2**31 - 1: glibc then keeps freed memory, which detrkit asks of it by itself. With --size coco images are as large as
in the published training: shortest side 480 to 800 pixels, longest at most 1333. Images are where they are needed:
loading is measured by loader.py.
"""

from __future__ import annotations

import argparse
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from detrkit.config import OptimConfig
from detrkit.engine.optim import build_optimizer
from detrkit.engine.processes import StopSignals
from detrkit.engine.train_step import TrainStep
from detrkit.layers import set_checkpointing
from detrkit.models.criterion import build_criterion
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Target
from detrkit.weights.build import build_model
from detrkit.weights.keymap import official_names
from original_code import ARGUMENTS, OriginalCode, match_weights, their_targets
from side_by_side import Report, Worker, add_options, by_turns, checkout, serve

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import goldens

CLASSES = 91
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
COCO_IMAGES = 118_287  # an epoch; published: 28 minutes for detr-r50 on 8 V100 (DETR's README)
SIDES, LONGEST = range(480, 801, 32), 1333
TOLERANCE = 5e-3  # of the first step in float32: small images differ by 2e-3, large ones by less
Part = tuple[Batch, list[Target]]
Step = Callable[[Part], object]


def sizes(args: Namespace, generator: torch.Generator) -> list[list[tuple[int, int]]]:
    """(height, width) of every image of every batch."""
    count = args.batch * args.batches
    if args.size != "coco":
        height, width = map(int, args.size.split("x"))
        return [[(height, width)] * args.batch] * args.batches
    lying = torch.rand(count, generator=generator) < 0.7
    short = torch.randint(len(SIDES), (count,), generator=generator)
    # 640 x 480 pixels, as most of COCO
    pairs = [(SIDES[i], min(LONGEST, round(SIDES[i] * 4 / 3))) for i in short.tolist()]
    drawn = [(low, high) if flat else (high, low) for flat, (low, high) in zip(lying.tolist(), pairs, strict=True)]
    if args.group:
        drawn.sort(key=lambda size: (size[0] > size[1], size))
    return [drawn[i : i + args.batch] for i in range(0, count, args.batch)]


def batches(args: Namespace) -> list[Part]:
    """Random images and objects, as many of these as COCO has: 7 on average."""
    generator = torch.Generator().manual_seed(args.seed)
    found = []
    for shapes in sizes(args, generator):
        counts = torch.empty(len(shapes)).log_normal_(1.5, 0.95, generator=generator).round().clamp(1, 60).int()
        targets = [
            Target(
                torch.randint(1, CLASSES, (count,), generator=generator),
                torch.rand(count, 4, generator=generator) * 0.4 + 0.1,
            )
            for count in counts.tolist()
        ]
        batch = Batch.from_images([torch.randn(3, *shape, generator=generator) for shape in shapes])
        found.append((batch.to(args.device), [target.to(args.device) for target in targets]))
    return found


def our_step(model: nn.Module, args: Namespace, precision: str) -> Step:
    """A step as detrkit's engine does it."""
    fabric = Fabric(accelerator=args.device, devices=1, precision=precision)  # type: ignore[arg-type]
    config = OptimConfig()
    optimizer = build_optimizer(model, config)
    wrapped, optimizer = fabric.setup(torch.compile(model) if args.compile else model, optimizer)
    train_step = TrainStep(
        fabric,
        wrapped,
        optimizer,
        build_criterion(args.model).to(fabric.device),
        queries=int(model.num_queries),  # type: ignore[arg-type]
        clip_max_norm=config.clip_max_norm,
        all_reduce_mean=StopSignals(world=1).all_reduce_mean,
    )
    return lambda part: train_step([part])


def their_samples(code: OriginalCode, batch: Batch) -> Any:
    """A batch as their models take it."""
    return code.misc.NestedTensor(batch.images, batch.mask())


def their_step(code: OriginalCode, model: nn.Module, criterion: Any, options: Namespace) -> Step:
    """A step as their engine.py and main.py do it, without printing."""
    backbone = [p for n, p in model.named_parameters() if "backbone" in n and p.requires_grad]
    rest = [p for n, p in model.named_parameters() if "backbone" not in n and p.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": rest}, {"params": backbone, "lr": options.lr_backbone}],
        lr=options.lr,
        weight_decay=options.weight_decay,
    )
    weights = criterion.weight_dict

    def step(part: Part) -> None:
        batch, targets = part
        terms = criterion(model(their_samples(code, batch)), their_targets(targets))
        loss = sum(terms[k] * weights[k] for k in terms if k in weights)
        shown = {k: v.item() for k, v in terms.items()}  # as their logger does
        assert all(value == value for value in shown.values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_max_norm)
        optimizer.step()

    return step


def set_dropout(model: nn.Module, share: float) -> None:
    """Dropout of every layer, of ours and of theirs."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = share  # type: ignore[assignment]


def distance(tensors: list[Tensor]) -> float:
    """The norm of all elements together."""
    return sum(t.double().square().sum().item() for t in tensors) ** 0.5


def check(model: nn.Module, code: OriginalCode, theirs: nn.Module, criterion: Any, part: Part, name: str) -> float:
    """The largest difference of a term, or of the gradient as a whole, as a share of its size; leaves no gradient.

    Raises:
        SystemExit: the two do not compute the same.
    """
    batch, targets = part
    for one in (model, theirs):
        set_dropout(one, 0.0)
    goldens.set_padding(model, "official")
    ours = build_criterion(name).to(batch.images.device)
    terms = ours(model(batch), targets)
    ours.total(terms).backward()
    their = criterion(theirs(their_samples(code, batch)), their_targets(targets))
    sum(their[k] * criterion.weight_dict[k] for k in their if k in criterion.weight_dict).backward()
    shares = [abs(terms[k].item() - v.item()) / max(abs(v.item()), 1e-3) for k, v in their.items() if "error" not in k]
    own, names = dict(model.named_parameters()), dict(official_names(model))
    pairs = [(own[names[n]].grad, p.grad) for n, p in theirs.named_parameters() if p.requires_grad]
    # by its norm: where a ReLU's input is 0 but for rounding, single elements may be anything
    shares.append(distance([a - b for a, b in pairs]) / distance([b for _, b in pairs]))
    if max(shares) > TOLERANCE:
        raise SystemExit(f"the first step differs by {max(shares):.1e}")
    for one in (model, theirs):
        set_dropout(one, 0.1)
        one.zero_grad(set_to_none=True)
    goldens.set_padding(model, "exact")
    return max(shares)


def account(step: Step, part: Part) -> None:
    """Prints torch's own account of two steps, by operator."""
    step(part)
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=kinds) as profiled:
        step(part)
        step(part)
    print(profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=50))


def original(args: Namespace) -> tuple[OriginalCode, nn.Module, Any, Namespace]:
    """Their code, their model with our weights, their criterion and their options."""
    code = OriginalCode(args.original)
    options = code.arguments(args.model, args.device)
    model, criterion = code.build(options)
    match_weights(goldens.fill(build_model(args.model), 0), model)
    return code, model.to(args.device), criterion, options


def contender(name: str, args: Namespace) -> Step:
    """The step of "original", or of detrkit at the precision that is named, with checkpointing if that follows."""
    if name == "original":
        code, model, criterion, options = original(args)
        return their_step(code, model.train(), criterion, options)
    precision, _, checkpointing = name.partition(" ")
    model = goldens.fill(build_model(args.model), 0).train()
    set_checkpointing(model, bool(checkpointing))
    return our_step(model, args, precision)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    checkout(parser, "--original", "facebookresearch/detr or, for deformable models, fundamentalvision/Deformable-DETR")
    parser.add_argument("--model", choices=list(ARGUMENTS), default="detr-r50")
    parser.add_argument("--size", default="512x512", help="HEIGHTxWIDTH in pixels, or coco (default %(default)s)")
    parser.add_argument("--group", action="store_true", help="batches of images of like size (with --size coco)")
    parser.add_argument("--batch", type=int, default=2, help="images a step (default %(default)s)")
    parser.add_argument("--batches", type=int, default=1, help="different batches a turn (default %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", nargs="+", choices=("32", "bf16-mixed"), default=["32"], help="of detrkit")
    parser.add_argument("--checkpointing", action="store_true", help="detrkit also with gradient checkpointing")
    parser.add_argument("--compile", action="store_true", help="detrkit's model through torch.compile")
    parser.add_argument("--seed", type=int, default=0, help="of images and objects (default %(default)s)")
    parser.add_argument("--parts", action="store_true", help="print where detrkit's time goes instead")
    add_options(parser, repeats=5)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    parts = batches(args)
    if args.worker is not None:
        step = contender(args.worker, args)
        return serve(lambda: [step(part) for part in parts])
    if args.parts:
        return account(contender(args.precision[0], args), parts[0])

    workers: dict[str, Worker] = {}
    if args.original is not None:
        code, theirs, criterion, _ = original(args)
        model = goldens.fill(build_model(args.model), 0).to(args.device)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            worst = check(model, code, theirs, criterion, parts[0], args.model)
        print(f"the first step differs by {worst:.0e}")
        del model, theirs
        workers["original"] = Worker("--worker", "original")
        if args.device == "cpu":
            workers["original, tuned"] = Worker("--worker", "original", environment=TUNED)
    for precision in args.precision:
        for name in (precision, *[f"{precision} checkpointed"] * args.checkpointing):
            workers[f"detrkit {name}{' compiled' * args.compile}"] = Worker("--worker", name)

    report = Report(f"Training steps of {args.model}, {args.batch} images of {args.size} pixels")
    times = by_turns(workers, repeats=args.repeats)
    images = [size for batch, _ in parts for size in batch.sizes]
    taken = sum(batch.images.shape[-2] * batch.images.shape[-1] * len(batch) for batch, _ in parts)
    print(f"padding: {1 - sum(h * w for h, w in images) / taken:.0%} of all pixels")
    for name, seconds in times.items():
        rate = len(images) / seconds
        row: dict[str, Any] = {
            "training": f"{args.model}, {name}",
            "a step, s": seconds / len(parts),
            "images a second": rate,
            "118,287 images, minutes": COCO_IMAGES / rate / 60,
            "peak memory, MiB": round(workers[name].memory),
        }
        row |= {f"times {other}": times[other] / seconds for other in times if other.startswith("original")}
        report.add(**row)
        workers[name].close()
    report.write(args.json)


if __name__ == "__main__":
    main()
