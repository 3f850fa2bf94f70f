"""`detrkit explain`."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from detrkit.cli.predict_files import Inputs, find_images, output_stems
from detrkit.cli.preflight import check_dataset, check_model, check_weights
from detrkit.utils.console import Terminal, console, table_console, track
from detrkit.utils.devices import DeviceName
from detrkit.utils.errors import DetrkitError, UsageError, WriteError
from detrkit.utils.folders import check_replaceable, claimed_files, is_as_noted, noted_files
from detrkit.utils.layouts import Layout
from detrkit.utils.memory import is_out_of_memory
from detrkit.utils.messages import names_and_more
from detrkit.utils.names import full_path
from detrkit.utils.ranges import BatchSize, Coordinate, Count, CountOrNone, InputSize, ScoreThreshold
from detrkit.utils.visible import one_line

if TYPE_CHECKING:
    from detrkit.detector import Detector
    from detrkit.explanation import Explanation
    from detrkit.explanation.queries import QuerySlots

QUERIES = ("queries.png", "queries-all.png", "queries.json")
_MAX_NAMES = 3


@dataclass(frozen=True)
class Explain:
    """Show what a model attended to when it found the objects of images: pictures, and numbers as JSON.

    Every image gets a folder of its own name in OUT: objects.jpg (the attention of all objects, each in its color),
    encoder.jpg (what pixels attend to), layers.jpg, for each of the best objects its map, heads and boxes by layer,
    with Deformable DETR its sampled points, and explanation.json. A folder that detrkit wrote before is replaced, no
    other. An image that cannot be read is reported and left out; the exit status is then 1.

    With --queries, OUT gets queries.png instead: what each query of the model predicts over a dataset, and the numbers.

    Such as:

    detrkit explain runs/first street.jpg

    detrkit explain runs/first 'photos/**/*.jpg' --page --out seen

    detrkit explain runs/first --queries my_data --split val
    """

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """Weights: a run directory, a .safetensors or official .pth file, a model name such as detr-r50 (published), or one
    on the Hugging Face Hub such as facebook/detr-resnet-50."""
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE|FOLDER|GLOB")] = ()
    """Images: files, folders (searched one level deep) and quoted patterns such as 'photos/**/*.jpg'."""
    out: Path = Path("explanations")
    """Folder to write into; created if it does not exist."""
    threshold: ScoreThreshold | None = None
    """Explain what has a greater score, 0 to 1; by default as detrkit predict."""
    objects: CountOrNone = 10
    """Objects of an image that get pictures of their own, the best ones; the JSON has all."""
    points: Annotated[tuple[Coordinate, ...], tyro.conf.arg(metavar="X Y ...")] = ()
    """Pixels of the encoder's pictures: X Y, or X Y X Y ..., from the upper left corner of the image. By default the
    centers of the best four boxes."""
    page: bool = False
    """Also write page.html: one file to click through, which needs no server and no network."""
    queries: Path | None = None
    """A dataset: draw which boxes every query predicts in its images, instead of explaining images."""
    split: str | None = "val"
    """The split of that dataset."""
    layout: Layout | None = None
    """The kind of files of that dataset; by default it is recognized."""
    limit: Count | None = None
    """Only this many images of that dataset, the first ones."""
    batch_size: BatchSize = 4
    """Images of that dataset in one forward pass; the result does not depend on it."""
    size: InputSize | None = None
    """Short side in pixels to resize images to; by default the checkpoint's (800 for published weights)."""
    device: DeviceName | None = None
    """cpu, cuda, cuda:1, mps, ... or the number of a GPU; by default a GPU if there is one."""
    model: str | None = None
    """Model name, for official .pth files that do not name their model."""

    def check(self) -> None:
        """Check what needs no torch.

        Raises:
            DetrkitError: no image, no such weights, model or dataset, or files that may not be written over.
        """
        if self.queries is None and not self.inputs:
            raise UsageError("no images given: name files, folders or patterns, or --queries and a dataset")
        if self.queries is not None and self.inputs:
            raise UsageError(f"--queries takes a dataset and no images: leave out {one_line(self.inputs[0])}")
        self._check_unused()
        if len(self.points) % 2:
            raise UsageError(f"--points {' '.join(f'{v:g}' for v in self.points)}: give X Y pairs, such as 120 80")
        out = full_path(self.out)
        if out.exists() and not out.is_dir():
            raise DetrkitError(f"{self.out} is a file: choose another output folder")
        if self.queries is None:
            self._folders(self._images().files)
        else:
            check_dataset(self.queries)
        check_weights(self.checkpoint)
        check_model(self.model)

    def run(self) -> int:
        """Explain, write and print; return 1 if an image could not be read."""
        self.check()  # under several processes nobody has
        from detrkit.detector import load

        detector = load(self.checkpoint, name=self.model, device=self.device)
        if self.size is not None:
            detector = detector.resized(self.size)
        detector.resolve_threshold(self.threshold)  # one message, not one for each image
        return self._explain(detector) if self.queries is None else self._draw_queries(detector)

    def _check_unused(self) -> None:
        """Check that no option is given that would change nothing.

        Raises:
            UsageError: one is.
        """
        unused = (
            {"--limit": self.limit, "--layout": self.layout}
            if self.queries is None
            else {"--page": self.page, "--points": self.points}
        )
        for option, value in unused.items():
            if value:
                fix = "give --queries, too" if self.queries is None else "leave out --queries, and name images"
                raise UsageError(f"{option} is of {'a dataset' if self.queries is None else 'images'}: {fix}")

    def _images(self) -> Inputs:
        """Find the images; pictures of explanations in the output folder are no images of a folder or pattern.

        Raises:
            DetrkitError: an input without any image.
        """
        found = find_images(self.inputs)
        out, named = full_path(self.out), {full_path(text) for text in self.inputs}
        files = [file for file in found.files if full_path(file) in named or not _is_explanation(full_path(file), out)]
        if not files:
            raise DetrkitError(f"{self.inputs[0]}: no images but the pictures of explanations in {self.out}")
        return Inputs(files, found.left_out)

    def _folders(self, files: list[Path]) -> dict[Path, Path]:
        """Return the folder of each image.

        Raises:
            DetrkitError: one may not be replaced.
        """
        out = full_path(self.out)
        # of an image ..jpg the stem is a dot, which as a folder is another one
        folders = {
            file: out / (stem if stem.strip(".") else f"image{stem}") for file, stem in output_stems(files).items()
        }
        for folder in folders.values():
            check_replaceable(folder, force=True)
        return folders

    def _explain(self, detector: Detector) -> int:
        """Explain the images one by one; return the command's status.

        Raises:
            DetrkitError: no image could be explained, or nothing more can be written.
        """
        from detrkit.cli.predict_summary import Summary

        files, left_out = self._images()
        errors = Terminal(stderr=True, soft_wrap=True)
        if left_out:
            are = "1 file is no image" if len(left_out) == 1 else f"{len(left_out)} files are no images"
            errors.print(one_line(f"{are}: {names_and_more([file.name for file in left_out], _MAX_NAMES)}"))
        folders, summary = self._folders(files), Summary()
        for file in track(files, "explain", len(files)):
            try:
                explanation = self._explanation(detector, file)
                written = explanation.save(folders[file], pixels=self._pixels(), objects=self.objects, page=self.page)
            except WriteError:  # of one image today is of all tomorrow: a full disk, a folder without rights
                raise
            except (DetrkitError, ValueError) as error:
                errors.print(one_line(f"error {error if str(file) in str(error) else f'{file}: {error}'}"))
                continue
            detections = explanation.detections
            summary.add(str(file), detections.names, detections.near_miss)
            console.print(one_line(f"{self.out / folders[file].name}: {len(written)} files"))
        if not summary:
            raise DetrkitError("no image could be explained, see above")
        summary.print(table_console(), detector, self.threshold, verbose=False)
        return 0 if len(summary) == len(files) else 1

    def _explanation(self, detector: Detector, file: Path) -> Explanation:
        """Explain one image.

        Raises:
            DetrkitError: it cannot be read, or needs too much memory.
        """
        from detrkit.explanation import explain

        try:
            return explain(detector, file, threshold=self.threshold)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            fix = "too large for the memory of this machine: try a smaller --size"
            raise DetrkitError(f"{file}: {fix}") from error

    def _pixels(self) -> list[tuple[float, float]] | None:
        """Return the pixels of --points, None for the default."""
        return list(zip(self.points[::2], self.points[1::2], strict=True)) or None

    def _draw_queries(self, detector: Detector) -> int:
        """Draw what every query predicts over the dataset, and write the numbers."""
        from detrkit.explanation.queries import MOST_USED
        from detrkit.utils.atomic import write_atomic
        from detrkit.utils.image_files import image_bytes

        assert self.queries is not None
        out, source = full_path(self.out), full_path(self.queries).name
        with claimed_files(out, QUERIES):
            slots = self._slots(detector)
            numbers: dict[str, Any] = {"model": detector.spec.name, "data": source, "split": self.split}
            numbers |= {"threshold": slots.postprocessor.threshold, **slots.numbers()}
            write_atomic(out / QUERIES[0], image_bytes(slots.draw(source=source)))
            everything = slots.num_queries > MOST_USED
            if everything:
                write_atomic(out / QUERIES[1], image_bytes(slots.draw(slots.by_use(), source=source)))
            else:
                (out / QUERIES[1]).unlink(missing_ok=True)  # of a model with more queries, written before
            write_atomic(out / QUERIES[2], json.dumps(numbers, ensure_ascii=False) + "\n")
        used = int((slots.counts > 0).sum())
        images = f"{slots.images:,} image{'' if slots.images == 1 else 's'}"
        console.print(f"{used} of {slots.num_queries} queries have a detection in {images}")
        if slots.two_stage:
            console.print(
                "this model has two stages: a query is the rank of a proposal by its score, no learned query, so that "
                "the same query looks elsewhere in every image"
            )
        for name in QUERIES if everything else (QUERIES[0], QUERIES[2]):
            console.print(one_line(str(self.out / name)))
        return 0

    def _slots(self, detector: Detector) -> QuerySlots:
        """Run the model over the dataset.

        Raises:
            DetrkitError: no such dataset or split, or an image that cannot be read.
        """
        from detrkit.data import open_dataset
        from detrkit.engine.evaluating import eval_loader
        from detrkit.engine.evaluation_loop import iter_outputs
        from detrkit.explanation.queries import QuerySlots
        from detrkit.utils.memory import check_batch

        assert self.queries is not None
        check_batch(detector.spec.size, detector.spec.max_size, self.batch_size)
        dataset = open_dataset(self.queries, split=self.split, layout=self.layout)
        if self.limit is not None:
            dataset = dataset.subset(range(min(self.limit, len(dataset))))
        loader = eval_loader(dataset, detector.spec, batch_size=self.batch_size, workers=None, device=detector.device)
        slots = QuerySlots.of(detector, detector.resolve_threshold(self.threshold))
        with closing(iter_outputs(detector.model, track(loader, "queries", len(loader)))) as evaluated:
            for one in evaluated:
                slots.add(one.outputs)
        return slots


def _is_explanation(file: Path, out: Path) -> bool:
    """Return whether a file is a picture that an explanation wrote into a folder of `out`, unchanged since."""
    folder = file.parent
    if folder.parent != out:
        return False
    try:
        noted = noted_files(folder)
        return "explanation.json" in noted and file.name in noted and is_as_noted(folder, file.name, noted)
    except (DetrkitError, OSError):
        return False
