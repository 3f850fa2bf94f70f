"""Measures how much of the cross-attention falls into the box that a query finds, beside two controls.

    python benchmarks/attention_mass.py --of DETECTOR DATA --json docs/measurements/attention-mass.json
    python benchmarks/attention_mass.py --of DETECTOR DATA --of ANOTHER DATA --names "DETR" "Deformable DETR"

Of each dataset's validation images it takes the true detections: above the checkpoint's thresholds, an IoU of at
least 0.5 with an object of the same class that no better detection has. For each of them and each decoder layer, with
the mean of all heads:

- the share of the attention weight inside the detected box, beside the box's share of the image, which attention
  without aim would have; "times" is the ratio of the two means;
- first control, the boxes of an image shuffled among its queries: the share inside another true detection's box, the
  mean over all others of the image; counted where an image has several;
- second control, the attention of queries that found nothing, inside the same box: five a detection, drawn at random.

A second table, NAME-where.json, divides the image by the box: its core (the middle half of each side), its edge (the
rest of the box), and the ring around it (up to 1.5 times each side). Numbers are the attention there, relative to the
area: 1 is attention without aim. Intervals hold 95 % of 1,000 bootstrap samples of the images.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import detrkit
from detrkit.data import open_dataset
from detrkit.explanation import Explanation
from detrkit.ops.boxes import iou
from detrkit.structures.detections import Detections
from side_by_side import Report, add_options

MIN_IOU = 0.5
RANDOM_QUERIES = 5  # for each detection
SAMPLES = 1000  # of the bootstrap
CORE, RING = 0.5, 1.5  # sides of the box's middle, and of the box with the ring around it
Box = Sequence[float]


@dataclass
class Shares:
    """Numbers of the detections in one decoder layer; each a list over detections, with the image that it is of.

    Shares of the attention weight in [0, 1], and shares of the image's area where the name says so.
    """

    image: list[int] = field(default_factory=list)
    area: list[float] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)
    other_box: list[float] = field(default_factory=list)  # NaN where the image has no other
    other_area: list[float] = field(default_factory=list)
    other_queries: list[float] = field(default_factory=list)
    core: list[float] = field(default_factory=list)
    core_area: list[float] = field(default_factory=list)
    around: list[float] = field(default_factory=list)  # box and ring together
    around_area: list[float] = field(default_factory=list)

    def add(self, **values: float) -> None:
        """Append the numbers of one detection."""
        for name, value in values.items():
            getattr(self, name).append(value)

    def array(self, name: str) -> np.ndarray:
        """(N,) numbers of all detections."""
        return np.array(getattr(self, name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", nargs=2, action="append", required=True, metavar=("DETECTOR", "DATA"))
    parser.add_argument("--names", nargs="+", help="of the rows, one for each --of (default: of the files)")
    parser.add_argument("--split", default="val", help="of the data (default %(default)s)")
    parser.add_argument("--images", type=int, default=300, help="of each dataset at most (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of random queries and samples (default %(default)s)")
    add_options(parser, repeats=1)
    args = parser.parse_args()
    names = args.names or [Path(detector).stem for detector, _ in args.of]

    mass, where = Report("Cross-attention inside the detected box"), Report("Cross-attention by the place in the box")
    for name, (detector, data) in zip(names, args.of, strict=True):
        layers = shares(detrkit.load(detector), Path(data), split=args.split, images=args.images, seed=args.seed)
        if not layers or not layers[0].image:
            raise SystemExit(f"{detector}: no true detection in {data}: train longer, or check the classes of both")
        for number, values in enumerate(layers):
            title = f"{name}, layer {number}"
            mass.add(**mass_row(title, values, args.seed))
            where.add(**where_row(title, values, args.seed))
    mass.write(args.json)
    where.write(args.json and args.json.with_name(f"{args.json.stem}-where.json"))


def mass_row(title: str, values: Shares, seed: int) -> dict[str, str | int | float]:
    """A row of the first table; shares in percent."""
    several = ~np.isnan(values.array("other_box"))
    return {
        "": title,
        "detections": len(values.image),
        "box's share of the image, %": 100 * values.array("area").mean(),
        "attention inside, %": f"{100 * values.array('inside').mean():.1f} ({interval(values, ['inside'], [], seed)})",
        "times the area": ratio(values, ["inside"], ["area"]),
        "in another object's box, %": 100 * values.array("other_box")[several].mean(),
        "times the area, another's box": ratio(values, ["other_box"], ["other_area"], several),
        "of queries without object, %": 100 * values.array("other_queries").mean(),
    }


def where_row(title: str, values: Shares, seed: int) -> dict[str, str | int | float]:
    """A row of the second table: attention relative to the area, with its interval."""
    parts = {
        "core": (["core"], ["core_area"]),
        "edge": (["inside", "-core"], ["area", "-core_area"]),
        "around": (["around", "-inside"], ["around_area", "-area"]),
    }
    row: dict[str, str | int | float] = {"": title}
    for name, (above, below) in parts.items():
        row[name] = f"{ratio(values, above, below):.2f} ({interval(values, above, below, seed)})"
    return row


def shares(detector: detrkit.Detector, data: Path, *, split: str, images: int, seed: int) -> list[Shares]:
    """Return the numbers of every decoder layer, over the images of a dataset."""
    dataset = open_dataset(data, split=split)
    random = torch.Generator().manual_seed(seed)
    layers: list[Shares] = []
    for number, record in enumerate(dataset.records[:images]):
        explanation = detrkit.explain(detector, record.file)
        assert explanation.detections.classes is not None
        names = explanation.detections.classes.names
        labels = torch.tensor([names.index(dataset.classes.names[label]) for label in record.labels.tolist()])
        keep = torch.from_numpy(~record.crowd)
        found = true_detections(explanation.detections, torch.from_numpy(record.boxes).float()[keep], labels[keep])
        layers = layers or [Shares() for _ in range(explanation.decoder_layers)]
        add_image(layers, explanation, found, number, random)
    return layers


def true_detections(detections: Detections, boxes: Tensor, labels: Tensor) -> list[int]:
    """Return the numbers of the detections that found an object, the best first; an object is found once.

    Args:
        detections: of one image, in descending order of score.
        boxes: (N, 4) xyxy pixels of the objects.
        labels: (N,) of the objects, as the detections have them.
    """
    found: list[int] = []
    free = torch.ones(len(boxes), dtype=torch.bool)
    if not len(boxes) or not len(detections):
        return found
    overlaps, _ = iou(detections.boxes.float(), boxes)
    for i in range(len(detections)):
        candidates = overlaps[i] * (free & (labels == detections.labels[i]))
        best = int(candidates.argmax())
        if float(candidates[best]) >= MIN_IOU:
            free[best] = False
            found.append(i)
    return found


def add_image(
    layers: list[Shares], explanation: Explanation, found: list[int], number: int, random: torch.Generator
) -> None:
    """Add the numbers of one image's true detections to every layer."""
    boxes = explanation.detections.boxes.tolist()
    nothing = without_object(explanation)
    for i in found:
        box, others = boxes[i], [boxes[j] for j in found if j != i]
        chosen = torch.randperm(len(nothing), generator=random)[:RANDOM_QUERIES]
        idle = of_queries(explanation, nothing[chosen])
        for layer, values in enumerate(layers):
            values.add(
                image=number,
                area=area(explanation, box),
                inside=explanation.attention_inside(i, layer, box=box),
                other_box=mean(explanation.attention_inside(i, layer, box=other) for other in others),
                other_area=mean(area(explanation, other) for other in others),
                other_queries=mean(idle.attention_inside(k, layer, box=box) for k in range(len(chosen))),
                core=explanation.attention_inside(i, layer, box=scaled(box, CORE)),
                core_area=area(explanation, scaled(box, CORE)),
                around=explanation.attention_inside(i, layer, box=scaled(box, RING)),
                around_area=area(explanation, scaled(box, RING)),
            )


def without_object(explanation: Explanation) -> Tensor:
    """Return the (N,) queries that are no detection."""
    assert explanation.capture.boxes is not None
    every = torch.ones(explanation.capture.boxes.shape[2], dtype=torch.bool)
    every[explanation.queries] = False
    return every.nonzero()[:, 0]


def of_queries(explanation: Explanation, queries: Tensor) -> Explanation:
    """Return the explanation of other queries than the detections'; their boxes are not used."""
    count = len(queries)
    empty = Detections(torch.zeros(count, 4), torch.zeros(count), torch.zeros(count, dtype=torch.int64))
    return replace(explanation, detections=replace(empty, queries=queries))


def scaled(box: Box, factor: float) -> Box:
    """Scale the sides of an xyxy box about its center."""
    x0, y0, x1, y1 = box
    dx, dy = (x1 - x0) * (factor - 1) / 2, (y1 - y0) * (factor - 1) / 2
    return x0 - dx, y0 - dy, x1 + dx, y1 + dy


def area(explanation: Explanation, box: Box) -> float:
    """Return the share in [0, 1] of the image's area that an xyxy box covers, clipped to the image."""
    height, width = explanation.image_size
    x0, y0, x1, y1 = box
    across, down = min(x1, width) - max(x0, 0), min(y1, height) - max(y0, 0)
    return max(across, 0) * max(down, 0) / (width * height)


def mean(values: Iterator[float]) -> float:
    """Return the mean, or NaN of nothing."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else float("nan")


def total(values: Shares, names: Sequence[str], chosen: np.ndarray | slice) -> float:
    """Return the sum of some detections' numbers; a name after "-" is subtracted."""
    return sum((-1 if name[0] == "-" else 1) * float(values.array(name.lstrip("-"))[chosen].sum()) for name in names)


def ratio(
    values: Shares, above: Sequence[str], below: Sequence[str], chosen: np.ndarray | slice = slice(None)
) -> float:
    """Return the ratio of two sums over detections, or the mean where nothing stands below."""
    count = len(values.array("image")[chosen])
    return total(values, above, chosen) / (total(values, below, chosen) if below else count)


def interval(values: Shares, above: Sequence[str], below: Sequence[str], seed: int) -> str:
    """Return the 95 % interval of `ratio` over bootstrap samples of the images, a mean in percent."""
    random = np.random.default_rng(seed)
    images = values.array("image")
    of_image = [np.flatnonzero(images == image) for image in np.unique(images)]
    samples = []
    for _ in range(SAMPLES):
        drawn = np.concatenate([of_image[k] for k in random.integers(0, len(of_image), len(of_image))])
        samples.append(ratio(values, above, below, drawn))
    low, high = np.percentile(samples, [2.5, 97.5])
    return f"{low:.2f} to {high:.2f}" if below else f"{100 * low:.1f} to {100 * high:.1f}"


if __name__ == "__main__":
    main()
