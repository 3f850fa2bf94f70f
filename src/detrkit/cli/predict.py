"""`detrkit predict`."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from detrkit import __version__
from detrkit.cli.inference import CompiledInference, compiled_lines
from detrkit.cli.predict_files import PREDICTIONS, Results, find_images
from detrkit.cli.predict_journal import digest
from detrkit.cli.predict_shards import Sharding, check_sharding, predict_shards
from detrkit.cli.predict_share import Plan, Share, join_share
from detrkit.cli.predict_summary import Summary
from detrkit.cli.predict_video import Video, find_videos, predict_videos
from detrkit.cli.preflight import check_model, check_weights
from detrkit.utils.console import Terminal
from detrkit.utils.devices import DeviceName
from detrkit.utils.errors import DetrkitError, PeerError
from detrkit.utils.lock import FolderLock
from detrkit.utils.memory import is_out_of_memory
from detrkit.utils.names import full_path
from detrkit.utils.prefetch import Prefetcher
from detrkit.utils.ranges import BatchSize, InputSize, Scale, ScoreThreshold
from detrkit.utils.signals import SignalWatch, Stopped
from detrkit.utils.visible import one_line

if TYPE_CHECKING:
    from PIL.Image import Image

    from detrkit.detector import Detector
    from detrkit.structures.detections import Detections
    from detrkit.structures.panoptic import PanopticResult

_MAX_NAMES = 3
_WAITING_BYTES = 2**27  # of images that wait for the model, and of those that wait to be drawn
# errors after which no image can be written
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


@dataclass(frozen=True)
class Predict:
    """Find the objects in images; write the images with the objects drawn, and JSON.

    Every image is written under its own name into OUT, with boxes, names and scores; predictions.json lists for every
    file the label, name, score and box (x0, y0, x1, y1 in pixels of the upright image) of each object, with masks also
    the segmentation (COCO's RLE). A panoptic model assigns every pixel to a segment: the segments are drawn,
    predictions.json lists the id, label, name, score, area in pixels and kind of each, and OUT/panoptic has the ids of
    the pixels as PNGs (id = R + 256 G + 65536 B, 0 is void). Images of the same name are numbered. Neither an input
    image nor a file that detrkit did not write is ever overwritten. An image that cannot be read or written is reported
    and left out; the exit status is then 1. A command that was stopped leaves what is done, and goes on where it was
    when the same command is run again. Under torchrun and Slurm the processes share the images. While the model works
    on some images, the next ones are read and the last ones drawn.

    Such as:

    detrkit predict runs/first photos

    detrkit predict detr-r50 street.jpg --threshold 0.7 --out found

    detrkit predict runs/first 'photos/**/*.jpg' --no-pictures

    detrkit predict runs/first 'archive/*.tar' --shards 64 --out found --merge

    detrkit predict runs/first photos --tile 640 --overlap 0.2

    detrkit predict runs/first street.mp4 --track
    """

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """Weights: a run directory, a .safetensors or official .pth file, a model name such as detr-r50 (published), or one
    on the Hugging Face Hub such as facebook/detr-resnet-50."""
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE|FOLDER|GLOB")]
    """Images: files, folders (searched one level deep) and quoted patterns such as 'photos/**/*.jpg'. Or videos: each
    is written to OUT as an .mp4 with the objects drawn, and as .jsonl with a line for each frame."""
    out: Path = Path("predictions")
    """Folder to write into; created if it does not exist."""
    threshold: ScoreThreshold | None = None
    """Keep what has a greater score, 0 to 1; auto: for each class the score with the best F1 on the validation images
    of the run, which its checkpoint holds. By default auto where the checkpoint holds them (a run's do), else 0.5, for
    panoptic models 0.85 as published (Deformable DETR, whose scores are lower: 0.4). The DETR notebooks use 0.7."""
    pictures: Annotated[bool, tyro.conf.arg(aliases=("--images",))] = True
    """Draw and write the images; --no-pictures (or --no-images): write predictions.json only. The id maps of panoptic
    models are written in any case."""
    scale: Scale | None = None
    """Factor to enlarge the images by before drawing, 1 for the original size; by default a whole number that makes
    labels readable: 1 unless the image or its objects are small. The boxes of predictions.json are in pixels of the
    original image."""
    size: InputSize | None = None
    """Short side in pixels to resize images to; by default the checkpoint's (800 for published weights)."""
    batch_size: BatchSize = 4
    """Images in one forward pass. Results do not depend on it."""
    device: DeviceName | None = None
    """cpu, cuda, cuda:1, mps, ... or the number of a GPU; by default a GPU if there is one."""
    verbose: bool = False
    """List every image at the end, not only the first ones."""
    model: str | None = None
    """Model name, for official .pth files that do not name their model."""
    sharding: Sharding = field(default_factory=Sharding)
    inference: CompiledInference = field(default_factory=CompiledInference)
    video: Video = field(default_factory=Video)

    def run(self) -> int:
        """Predict, draw, write and print; return 1 if an image could not be read or written."""
        self.inference.check()
        if find_videos(self):
            return predict_videos(self)
        if check_sharding(self):
            return predict_shards(self)
        console, errors = Terminal(), Terminal(stderr=True)
        share = join_share()
        files, left_out = find_images(self.inputs)
        results = Results(full_path(self.out), files, images=self.pictures)
        if share.first:
            results.check()
        if left_out and share.first:
            names = ", ".join(file.name for file in left_out[:_MAX_NAMES])
            more = ", ..." if len(left_out) > _MAX_NAMES else ""
            are = "1 file is no image" if len(left_out) == 1 else f"{len(left_out)} files are no images"
            _say(errors, f"{are}: {names}{more}")

        check_weights(self.checkpoint)
        check_model(self.model)
        from detrkit.detector import load

        detector = load(self.checkpoint, name=self.model, device=self.device)
        if self.size is not None:
            detector = detector.resized(self.size)
        detector = self.inference.applied(detector)
        detector.resolve_threshold(self.threshold)  # one message, not one for each image
        if not share.first:
            return self._predict_share(detector, share, files, errors)
        results.check(maps=detector.panoptic)
        with FolderLock(results.out):  # else each of two commands would find the other's files in the way
            try:
                return self._write(detector, results, share, console, errors)
            finally:
                results.close()

    def _predict_share(self, detector: Detector, share: Share, files: list[Path], errors: Console) -> int:
        """Predict the share of a process that is not the first one; return its status.

        Raises:
            DetrkitError: nothing more can be written; what is done is kept.
        """
        plan = share.receive(files)
        # made now: the first process has noted in the manifest what will be written
        results = Results(full_path(self.out), files, images=self.pictures)
        results.join(plan.start, share.rank)
        try:
            self._predict(detector, results, share.of([files[k] for k in plan.todo]), errors, first=False)
        finally:
            results.close()
        share.finish()
        return 0

    def _write(self, detector: Detector, results: Results, share: Share, console: Console, errors: Console) -> int:
        """Predict, write and print; return the command's status.

        Raises:
            DetrkitError: nothing could be read, or nothing more can be written; what is done is kept.
        """
        files = results.files
        try:
            todo = results.begin(self._settings(detector))
            if results.restarted:
                _say(errors, "an unfinished prediction of other weights or settings was here: beginning anew")
            elif len(todo) < len(files):
                _say(errors, f"{len(files) - len(todo)} of {len(files)} images were done before: going on")
            positions = {file: k for k, file in enumerate(files)}
            share.send(Plan(results.start, [positions[file] for file in todo]), files)
            self._predict(detector, results, share.of(todo), errors)
            share.wait()
        except KeyboardInterrupt:  # also of SIGTERM
            if summary := self._keep(results):
                _say(errors, summary)
            raise
        except PeerError:  # which that process says
            with suppress(DetrkitError):
                self._keep(results)
            raise
        except DetrkitError as error:
            if summary := self._keep(results):
                raise DetrkitError(f"{error}; {summary}") from error
            raise
        except Exception:
            with suppress(DetrkitError):
                self._keep(results)
            raise
        done = Summary.of(results.records())
        if not done:
            with suppress(DetrkitError):
                results.forget()
            raise DetrkitError("no image could be read and written, see above")
        results.save()
        done.print(console, detector, self.threshold, verbose=self.verbose)
        for line in compiled_lines(detector):
            _say(console, line)
        _say(console, f"{len(done)} image{'s' * (len(done) != 1)} in {self.out}")
        _say(console, str(self.out / PREDICTIONS))
        return 0 if len(done) == len(files) else 1

    def _settings(self, detector: Detector) -> dict[str, Any]:
        """Return what the results depend on: an unfinished prediction with the same goes on."""
        return {
            "model": digest(detector),
            "threshold": self.threshold,
            "pictures": self.pictures,
            "tiles": str(detector.tiling),
            "version": __version__,
        }

    def _keep(self, results: Results) -> str:
        """Save what is done of a prediction that ends early; return a line about it, or "" if nothing is done."""
        done = len(results.records())
        if not done:
            with suppress(DetrkitError):
                results.forget()
            return ""
        summary = f"{done} of {len(results.files)} images are done"
        advice = "run the same command again to go on"
        try:
            results.save(finished=False)
        except DetrkitError as error:
            return f"{summary}, but {error}; {advice}"
        return f"{summary}: {self.out / PREDICTIONS}; {advice}"

    def _predict(
        self, detector: Detector, results: Results, files: list[Path], errors: Console, *, first: bool = True
    ) -> None:
        """Predict images and fill `results`.

        Args:
            detector: that predicts.
            results: to write.
            files: the images.
            errors: for images that cannot be read or written.
            first: whether this is the first process, which shows progress and now and then saves.

        Raises:
            DetrkitError: nothing can be written any more.
            KeyboardInterrupt: a signal asked to stop.
        """
        terminal = errors.is_terminal and first
        with SignalWatch() as watch, Progress(console=errors, transient=True, disable=not terminal) as progress:
            bar = progress.add_task("predicting", total=len(files))
            with Prefetcher() as prefetcher:
                read = prefetcher.prefetch(
                    _read(files),
                    max_items=self.batch_size,
                    weight=_bytes,
                    max_weight=_WAITING_BYTES,
                    abandoned=True,
                )
                predicted = predictions(detector, read, self.threshold, self.batch_size)
                predicted = prefetcher.prefetch(
                    predicted, max_items=self.batch_size, weight=_bytes, max_weight=_WAITING_BYTES
                )
                for file, result in predicted:
                    if watch.asked:  # what the signal raised was lost inside torch or Pillow
                        raise Stopped(watch.asked)
                    try:
                        if isinstance(result, DetrkitError):
                            raise result
                        self._write_one(file, result, results)
                    except (DetrkitError, MemoryError) as error:
                        if getattr(error.__cause__, "errno", None) in _FULL and not isinstance(result, DetrkitError):
                            raise
                        message = str(error) or "there is not enough memory to draw it"
                        _say(errors, message if str(file) in message else f"{file}: {message}", error=True)
                    if first:
                        results.save_sometimes()
                    progress.advance(bar)

    def _write_one(self, file: Path, result: Detections | PanopticResult, results: Results) -> None:
        """Write the predictions of one image.

        Raises:
            DetrkitError: it cannot be written.
        """
        from PIL.Image import fromarray

        from detrkit.structures.panoptic import PanopticResult

        rows: Any = result.to_json()
        entry = rows
        if self.pictures:
            results.write_image(file, result.draw(scale=self.scale))
        if isinstance(result, PanopticResult):
            ids = results.id_map(file, fromarray(result.to_coco()[0]))
            entry = {"ids": ids, "segments": rows}
        results.add(file, entry, [one["name"] for one in rows], result.near_miss)


def _read(files: Sequence[Path]) -> Iterator[tuple[Path, Image | DetrkitError]]:
    """Yield the pixels of each file, or the error that it cannot be read."""
    from detrkit.data.images import as_rgb

    for file in files:
        try:
            yield file, as_rgb(file)
        except DetrkitError as error:
            yield file, error
        except MemoryError:
            yield file, _too_large(file)


def _bytes(item: tuple[Path, Image | Detections | PanopticResult | DetrkitError]) -> int:
    """Estimate the memory of an image, or of its predictions, in bytes."""
    value = item[1]
    image: Any = getattr(value, "image", value)
    masks = getattr(value, "masks", None) if hasattr(value, "boxes") else None  # those of segments are made on demand
    return (4 * image.width * image.height if hasattr(image, "width") else 0) + (0 if masks is None else masks.numel())


def predictions(
    detector: Detector,
    images: Iterable[tuple[Path, Image | DetrkitError]],
    threshold: float | str | None,
    batch_size: int,
) -> Iterator[tuple[Path, Detections | PanopticResult | DetrkitError]]:
    """Yield the predictions of each image, in order, or the error: a bad image does not stop the others."""
    images = iter(images)
    while batch := list(islice(images, batch_size)):
        good = [(file, image) for file, image in batch if not isinstance(image, DetrkitError)]
        predicted = iter(_predict_batch(detector, good, threshold))
        for file, image in batch:
            yield file, image if isinstance(image, DetrkitError) else next(predicted)


def _predict_batch(
    detector: Detector, batch: Sequence[tuple[Path, Image]], threshold: float | str | None
) -> list[Detections | PanopticResult | DetrkitError]:
    """Predict a batch, or each image alone if the batch does not fit."""
    if not batch:
        return []
    try:
        images = [image for _, image in batch]
        return list(detector.stream(images, threshold=threshold, batch_size=len(images)))
    except DetrkitError as error:  # too large for the model
        if len(batch) == 1:
            return [error]
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        if len(batch) == 1:
            return [_too_large(batch[0][0])]
    return [prediction for pair in batch for prediction in _predict_batch(detector, [pair], threshold)]


def _too_large(file: Path) -> DetrkitError:
    return DetrkitError(f"{file}: too large for the memory of this machine: try a smaller --size")


def _say(console: Console, text: str, *, error: bool = False) -> None:
    """Print a line in which nothing is markup or a control character."""
    text = one_line(text)
    console.print(Text.assemble(("error", "red"), " ", text) if error else text, soft_wrap=True)
