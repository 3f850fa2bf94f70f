"""`write_shapes`: a synthetic dataset laid out like COCO 2017, with instance masks and, optionally, panoptic truth.

Everything about an image follows from (seed, split, index), so that the first 200 images are the same whether 200 or
20,000 are written, on any number of processes. The image holds only what is annotated: an object that others hide
too much is taken out of the image, not just out of the json.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from hotcoco import mask as rle_codec
from PIL import Image
from pydantic import Field

from detrkit.data.panoptic import write_id_map
from detrkit.data.tools.outlines import SHAPES, coverage
from detrkit.utils.errors import DetrkitError
from detrkit.utils.folders import new_directory
from detrkit.utils.image_files import image_bytes
from detrkit.utils.names import checked_name, full_path
from detrkit.utils.ranges import (
    Decay,
    ShapesClasses,
    ShapesImages,
    ShapesObjects,
    ShapesSide,
    ShapesSize,
    Weight,
    WideSeed,
    check_values,
)

THINGS = tuple(SHAPES)
# Official panoptic code takes an id <= 90 for a thing, so stuff starts above.
STUFF = {91: "sky", 92: "grass", 93: "sand"}
_STUFF_COLORS = {91: (120, 170, 220), 92: (90, 150, 70), 93: (205, 180, 130)}
# Image ids of different splits never meet, and do not depend on how many images a split has.
_FIRST_ID = {"train": 1, "val": 1_000_001, "test": 2_000_001}
_OTHER_FIRST_ID = 3_000_001


@dataclass(frozen=True, kw_only=True)
class ShapesOptions:
    """Options for the appearance of the images.

    Attributes:
        sides: smallest and largest side of an image, in pixels; height and width are drawn apart.
        classes: how many of the shapes are used, in the order of `THINGS` (1 to 10).
        objects: fewest and most objects drawn per image (hidden ones are then left out).
        object_size: smallest and largest diameter of an object, as a share of the image's shorter side; drawn evenly
            on a logarithmic scale.
        hidden: an object of which more than this share is covered or outside the image is left out.
        colours: "random": color says nothing about the class; "class": every class has its hue (easier to learn).
        quality: JPEG quality, 1 to 95.
        class_shares: of training images: how often each class is drawn, one number for each, in any unit; by default
            all alike. Other splits have all alike, so that an evaluation measures each on about as many objects.
        empty: share of the images that are drawn without objects.
    """

    sides: tuple[ShapesSide, ShapesSide] = (96, 128)
    classes: ShapesClasses = 5
    objects: tuple[ShapesObjects, ShapesObjects] = (1, 6)
    object_size: tuple[ShapesSize, ShapesSize] = (0.15, 0.5)
    hidden: Decay = 0.6
    colours: Literal["random", "class"] = "random"
    quality: Annotated[int, Field(ge=1, le=95)] = 92
    class_shares: tuple[Weight, ...] = ()
    empty: Decay = 0.0

    def __post_init__(self) -> None:
        check_values(self)
        for name in ("sides", "objects", "object_size"):
            low, high = getattr(self, name)
            if low > high:
                raise DetrkitError(f"shapes: {name} {low} {high}: first the smaller one")
        if self.class_shares and (len(self.class_shares) != self.classes or not any(self.class_shares)):
            given = " ".join(f"{share:g}" for share in self.class_shares)
            raise DetrkitError(
                f"shapes: class_shares {given}: give one number for each of the {self.classes} classes, not all 0"
            )


@dataclass(frozen=True)
class _Counts:
    """Numbers among the arguments of `write_shapes`, to be checked."""

    images: tuple[ShapesImages, ...]
    seed: WideSeed


@dataclass(frozen=True)
class ShapesImage:
    """One synthetic image.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
        things: category id and (H, W) bool visible mask of every object, from back to front.
        stuff: category id and (H, W) bool visible mask of every background region.
    """

    pixels: np.ndarray
    things: list[tuple[int, np.ndarray]]
    stuff: list[tuple[int, np.ndarray]]


def write_shapes(
    path: str | Path,
    *,
    images: Mapping[str, int] | None = None,
    seed: int = 0,
    panoptic: bool = False,
    force: bool = False,
    **options: Any,
) -> Path:
    """Write the dataset: `{split}2017/*.jpg` and `annotations/instances_{split}2017.json`.

    With `panoptic` also `annotations/panoptic_{split}2017.json` and `panoptic_{split}2017/*.png`: the shapes are
    things, the sky and the ground behind them stuff. The images are the same.

    Bit-identical for the same arguments (and the same versions of numpy and Pillow), but for detrkit-files.json, which
    notes when the files were written. About 2.5 ms per image of 128 px.

    Args:
        path: the folder to make; it appears only when it is complete.
        images: number of images of every split; by default 2000 for train and 200 for val.
        seed: of the random numbers; another seed gives other images.
        panoptic: whether to write panoptic truth too.
        force: replace a dataset that detrkit wrote there and nobody has changed.
        **options: the fields of `ShapesOptions`.

    Returns:
        The folder.

    Raises:
        DetrkitError: a bad option, or `path` exists already.
    """
    counts = dict(images) if images is not None else {"train": 2000, "val": 200}
    chosen = ShapesOptions(**options)
    check_values(_Counts(tuple(counts.values()), seed))
    if not any(counts.values()):
        raise DetrkitError("shapes: no split has an image: ask for one image at least")
    if sum(split not in _FIRST_ID for split in counts) > 1:
        raise DetrkitError(f"shapes: images={counts}: name the splits train, val and test, and at most one other")
    for split in counts:
        checked_name(split, "shapes: name of a split")
    path = full_path(path)
    with new_directory(path, force=force) as root:
        (root / "annotations").mkdir()
        for split, count in counts.items():
            _write_split(root, split, count, seed, chosen, panoptic=panoptic)
    return path


def _write_split(root: Path, split: str, count: int, seed: int, options: ShapesOptions, *, panoptic: bool) -> None:
    """Write images, json files and PNGs of one split."""
    name = f"{split}2017"
    (root / name).mkdir()
    if panoptic:
        (root / f"panoptic_{name}").mkdir()
    images: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    segments: list[dict[str, Any]] = []
    first = _FIRST_ID.get(split, _OTHER_FIRST_ID)
    for index in range(count):
        image = shapes_image(seed, split, index, options)
        image_id = first + index
        stem = f"{image_id:012d}"
        height, width = image.pixels.shape[:2]
        images.append({"id": image_id, "file_name": f"{stem}.jpg", "height": height, "width": width})
        instances += _instances(image, image_id)
        # 4:4:4 keeps the edges of small saturated shapes; PNG level 1 is a third of the time for 20 % more bytes.
        jpeg = image_bytes(image.pixels, ".jpg", quality=options.quality, subsampling=0)
        (root / name / f"{stem}.jpg").write_bytes(jpeg)
        if panoptic:
            ids, info = _segments(image)
            write_id_map(root / f"panoptic_{name}" / f"{stem}.png", ids, compress_level=1)
            segments.append({"image_id": image_id, "file_name": f"{stem}.png", "segments_info": info})
    dump = {"info": {"description": "detrkit shapes", "seed": seed, "split": split}, "images": images}
    things = shapes_categories(options.classes)
    _write_json(
        root / "annotations" / f"instances_{name}.json", dump | {"annotations": instances, "categories": things}
    )
    if panoptic:
        categories = _panoptic_categories(things)
        _write_json(
            root / "annotations" / f"panoptic_{name}.json", dump | {"annotations": segments, "categories": categories}
        )


def _panoptic_categories(things: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the categories of the shapes and of the stuff behind them, each with a color (RGB, 0..255)."""
    stuff = [
        {"id": i, "name": n, "supercategory": "background", "isthing": 0, "color": list(_STUFF_COLORS[i])}
        for i, n in STUFF.items()
    ]
    colored = [
        {**c, "isthing": 1, "color": [int(v) for v in _hue_rgb(i / len(THINGS), 0.75, 0.9)]}
        for i, c in enumerate(things)
    ]
    return colored + stuff


def shapes_categories(classes: int) -> list[dict[str, Any]]:
    """Return the COCO categories of the first `classes` shapes: ids from 1."""
    return [{"id": i + 1, "name": n, "supercategory": "shape"} for i, n in enumerate(THINGS[:classes])]


def shapes_image(seed: int, split: str, index: int, options: ShapesOptions) -> ShapesImage:
    """Draw image number `index` of a split, which depends on nothing but the arguments."""
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index])
    height, width = (int(v) for v in rng.integers(options.sides[0], options.sides[1] + 1, 2))
    canvas, stuff_ids = _background(rng, height, width)
    shares = options.class_shares if split == "train" else ()
    drawn = list(_objects(rng, height, width, options, shares))
    visible = _visible_enough(drawn, height, width, options.hidden)
    owner = np.full((height, width), -1, np.int32)  # index of the visible object at a pixel, -1 background
    for k, thing in enumerate(visible):
        region = canvas[thing.window]
        alpha = thing.alpha[..., None]
        region += alpha * (thing.paint - region)
        owner[thing.window][thing.alpha >= 0.5] = k
    things = [(thing.category, owner == k) for k, thing in enumerate(visible)]
    stuff = [(i, (owner < 0) & (stuff_ids == i)) for i in STUFF]
    noise = rng.normal(0, 3, (height, width, 1))  # a camera's grain
    final = np.clip(np.rint(canvas + noise), 0, 255).astype(np.uint8)
    return ShapesImage(final, things, [(i, m) for i, m in stuff if m.any()])


@dataclass(frozen=True)
class _Thing:
    """Object before others hide it: what it covers of the image, at which pixels and in which colors."""

    category: int
    window: tuple[slice, slice]
    alpha: np.ndarray  # (h, w) share of each pixel covered, inside the image
    paint: np.ndarray  # (h, w, 3) colors
    full: float  # pixels of the whole object, with what lies outside the image


def _objects(
    rng: np.random.Generator, height: int, width: int, options: ShapesOptions, shares: Sequence[float]
) -> Iterator[_Thing]:
    """Draw random objects, from back to front; of classes with shares, or all alike."""
    short = min(height, width)
    low, high = np.log(options.object_size)
    if options.empty and float(rng.uniform()) < options.empty:
        return
    for _ in range(int(rng.integers(options.objects[0], options.objects[1] + 1))):
        if shares:
            label = int(rng.choice(options.classes, p=np.array(shares) / sum(shares)))
        else:
            label = int(rng.integers(options.classes))
        radius = short * float(np.exp(rng.uniform(low, high))) / 2
        # The center keeps 0.6 radius from the border: objects may be cut by it, but stay recognizable.
        cx, cy = (float(rng.uniform(min(0.6 * radius, s / 2), max(s - 0.6 * radius, s / 2))) for s in (width, height))
        angle = float(rng.uniform(-np.pi, np.pi))
        hue = float(rng.uniform())
        if options.colours == "class":
            hue = label / options.classes + (hue - 0.5) * 0.5 / options.classes
        color = _hue_rgb(hue, float(rng.uniform(0.65, 1.0)), float(rng.uniform(0.55, 1.0)))
        left, top = int(np.floor(cx - radius)) - 1, int(np.floor(cy - radius)) - 1
        side = int(np.ceil(2 * radius)) + 3
        alpha = coverage(THINGS[label], side, (cx - left, cy - top), radius, angle)  # (side, side)
        rows, columns = np.mgrid[:side, :side]
        # Light from the upper left: from 1.25 down to 0.75 of the color across the object.
        light = 1 - 0.25 * ((columns - side / 2) + (rows - side / 2)) / side
        paint = np.clip(light[..., None] * color, 0, 255)
        y0, y1, x0, x1 = max(top, 0), min(top + side, height), max(left, 0), min(left + side, width)
        inside = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        window = (slice(y0, y1), slice(x0, x1))
        yield _Thing(label + 1, window, alpha[inside], paint[inside], float((alpha >= 0.5).sum()))


def _visible_enough(drawn: list[_Thing], height: int, width: int, hidden: float) -> list[_Thing]:
    """Return the objects, from back to front, of which at least a share 1 - `hidden` (and a pixel) can be seen.

    This is decided from front to back, so that an object that is left out hides nothing.
    """
    visible: list[_Thing] = []
    covered = np.zeros((height, width), bool)
    for thing in reversed(drawn):
        solid = thing.alpha >= 0.5
        region = covered[thing.window]
        seen = int((solid & ~region).sum())
        if seen > 0 and seen >= (1 - hidden) * thing.full:
            visible.append(thing)
            region |= solid
    return visible[::-1]


def _background(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw an (H, W, 3) float image of sky over grass or sand; also return its (H, W) int stuff ids."""
    x = np.arange(width) / width
    tilt, wave, phase = rng.uniform(-0.08, 0.08), rng.uniform(0, 0.05), rng.uniform(0, 2 * np.pi)
    line = rng.uniform(0.3, 0.7) + tilt * (x - 0.5) + wave * np.sin(2 * np.pi * x + phase)
    ground = (np.arange(height)[:, None] + 0.5) > (line * height)[None, :]
    kind = 92 if rng.uniform() < 0.5 else 93
    ids = np.where(ground, kind, 91)
    depth = np.linspace(0, 1, height)[:, None, None]
    tint = rng.uniform(0.85, 1.1)
    clouds = _noise(rng, height, width, 24)[..., None]
    sky = np.array([110.0, 160.0, 215.0]) * tint * (0.85 + 0.3 * depth) + 12 * clouds
    texture = 0.6 * _noise(rng, height, width, 16) + 0.6 * _noise(rng, height, width, 3)
    base = np.array([95.0, 145.0, 75.0] if kind == 92 else [205.0, 180.0, 135.0])
    earth = base * rng.uniform(0.8, 1.05) * (0.8 + 0.3 * depth) + 16 * texture[..., None]
    return np.where(ground[..., None], earth, sky), ids


def _noise(rng: np.random.Generator, height: int, width: int, cell: int) -> np.ndarray:
    """Draw (H, W) smooth noise of about unit variance with a grain of `cell` pixels."""
    grid = rng.standard_normal((height // cell + 2, width // cell + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC), np.float64)


def _hue_rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """Return (3,) RGB in 0..255 of a hue in turns."""
    k = (np.array([5.0, 3.0, 1.0]) + hue * 6) % 6
    rgb: np.ndarray = 255 * value * (1 - saturation * np.clip(np.minimum(k, 4 - k), 0, 1))
    return rgb


def _box(mask: np.ndarray) -> list[int]:
    """Return xywh pixels of a mask that is not empty; x + w is one past its last column, as in COCO panoptic."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]


def _instances(image: ShapesImage, image_id: int) -> list[dict[str, Any]]:
    """Make COCO annotations of the objects: visible box, area, compressed RLE (a ring has a hole, polygons do not)."""
    annotations = []
    for k, (category, mask) in enumerate(image.things):
        rle = rle_codec.encode(np.asfortranarray(mask.astype(np.uint8)))
        counts = rle["counts"]
        annotations.append(
            {
                "id": image_id * 100 + k,
                "image_id": image_id,
                "category_id": category,
                "bbox": _box(mask),
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": {
                    "size": [int(v) for v in rle["size"]],
                    "counts": counts.decode() if isinstance(counts, bytes) else counts,
                },
            }
        )
    return annotations


def _segments(image: ShapesImage) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return (H, W) int segment ids, none of them 0, and the segments_info; stuff first."""
    ids = np.zeros(image.pixels.shape[:2], np.int64)
    segments = []
    for k, (category, mask) in enumerate(image.stuff + image.things):
        # An odd factor permutes the 24-bit numbers: ids are unique, and neighbors differ in color for the eye.
        segment = (k + 1) * 3_141_593 % 2**24
        ids[mask] = segment
        area = int(mask.sum())
        segments.append({"id": segment, "category_id": category, "area": area, "bbox": _box(mask), "iscrowd": 0})
    return ids, segments


def _write_json(file: Path, value: Any) -> None:
    """Write compact JSON."""
    file.write_text(json.dumps(value, separators=(",", ":")), encoding="utf-8")
