"""Training images a second: detrkit's loader against the original's, on the same JPEGs at the published augmentation.

    python benchmarks/loader.py --original PATH --panopticapi PATH     images a second: boxes, masks, panoptic
    python benchmarks/loader.py --measure padding                      share of padding, with and without grouping
    python benchmarks/loader.py --measure draft                        large photographs, decoded whole or reduced

Both load batches of 2 from the same folder, with one thread in each process, and hand over normalized float32 images.
Before that, both are given the same random choices: their pixels must agree to 2 of 255 grey levels (each of two
resizes rounds once), boxes and labels to float precision. During the turns the mean size of their augmented images must
agree, too. The folder is generated at first use: noise of many scales under ellipses, in the sizes of COCO's images.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from detrkit.data import Dataset, ImageProcessor, make_loader, open_dataset, to_target, train_transform
from detrkit.data.panoptic import write_id_map
from detrkit.data.samplers import GROUPED_STEPS, TrainSampler, derived_seed
from original_code import importing
from side_by_side import Report, add_options, by_turns, checkout

BATCH = 2  # the original's
# (height, width) and share: three quarters lie, a quarter stands, as in COCO
SHAPES = {
    (480, 640): 0.35,
    (427, 640): 0.2,
    (426, 640): 0.1,
    (375, 500): 0.07,
    (640, 640): 0.03,
    (640, 480): 0.12,
    (640, 427): 0.08,
    (500, 375): 0.05,
}
NAMES = ("sky", "sea", "cat", "dog", "cup")
CATEGORIES = [{"id": i, "name": name, "isthing": int(i > 2)} for i, name in enumerate(NAMES, 1)]
GREY_LEVEL = 1 / 255 / 0.224  # of a normalized image, at most


def sizes(count: int) -> list[tuple[int, int]]:
    """(height, width) of `count` images, drawn from `SHAPES`."""
    drawn = np.random.default_rng(0).choice(len(SHAPES), count, p=list(SHAPES.values()))
    return [list(SHAPES)[k] for k in drawn]


def photograph(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Noise of many scales, each half as strong as the one twice as coarse, under grain.

    There is so much grain that a JPEG of 640 x 480 has about 100 KB and takes as long to decode as one of COCO, 1.7 ms.
    """
    total = np.zeros((height, width, 3))
    for octave in range(2, 8):
        coarse = rng.normal(0, 2.0 ** (7 - octave), (2**octave, 2**octave, 3))
        planes = [Image.fromarray(coarse[..., c].astype(np.float32)).resize((width, height)) for c in range(3)]
        total += np.stack([np.asarray(plane) for plane in planes], 2)
    total += rng.normal(128, 11, (height, width, 1))
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def generate(folder: Path, count: int) -> None:
    """A COCO folder with `count` images of ellipses: boxes, polygons and panoptic PNGs."""
    images: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    panoptic: list[dict[str, Any]] = []
    for name in ("train", "panoptic_train", "annotations"):
        (folder / name).mkdir(parents=True)
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    for image_id, (height, width) in enumerate(sizes(count), 1):
        rng = np.random.default_rng(image_id)
        picture = photograph(rng, height, width)
        ids = Image.new("I", (width, height), 1)
        ImageDraw.Draw(ids).rectangle((0, height // 2, width, height), fill=2)
        for k in range(int(rng.integers(1, 14))):  # 7 on average
            radii = np.exp(rng.uniform(np.log(10), np.log(min(height, width) / 3), 2))
            center = rng.uniform(radii, (width, height) - radii)
            polygon = center + np.stack([np.cos(turn), np.sin(turn)], 1) * radii  # (24, 2) xy
            ImageDraw.Draw(picture).polygon(polygon.ravel().tolist(), fill=tuple(rng.integers(0, 256, 3).tolist()))
            ImageDraw.Draw(ids).polygon(polygon.ravel().tolist(), fill=3 + k)
            annotation = {"id": len(instances) + 1, "image_id": image_id, "category_id": int(rng.integers(3, 6))}
            annotation |= {"bbox": [*(center - radii), *(2 * radii)], "iscrowd": 0, "area": np.pi * radii.prod()}
            instances.append(annotation | {"segmentation": [polygon.ravel().tolist()]})
        picture.save(folder / "train" / f"{image_id:06d}.jpg", quality=90)
        array = np.asarray(ids)
        write_id_map(folder / "panoptic_train" / f"{image_id:06d}.png", array)
        segments = [segment(array, int(i)) for i in np.unique(array)]
        panoptic.append({"image_id": image_id, "file_name": f"{image_id:06d}.png", "segments_info": segments})
        images.append({"id": image_id, "file_name": f"{image_id:06d}.jpg", "height": height, "width": width})
    for name, entries in (("instances", instances), ("panoptic", panoptic)):
        value = {"images": images, "annotations": entries, "categories": CATEGORIES}
        (folder / "annotations" / f"{name}_train.json").write_text(json.dumps(value))


def segment(ids: np.ndarray, number: int) -> dict[str, Any]:
    """The entry of a segment in a panoptic json."""
    rows, columns = np.nonzero(ids == number)
    box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    category = number if number < 3 else 3 + number % 3
    found = {"id": number, "category_id": category, "bbox": [int(v) for v in box]}
    return found | {"area": len(rows), "iscrowd": 0}


class Original:
    """The original's datasets, transforms and collate function."""

    def __init__(self, path: Path, panopticapi: Path | None) -> None:
        if not (path / "datasets" / "coco.py").exists():
            raise SystemExit(f"{path}: no datasets/coco.py, so no checkout of the original code")
        if panopticapi is not None:
            sys.path.insert(0, str(panopticapi))
        with importing(path):
            self.coco = importlib.import_module("datasets.coco")
            self.transforms = importlib.import_module("datasets.transforms")
            self.panoptic = importlib.import_module("datasets.coco_panoptic") if panopticapi is not None else None
            util = {name: importlib.import_module(name) for name in ("util", "util.misc")}
        sys.modules.update(util)  # what workers hand over is pickled by these names
        self.collate = util["util.misc"].collate_fn

    def dataset(self, folder: Path, what: str, *, augmented: bool = True) -> Any:
        """Their training set."""
        transforms = self.coco.make_coco_transforms("train") if augmented else None
        annotations = folder / "annotations"
        if what == "panoptic":
            assert self.panoptic is not None
            file = annotations / "panoptic_train.json"
            return self.panoptic.CocoPanoptic(folder / "train", folder / "panoptic_train", file, transforms)
        file = annotations / "instances_train.json"
        with contextlib.redirect_stdout(None):
            return self.coco.CocoDetection(folder / "train", file, transforms, what == "masks")

    def augmented(self, image: Any, target: Any, geometry: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        """Their transforms with our random choices."""
        t = self.transforms
        if geometry.mirrored:
            image, target = t.hflip(image, target)
        if geometry.first is not None:
            image, target = t.resize(image, target, geometry.first[::-1])
            image, target = t.crop(image, target, geometry.window)
        image, target = t.resize(image, target, geometry.size[::-1])
        return t.Compose([t.ToTensor(), t.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])(image, target)


def check(original: Original, folder: Path, dataset: Dataset, count: int = 24) -> None:
    """The same pixels and boxes from the same random choices, or an end."""
    theirs = original.dataset(folder, "boxes", augmented=False)
    transform = train_transform()
    for k in range(count):
        record = dataset.records[k]
        draws = [torch.Generator().manual_seed(k) for _ in range(2)]
        image, target = original.augmented(*theirs[k], transform.draw(record.height, record.width, draws[0]))
        sample = transform(dataset[k], draws[1])
        ours = to_target(sample)
        pixels = ImageProcessor().batch([sample.image.as_subclass(torch.Tensor)]).images[0]
        if pixels.shape != image.shape or float((pixels - image).abs().max()) > 2.01 * GREY_LEVEL:
            raise SystemExit(f"image {k}: pixels differ from the original's")
        if not torch.allclose(ours.boxes, target["boxes"], atol=1e-5) or len(ours) != len(target["labels"]):
            raise SystemExit(f"image {k}: boxes differ from the original's")
    print(f"{count} images: pixels within 2 grey levels, boxes within 1e-5 of the original's\n")


class Turn:
    """One contender: loads `count` images a turn, of ever new batches, and adds up what came."""

    def __init__(self, batches: Callable[[], Iterator[Any]], area: Callable[[Any], int], count: int) -> None:
        self.batches, self.area, self.count = batches, area, count
        self.iterator: Iterator[Any] = iter(())
        self.pixels = self.images = 0

    def __call__(self) -> None:
        """A turn."""
        for _ in range(self.count // BATCH):
            batch = next(self.iterator, None)
            if batch is None:
                self.iterator = self.batches()
                batch = next(self.iterator)
            self.pixels += self.area(batch)
            self.images += BATCH


def speed(args: argparse.Namespace, report: Report) -> None:
    """Rows of images a second."""
    if args.original is None:
        raise SystemExit("name a checkout of the original with --original")
    original = Original(args.original, args.panopticapi)
    check(original, args.data, open_dataset(args.data, split="train"))
    for what in ("boxes", "masks") + (("panoptic",) if original.panoptic is not None else ()):
        for workers in (0, 2):
            layout = "coco-panoptic" if what == "panoptic" else "coco"
            dataset = open_dataset(args.data, split="train", masks=what != "boxes", layout=layout)
            ours = make_loader(
                dataset,
                transform=train_transform(),
                batch_size=BATCH,
                training=True,
                workers=workers,
                cache="none",
            )
            their_set = original.dataset(args.data, what)
            theirs = DataLoader(
                their_set,
                batch_sampler=BatchSampler(RandomSampler(their_set), BATCH, drop_last=True),
                collate_fn=original.collate,
                num_workers=workers,
                persistent_workers=workers > 0,
            )
            turns = {
                "original": Turn(lambda t=theirs: iter(t), lambda b: int((~b[0].mask).sum()), args.turn),
                "detrkit": Turn(lambda t=ours: iter(t), lambda b: sum(h * w for h, w in b[0].sizes), args.turn),
            }
            seconds = by_turns(turns, repeats=args.repeats)
            means = [turn.pixels / turn.images for turn in turns.values()]
            if abs(means[0] / means[1] - 1) > 2 / turns["detrkit"].images ** 0.5:  # four standard errors
                raise SystemExit(f"mean area of the augmented images: {means[0]:.0f} and {means[1]:.0f} pixels")
            rates = {name: args.turn / taken for name, taken in seconds.items()}
            row: dict[str, Any] = {"targets": what, "workers": workers}
            row |= {f"{name}, images/s": rate for name, rate in rates.items()}
            report.add(**row, **{"times original": rates["detrkit"] / rates["original"]})


def padding(args: argparse.Namespace, report: Report) -> None:
    """Rows of the share of padding in an epoch of as many images as `--images`."""
    shapes, transform = sizes(args.images), train_transform()

    def size_of(item: Any) -> tuple[int, int]:
        generator = torch.Generator().manual_seed(derived_seed(0, *item))
        return transform.draw(*shapes[item.image], generator).size

    for batch in (2, 4, 8, 16):
        drawn = list(TrainSampler(args.images, batch_size=batch))
        flat = sorted((item for items in drawn for item in items), key=lambda i: np.divide(*shapes[i.image]) > 1)
        cases = {
            "as drawn, %": drawn,
            "lying and standing apart, %": [flat[k : k + batch] for k in range(0, len(flat), batch)],
            "group_by_size, %": list(TrainSampler(args.images, batch_size=batch, size_of=size_of)),
        }
        padded, filled = {}, 0
        for name, batches in cases.items():
            found = [[size_of(item) for item in items] for items in batches]
            filled = sum(h * w for each in found for h, w in each)
            padded[name] = sum(len(each) * max(h for h, _ in each) * max(w for _, w in each) for each in found)
        share = {name: 100 * (1 - filled / area) for name, area in padded.items()}
        less = padded["as drawn, %"] / padded["group_by_size, %"]
        report.add(batch=batch, **share, **{"times fewer pixels": less})


def draft(args: argparse.Namespace, report: Report) -> None:
    """Rows of images a second from photographs of 12 megapixels."""
    folder = args.data.with_name(args.data.name + "-large")
    if not folder.exists():
        folder.mkdir(parents=True)
        for k in range(12):
            photograph(np.random.default_rng(k), 3000, 4000).save(folder / f"{k}.jpg", quality=90)
        images = [{"id": k, "file_name": f"{k}.jpg", "height": 3000, "width": 4000} for k in range(12)]
        box = {"bbox": [100, 100, 1000, 900], "iscrowd": 0, "area": 900000, "category_id": 3}
        annotations = [box | {"id": k + 1, "image_id": k} for k in range(12)]
        value = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (folder / "instances.json").write_text(json.dumps(value))
    dataset = open_dataset(folder / "instances.json")
    for size in (320, 800, 1333):
        loaders = [
            make_loader(
                dataset,
                transform=train_transform(size),
                batch_size=BATCH,
                training=True,
                workers=0,
                cache="none",
                draft=draft,
            )
            for draft in (False, True)
        ]
        whole, reduced = (next(iter(loader))[0].images for loader in loaders)
        difference = float((whole - reduced).abs().mean()) / GREY_LEVEL
        seconds = by_turns({str(k): lambda t=t: list(t) for k, t in enumerate(loaders)}, repeats=args.repeats)
        row = {"size, pixels": size, "whole, images/s": 12 / seconds["0"], "draft, images/s": 12 / seconds["1"]}
        report.add(**row, **{"times whole": seconds["0"] / seconds["1"], "mean difference, of 255": difference})


TITLES = {
    "speed": "Training images a second from 640 x 480 JPEGs, batches of 2",
    "padding": f"Share of padding in a batch, steps of like size out of {GROUPED_STEPS}",
    "draft": "Training images a second from JPEGs of 4000 x 3000 pixels",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", choices=TITLES, default="speed")
    checkout(parser, "--original", "facebookresearch/detr")
    checkout(parser, "--panopticapi", "cocodataset/panopticapi, which the original's panoptic data needs")
    parser.add_argument(
        "--data", type=Path, default=Path(tempfile.gettempdir(), "detrkit-loader"), help="folder (default %(default)s)"
    )
    parser.add_argument("--images", type=int, default=1000, help="generated images (default %(default)s)")
    parser.add_argument("--turn", type=int, default=200, help="images a turn (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of each process (default %(default)s)")
    add_options(parser, repeats=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.measure == "speed" and not args.data.exists():
        generate(args.data, args.images)
    report = Report(TITLES[args.measure])
    {"speed": speed, "padding": padding, "draft": draft}[args.measure](args, report)
    report.write(args.json)


if __name__ == "__main__":
    main()
