"""Measures what padding does to an image's outputs, as published and padding-exact, and what exactness costs.

    python benchmarks/padding.py                          images of 375 x 500 and 500 x 375 pixels
    python benchmarks/padding.py --size 800 1066 --models detr_resnet50 --repeats 9
    python benchmarks/padding.py --only time

Each model runs an image alone, and together with a standing one, so that both are padded. Compared are the outputs of
the first image in the batch with those alone. Weights and images come from the formula of tests/goldens: no trained
weights could be had where this was written, so the figures tell how far outputs move, not how much AP that costs. Times
are medians of forward passes of the batch, exact and official taking turns.

Columns are means over the images, maxima those of all:
cells       share of the image's own cells, as the transformer reads them, that change by more than 1 % of the root mean
            square of all
reach       how far from the padding the last of these is
logits      root mean square of the change, as a share of the deviation between queries
box         largest change of a center or a side of a query's box: median and maximum over queries
class       share of queries with another best class
masks       intersection over union with the query's mask alone
largest     largest change of a logit, or of a box in [0, 1], as a share of the largest value
"""

from __future__ import annotations

import argparse
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import goldens
from detrkit.structures.outputs import Outputs
from side_by_side import Report, add_options, by_turns

MODELS = (
    "detr_resnet50",
    "detr_resnet50_dc5",
    "detr_resnet50_panoptic",
    "detr_resnet50_dc5_panoptic",
    "deformable_multi_scale",
)


def rms(x: Tensor) -> float:
    """Root mean square."""
    return float(x.square().mean().sqrt())


def read(outputs: Outputs, model: Any) -> Tensor:
    """(D, h, w) map that the transformer reads of the backbone's last stage, of the first image."""
    level = len(model.stages) - 1 if hasattr(model, "stages") else 0
    return outputs.capture.stages[f"projection.{level}"][0]


def movement(alone: Outputs, together: Outputs, model: Any, size: tuple[int, int]) -> dict[str, float]:
    """How far the first image's outputs are from those alone.

    Args:
        alone: of the image by itself.
        together: of the batch.
        model: what gave them.
        size: (height, width) of the image in pixels.
    """
    before, after = read(alone, model), read(together, model)
    rows, columns = before.shape[1:]
    changed = (after[:, :rows, :columns] - before).square().mean(0).sqrt() > 0.01 * rms(before)  # (h, w)
    first = int(changed.any(1).nonzero().min()) if changed.any() else rows  # it is padded below
    logits = together.logits[0] - alone.logits[0]  # (Q, C)
    boxes = (together.boxes[0] - alone.boxes[0]).abs()  # (Q, 4)
    pixels = (boxes * boxes.new_tensor([size[1], size[0]] * 2)).amax(1)
    turned = together.logits[0].argmax(-1) != alone.logits[0].argmax(-1)
    figures = {
        "cells": float(changed.float().mean()),
        "reach": (rows - first) * size[0] / rows,
        "logits": rms(logits) / float(alone.logits[0].std(0).mean()),
        "box median": float(pixels.median()),
        "box max": float(pixels.max()),
        "class": float(turned.float().mean()),
        "largest": max(
            float(logits.abs().max() / alone.logits[0].abs().max()), float(boxes.max() / alone.boxes[0].abs().max())
        ),
    }
    if alone.masks is not None and together.masks is not None:
        h, w = alone.masks.shape[2:]
        a, b = alone.masks[0] > 0, together.masks[0, :, :h, :w] > 0
        overlap = (a & b).sum((1, 2)) / (a | b).sum((1, 2)).clamp(min=1)
        figures["masks"] = float(overlap[a.any(2).any(1)].mean())
    return figures


def cells(found: list[dict[str, float]]) -> list[str]:
    """Means over the images, the two maxima over all of them, as the table shows them."""
    mean = {name: statistics.mean(figures[name] for figures in found) for name in found[0]}
    worst = {name: max(figures[name] for figures in found) for name in ("box max", "largest")}
    return [
        f"{100 * mean['cells']:.1f} %",
        f"{mean['reach']:.0f} px",
        f"{100 * mean['logits']:.2g} %",
        f"{mean['box median']:.2g} px",
        f"{worst['box max']:.2g} px",
        f"{100 * mean['class']:.1f} %",
        f"{mean['masks']:.3f}" if "masks" in mean else "-",
        f"{worst['largest']:.0e}",
    ]


def forward(model: nn.Module, images: list[Tensor], padding: str) -> None:
    """A forward pass of a batch, exact or official."""
    goldens.set_padding(model, padding)
    model(images)


def line(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--size", nargs=2, type=int, default=(375, 500), help="height and width of the first image")
    parser.add_argument("--pictures", type=int, default=3, help="pairs of pictures (default %(default)s)")
    parser.add_argument("--only", choices=("movement", "time"))
    add_options(parser, repeats=3)
    args = parser.parse_args()
    height, width = args.size
    if not 0 < height < width:
        parser.error("--size: the first image lies: 0 < height < width")
    pairs = [
        [goldens.image(f"padding{i}-0", height, width), goldens.image(f"padding{i}-1", width, height)]
        for i in range(args.pictures)
    ]
    report = None if args.only == "movement" else Report("a batch of two pictures of other sizes, exact and official")
    moved = []
    for name in args.models:
        model = goldens.model(name)
        if args.only != "time":
            alone = [model(images[:1], capture=True) for images in pairs]
            for padding in ("official", "exact"):
                goldens.set_padding(model, padding)
                found = [
                    movement(one, model(images, capture=True), model, (height, width))
                    for one, images in zip(alone, pairs, strict=True)
                ]
                moved.append((name, padding, found))
        if report is not None:
            ways = {padding: partial(forward, model, pairs[0], padding) for padding in ("official", "exact")}
            times = by_turns(ways, repeats=args.repeats)
            figures = {f"{padding}, ms": round(1000 * times[padding]) for padding in ways}
            report.add(model=name, **figures, **{"times as long": times["exact"] / times["official"]})
        goldens.set_padding(model, "exact")
    if moved:
        print(f"{height} x {width} beside {width} x {height} pixels, {args.pictures} pictures")
        line("model", "padding", "cells", "reach", "logits", "box median", "box max", "class", "masks", "largest")
        line(*["---"] * 10)
        for name, padding, found in moved:
            line(name, padding, *cells(found))
    if report is not None:
        report.write(args.json)


if __name__ == "__main__":
    main()
