"""`detrkit data check | convert | shapes | preview | mix | download`.

Each command is a frozen dataclass, whose docstring and fields tyro makes into --help, with `run() -> exit status`.
Heavy modules (torch) are imported when a command runs, so that --help is quick.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table
from tyro.conf import Positional

from detrkit.cli.data_download import DataDownload
from detrkit.cli.data_mix import DataMix
from detrkit.cli.preflight import check_dataset, check_folders
from detrkit.utils.augments import Augment
from detrkit.utils.console import table_console
from detrkit.utils.layouts import Layout, TargetLayout
from detrkit.utils.names import full_path
from detrkit.utils.ranges import (
    CountOrNone,
    Decay,
    Few,
    InputSize,
    Range,
    ShapesClasses,
    ShapesImages,
    ShapesObjects,
    ShapesSide,
    ShapesSize,
    Share,
    Weight,
    WideSeed,
)
from detrkit.utils.visible import one_line


@dataclass(frozen=True)
class DataCheck:
    """Look for every fault of a dataset, and count what is in it.

    Also finds images that are byte for byte the same, within a split or in two, boxes in another convention than the
    format has, and objects too small to learn. Ends in a sentence that says whether it can be trained on, and the next
    command. Exits with status 1 if there are errors.
    """

    path: Positional[Path]
    """The dataset's folder, COCO json, data.yaml, parquet or CSV file; the layout is recognized."""
    split: str | None = None
    """The split to check, such as train. By default all of them."""
    layout: Layout | None = None
    """Annotations to check. By default those that are recognized, COCO instances before panoptic."""
    decode: bool = False
    """Decode every image instead of reading its header: finds truncated files, at about 3 ms per image."""
    limit: CountOrNone = 50
    """How many faults of each severity are printed (all are counted); 0 for all."""

    def check(self) -> None:
        """Check that the dataset is there."""
        check_dataset(self.path)

    def run(self) -> int:
        """Check and print; return 1 if errors were found."""
        from detrkit.cli.data_report import print_report
        from detrkit.data.tools.check import check

        report = check(self.path, self.split, decode=self.decode, layout=self.layout)
        print_report(report, table_console(), limit=self.limit, path=self.path, split=self.split, layout=self.layout)
        return 0 if report.ok else 1


@dataclass(frozen=True)
class DataConvert:
    """Convert a dataset between COCO, Pascal VOC, YOLO, parquet and CSV.

    The result is read back and compared with the source before it appears; the numbers printed are those found in it.
    VOC, YOLO and CSV keep the order of the classes but no ids; VOC and YOLO no segment areas; none but COCO keeps
    masks; YOLO has no crowd regions. A panoptic dataset is read too: in COCO its segments are objects with masks.
    """

    source: Positional[Path]
    """The dataset to read; the layout is recognized."""
    destination: Positional[Path]
    """The folder to make."""
    to: TargetLayout
    """The layout to write."""
    split: str | None = None
    """The split to convert. By default all of them."""
    layout: Layout | None = None
    """Annotations to read. By default those that are recognized, COCO instances before panoptic."""
    things_only: bool = False
    """Leave out stuff, which a panoptic dataset has besides things."""
    images: Literal["copy", "hardlink", "symlink"] = "copy"
    """What to do with the image files. Parquet holds the images themselves: copy."""
    force: bool = False
    """Replace a dataset that detrkit wrote at the destination and nobody has changed since."""

    def check(self) -> None:
        """Check that the dataset is there."""
        check_dataset(self.source)

    def run(self) -> int:
        """Convert and print what was written."""
        from detrkit.data.tools.convert import convert

        done = convert(
            self.source,
            self.destination,
            to=self.to,
            split=self.split,
            images=self.images,
            force=self.force,
            layout=self.layout,
            things_only=self.things_only,
        )
        table = Table(title=f"Written as {self.to}", title_justify="left")
        table.add_column("split")
        for name in ("images", "objects", "boxes without area left out", "crowd left out"):
            table.add_column(name, justify="right")
        for s in done:
            table.add_row(one_line(s.name), *map(str, (s.images, s.objects, s.dropped, s.lost_crowd)))
        console = table_console()
        console.print(table)
        for name, text in (
            ("clamped", "boxes that left their image and end at its border now"),
            ("turned", "images whose boxes lay as the image is stored and lie upright now, as EXIF turns the image"),
            ("reencoded", f"images of a format that {self.to} does not know, written as PNG"),
        ):
            count = sum(getattr(s, name) for s in done)
            if count:
                console.print(f"{text}: {count}", soft_wrap=True)
        console.print(str(full_path(self.destination)), soft_wrap=True)
        return 0


@dataclass(frozen=True)
class DataShapes:
    """Make a synthetic dataset in the layout of COCO 2017: boxes and instance masks, with --panoptic every pixel.

    The same arguments give the same bytes. About 2.5 ms per image of 128 pixels.
    """

    path: Positional[Path]
    """The folder to make."""
    train: ShapesImages = 2000
    """Number of training images."""
    val: ShapesImages = 200
    """Number of validation images."""
    test: ShapesImages = 0
    """Number of test images."""
    sides: tuple[ShapesSide, ShapesSide] = (96, 128)
    """Smallest and largest side of an image, pixels."""
    classes: ShapesClasses = 5
    """Number of classes, 1 to 10: circle, square, triangle, star, ring, cross, heart, crescent, hexagon, arrow."""
    objects: tuple[ShapesObjects, ShapesObjects] = (1, 6)
    """Fewest and most objects drawn per image."""
    object_size: tuple[ShapesSize, ShapesSize] = (0.15, 0.5)
    """Smallest and largest diameter of an object, as a share of the image's shorter side."""
    class_shares: tuple[Weight, ...] = ()
    """How often each class is drawn in training images, such as 100 30 10 3 1 for five classes; other splits have all
    classes alike. By default training images do, too."""
    empty: Decay = 0.0
    """Share of the images that have no object."""
    hidden: Decay = 0.6
    """An object of which more than this share is hidden is left out."""
    colours: Literal["random", "class"] = "random"
    """random: color says nothing about the class; class: every class has its hue, which is easier to learn."""
    panoptic: bool = False
    """Write panoptic ground truth too: the shapes are things; sky, grass and sand behind them are stuff."""
    seed: WideSeed = 0
    """Seed of the images."""
    force: bool = False
    """Replace a dataset that detrkit wrote there and nobody has changed since."""

    def run(self) -> int:
        """Write the dataset and print its path."""
        from detrkit.data.tools.shapes import write_shapes

        images = {name: n for name, n in (("train", self.train), ("val", self.val), ("test", self.test)) if n}
        root = write_shapes(
            self.path,
            images=images,
            seed=self.seed,
            panoptic=self.panoptic,
            force=self.force,
            sides=self.sides,
            classes=self.classes,
            objects=self.objects,
            object_size=self.object_size,
            class_shares=self.class_shares,
            empty=self.empty,
            hidden=self.hidden,
            colours=self.colours,
        )
        table = Table(title="Shapes", title_justify="left")
        table.add_column("split")
        table.add_column("images", justify="right")
        for name, count in images.items():
            table.add_row(f"{name}2017", str(count))
        console = table_console()
        console.print(table)
        console.print(str(root), soft_wrap=True)
        return 0


@dataclass(frozen=True)
class DataPreview:
    """Draw images as the model will see them: originals beside augmented versions, with boxes or masks.

    They are spread evenly over the dataset. With --weights, --repeat-rare or --empty-share they are the first ones that
    a training with these would see, each with how often it comes per epoch.
    """

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """The dataset; the layout is recognized. Of several, all images together."""
    out: Path = Path("preview.png")
    """The image to write; it replaces an earlier preview, no other file."""
    split: str | None = None
    """The split to show, such as train. By default the one to train on, else the first."""
    count: Few = 6
    """Number of images."""
    variants: Few = 3
    """Augmented versions of each."""
    size: InputSize | None = None
    """Largest short side, pixels. By default that which `detrkit train` chooses for these data on this machine; at 800
    the augmentation is the published one, else it is scaled."""
    square: bool = False
    """Squash every image to a square of --size, as RT-DETR gets it (640, or less on a CPU); with --augment flip."""
    augment: Augment = "detr"
    """detr: the published augmentation; flip: mirror only; none: resize only; lsj: large-scale jitter."""
    color: Share = 0.0
    """Strength of color changes, as in training."""
    mosaic: Share = 0.0
    """Probability of a mosaic of four images, as in training."""
    mixup: Share = 0.0
    """Probability that another image is blended over one, as in training."""
    copy_paste: Share = 0.0
    """Probability that objects of another image are pasted onto one, as in training; with --masks."""
    zoom_out: Share = 0.0
    """Probability that an image is shown small, on a black canvas, as in training."""
    iou_crop: Share = 0.0
    """Probability that an image is cropped around an object, as in training."""
    multi_scale: bool = False
    """Give the images of each training step a size of their own: a version has that of the first step of its epoch."""
    weights: tuple[Weight, ...] = ()
    """Of several datasets: how many of an epoch's images each has, as in training."""
    repeat_rare: Annotated[float, Range(gt=0, le=1)] | None = None
    """Share of the images below which a class is rare and comes more often, as in training."""
    empty_share: Decay | None = None
    """Share of an epoch that images without objects have, as in training."""
    masks: bool = False
    """Draw masks too; of a panoptic dataset the segments of things and stuff."""
    layout: Layout | None = None
    """Annotations to show. By default those that are recognized, COCO panoptic with --masks, else instances."""
    seed: WideSeed = 0
    """Seed of the augmentation."""

    def check(self) -> None:
        """Check that the dataset is there."""
        check_folders(self.paths)

    def run(self) -> int:
        """Write the image and print its path."""
        from detrkit.data import merge_datasets, open_dataset
        from detrkit.data.image_mix import ImageMix
        from detrkit.data.opening import first_split
        from detrkit.data.sampling import plan_sampling
        from detrkit.data.transforms import train_transform
        from detrkit.visualize.preview import preview

        sources, others = [], list[str]()
        for path in self.paths:
            split = self.split
            if split is None:
                split, others = first_split(path, self.layout, masks=self.masks)
            sources.append(open_dataset(path, split=split, layout=self.layout, masks=self.masks))
        dataset = merge_datasets(sources)
        sampling = plan_sampling(
            dataset,
            sources=sources,
            weights=self.weights,
            repeat_rare=self.repeat_rare,
            empty_share=self.empty_share,
        )
        size = self.size or self._chosen_size(dataset.split if len(sources) == 1 else self.split or "train")
        transform = train_transform(size, square=self.square, augment=self.augment)
        mix = ImageMix(
            mosaic=self.mosaic,
            mixup=self.mixup,
            copy_paste=self.copy_paste,
            zoom_out=self.zoom_out,
            iou_crop=self.iou_crop,
            multi_scale=self.multi_scale,
        )
        out = preview(
            dataset,
            transform,
            count=self.count,
            out=self.out,
            seed=self.seed,
            variants=self.variants,
            color=self.color,
            mix=mix,
            rates=sampling.rates,
        )
        console = table_console()
        if others and len(sources) == 1:
            text = f"split {dataset.split} ({len(dataset)} images); --split shows another: {', '.join(others)}"
            console.print(one_line(text), soft_wrap=True, markup=False)
        if self.size is None:
            console.print(f"images of {size} pixels, as `detrkit train` would choose here; --size shows another")
        console.print(str(out), soft_wrap=True)
        return 0

    def _chosen_size(self, split: str | None) -> int:
        """Return the short side, pixels, that a training without a recipe would have."""
        from detrkit.config import TrainConfig
        from detrkit.engine.facts import choose_config

        data = {"train_split": split, "layout": self.layout}
        config = TrainConfig().changed(data=data, model={"masks": self.masks or None})
        return choose_config(list(self.paths), config, fixed=("model.masks",)).data.size or 800


DataCommand = (
    Annotated[DataCheck, tyro.conf.subcommand("check")]
    | Annotated[DataConvert, tyro.conf.subcommand("convert")]
    | Annotated[DataShapes, tyro.conf.subcommand("shapes")]
    | Annotated[DataPreview, tyro.conf.subcommand("preview")]
    | Annotated[DataMix, tyro.conf.subcommand("mix")]
    | Annotated[DataDownload, tyro.conf.subcommand("download")]
)
