"""Measures large images with small objects, with and without tiles: AP, objects on seams, time.

    python benchmarks/tiling.py --work /tmp/tiling --train     makes images, and trains a small DETR on crops of others
    python benchmarks/tiling.py --work /tmp/tiling             evaluates it: images of 4,000 pixels, objects of 20

The images are generated shapes on a ground with texture, and their objects stand where chance puts them. The model is
the tour's DETR (examples/tour), trained on for some minutes on crops of 96 pixels. Of every way to predict these are
measured: AP; for the objects that no tile border crosses, and for those that lie on one, how many come once, and how
often one comes twice; seconds an image.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.ops import batched_nms, box_iou

import detrkit
from detrkit.data.tools.shapes import ShapesOptions, shapes_categories, shapes_image, write_shapes
from detrkit.detector import Detector
from detrkit.evaluation import DetectionEvaluator
from detrkit.structures.detections import Detections
from detrkit.tiling import Tiling
from side_by_side import Report

SIDE, OBJECT, TILE = 4000, 20, 96  # pixels
FLOOR = 0.02  # of the scores that AP counts: below it are tens of thousands of boxes
BATCH, MOST = 32, 1000  # tiles at once; detections of an image that count
TOUR = Path(__file__).parents[1] / "examples" / "tour"
TRAINING_SIDE = 2000  # pixels of the images that are cut into crops
CROPS_OF_AN_OBJECT, EMPTY_SHARE, VISIBLE = 10, 0.3, 0.3


def objects_of(made: Any) -> tuple[np.ndarray, list[int]]:
    """(N, 4) boxes xyxy in pixels of the objects of a generated image, and their category ids."""
    boxes = []
    for _, mask in made.things:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return np.array(boxes, float).reshape(-1, 4), [category for category, _ in made.things]


def write_crops(folder: Path, split: str, images: int, seed: int) -> None:
    """A split of crops in COCO's layout; of an object that is cut, the box of what is left where that is enough."""
    share = OBJECT / TRAINING_SIDE
    options = ShapesOptions(sides=(TRAINING_SIDE,) * 2, objects=(80, 90), object_size=(0.75 * share, 1.25 * share))
    rng = np.random.default_rng([seed, len(split)])
    (folder / f"{split}2017").mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    entries: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": shapes_categories(5)}
    for index in range(images):
        made = shapes_image(seed, split, index, options)
        boxes, categories = objects_of(made)
        near = np.repeat((boxes[:, :2] + boxes[:, 2:]) / 2, CROPS_OF_AN_OBJECT, 0)
        near += rng.uniform(-TILE / 2, TILE / 2, near.shape)
        anywhere = rng.uniform(0, TRAINING_SIDE, (int(EMPTY_SHARE * len(near)), 2))
        for x, y in np.clip(np.concatenate([near, anywhere]) - TILE / 2, 0, TRAINING_SIDE - TILE).astype(int):
            number = len(entries["images"]) + 1
            name = f"{number:06}.png"
            Image.fromarray(made.pixels[y : y + TILE, x : x + TILE]).save(folder / f"{split}2017" / name)
            entries["images"].append({"id": number, "file_name": name, "height": TILE, "width": TILE})
            inside = np.clip(boxes - [x, y, x, y], 0, TILE)
            left = np.prod(inside[:, 2:] - inside[:, :2], 1) / np.prod(boxes[:, 2:] - boxes[:, :2], 1)
            for k in np.flatnonzero(left >= VISIBLE):
                x0, y0, x1, y1 = inside[k].tolist()
                entries["annotations"].append(
                    {
                        "id": len(entries["annotations"]) + 1,
                        "image_id": number,
                        "category_id": categories[k],
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": (x1 - x0) * (y1 - y0),
                        "iscrowd": 0,
                    }
                )
    (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(entries))


def prepare(work: Path, epochs: int, images: int) -> None:
    """Makes the large images and the crops, and trains the tour's DETR on."""
    share = OBJECT / SIDE
    write_shapes(
        work / "large",
        images={"val": images},
        seed=11,
        sides=(SIDE, SIDE),
        objects=(80, 90),
        object_size=(share, share),
    )
    write_crops(work / "crops", "train", 10, 5)
    write_crops(work / "crops", "val", 1, 5)
    words = ["--recipe", str(TOUR / "detr.yaml"), "--init-from", str(TOUR / "detr.safetensors")]
    words += ["--out", str(work / "run"), "--epochs", str(epochs), "--device", "cpu"]
    subprocess.run([sys.executable, "-m", "detrkit", "train", str(work / "crops"), *words], check=True)


def times_found(boxes: torch.Tensor, labels: torch.Tensor, found: Detections, score: float) -> torch.Tensor:
    """(N,) number of detections above a score that are of each object: of its class, at an IoU of 0.5 or more."""
    kept = found.select(found.scores > score)
    return ((box_iou(boxes, kept.boxes) >= 0.5) & (labels[:, None] == kept.labels)).sum(1)


def on_seam(boxes: torch.Tensor, windows: Sequence[tuple[int, int, int, int]]) -> torch.Tensor:
    """(N,) bool: whether an edge of a tile, inside the image, crosses an object."""
    crossed = torch.zeros(len(boxes), dtype=torch.bool)
    for axis in (0, 1):
        edges = torch.tensor(sorted({w[k] for w in windows for k in (axis, axis + 2)} - {0, SIDE}), dtype=boxes.dtype)
        crossed |= ((edges > boxes[:, axis, None]) & (edges < boxes[:, axis + 2, None])).any(1)
    return crossed


def unmerged(detector: Detector, image: Image.Image, tiling: Tiling) -> Detections:
    """The detections of the whole image and of all tiles, moved to their places: nothing is left out."""
    windows = [(0, 0, *image.size), *tiling.windows(image.height, image.width)]
    crops = (image if k == 0 else image.crop(w) for k, w in enumerate(windows))
    parts = []
    for (x, y, _, _), one in zip(windows, detector.stream(crops, threshold=FLOOR, batch_size=BATCH), strict=True):
        parts.append((one.boxes + one.boxes.new_tensor([x, y, x, y]), one.scores, one.labels))
    boxes, scores, labels = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return Detections(boxes, scores, labels, classes=detector.classes)


def image_of(dataset: Any, index: int) -> Image.Image:
    """An image of the dataset."""
    return Image.fromarray(dataset.image(index).as_subclass(torch.Tensor).permute(1, 2, 0).numpy())


def suppressed(every: Detections) -> Detections:
    """What plain class-wise non-maximum suppression leaves, at an IoU of 0.5."""
    return every.select(batched_nms(every.boxes, every.scores, every.labels, 0.5))


def measure(work: Path, weights: str, images: int, overlap: float, path: Path | None) -> None:
    """Evaluates every way to predict, and writes the rows."""
    detector = detrkit.load(weights, device="cpu")
    tiling = Tiling(TILE, overlap)
    dataset = detrkit.open_dataset(work / "large", split="val").subset(range(images))
    truth = dataset.ground_truth()
    raw = cache(lambda index: unmerged(detector, image_of(dataset, index), tiling))
    ways: dict[str, Callable[[int], Detections]] = {
        "whole image": lambda index: detector.predict(image_of(dataset, index), threshold=FLOOR),
        "tiles, merged": lambda index: detector.predict(
            image_of(dataset, index), threshold=FLOOR, tile=TILE, overlap=overlap, batch_size=BATCH
        ),
        "tiles, nothing merged": raw,
        "tiles, class-wise NMS": lambda index: suppressed(raw(index)),
    }
    score = detector.threshold
    report = Report(
        f"{images} images of {SIDE:,} x {SIDE:,} pixels, objects of {OBJECT}, tiles of {TILE}, overlap {overlap:g}"
    )
    for name, predict in ways.items():
        evaluator = DetectionEvaluator(truth, max_dets=MOST)
        counts, seams, began = [], [], time.perf_counter()
        for index in range(len(dataset)):
            record = dataset.records[index]
            found = replace(predict(index), image_id=record.image_id, classes=dataset.classes, image=None)
            evaluator.add(found)
            boxes, labels = torch.from_numpy(record.boxes).float(), torch.from_numpy(record.labels)
            counts.append(times_found(boxes, labels, found, score))
            seams.append(on_seam(boxes, tiling.windows(SIDE, SIDE)))
        seconds = (time.perf_counter() - began) / len(dataset)
        metrics, times, seam = evaluator.compute(), torch.cat(counts), torch.cat(seams)
        row: dict[str, Any] = {"way": name, "AP": 100 * metrics.AP, "AP50": 100 * metrics.AP50}
        for place, where in (("on a seam", seam), ("elsewhere", ~seam)):
            row[f"objects {place}"] = int(where.sum())
            row[f"found once, {place}"] = int((times[where] == 1).sum())
            row[f"twice or more, {place}"] = int((times[where] > 1).sum())
        timed = not name.endswith("NMS")  # which has the tiles' detections already
        report.add(**row, **{"s an image": seconds if timed else "as above"})
    report.write(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the images and of the training")
    parser.add_argument("--train", action="store_true", help="make the images and train, instead of measuring")
    parser.add_argument("--epochs", type=int, default=8, help="of the training (default %(default)s)")
    parser.add_argument("--images", type=int, default=4, help="large images (default %(default)s)")
    parser.add_argument("--weights", help="by default those of the training")
    parser.add_argument(
        "--overlap", type=float, default=0.25, help="of the tiles (default %(default)s: objects are whole)"
    )
    parser.add_argument("--json", type=Path, help="also write the rows there, for docs/large-images.md")
    options = parser.parse_args()
    if options.train:
        prepare(options.work, options.epochs, options.images)
    else:
        weights = options.weights or str(options.work / "run")
        measure(options.work, weights, options.images, options.overlap, options.json)


if __name__ == "__main__":
    main()
