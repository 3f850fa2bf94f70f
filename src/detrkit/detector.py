"""`Detector`: a model with its pre- and post-processing, from images to detections or segments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors

from detrkit.data.grouping import split_by_shape
from detrkit.data.images import SUFFIXES, Picture, as_rgb, is_picture
from detrkit.data.sample import Sample
from detrkit.data.transforms import EvalTransform, normalise
from detrkit.models.panoptic_postprocess import panoptic
from detrkit.models.postprocess import postprocess
from detrkit.models.registry import architecture
from detrkit.structures.batch import Batch
from detrkit.structures.classes import ClassList
from detrkit.structures.results import Detections, PanopticResult
from detrkit.utils.errors import DetrkitError
from detrkit.utils.memory import CHANNELS, batch_pixels, check_batch, check_memory
from detrkit.utils.ranges import BatchSize, Pixels, Share, check_arguments
from detrkit.weights.checkpoint import ModelSpec, load_any

Found = Detections | PanopticResult


class Detector:
    """A model with its pre- and post-processing: resizing, normalization, thresholding, class names.

    Args:
        model: a detrkit model with its weights.
        spec: preprocessing of the input and meaning of the labels.
        device: where to run; by default an accelerator if available.

    Attributes:
        model: on `device`, in eval mode.
        spec: preprocessing of the input and meaning of the labels.

    Arithmetic uses the model's dtype and device: half, bfloat16 and double models predict, too. Results do not depend
    on the default dtype or device of torch, on autocast, or on grad or inference mode around a call.
    """

    def __init__(self, model: nn.Module, spec: ModelSpec, *, device: torch.device | str | None = None) -> None:
        self.model = model.eval()
        self.spec = spec
        self.to(default_device() if device is None else device)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the model and of its arithmetic; results are always float32.

        Raises:
            ValueError: the model's parameters are of several floating-point dtypes.
        """
        dtypes = {p.dtype for p in self.model.parameters() if p.is_floating_point()}
        if len(dtypes) > 1:
            names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
            raise ValueError(f"the model has parameters of {names}: use one dtype, such as detector.model.float()")
        return dtypes.pop() if dtypes else torch.float32

    @property
    def classes(self) -> ClassList | None:
        """Names and dataset ids of the labels, or None if the checkpoint does not hold them."""
        return self.spec.classes

    @property
    def panoptic(self) -> bool:
        """True if the model assigns every pixel to a segment of a thing or of stuff, instead of detecting objects."""
        return is_panoptic(self.model, self.classes)

    @property
    def threshold(self) -> float:
        """Default score threshold of `predict`: 0.5 unless the model says another; see also `segments_above`."""
        return segments_above(self.spec) if self.panoptic else architecture(self.spec.name).thresholds.predict

    def to(self, device: torch.device | str) -> Detector:
        """Move the model, and return the detector itself."""
        self.model.to(as_device(device))
        return self

    def resized(self, size: Pixels) -> Detector:
        """Return a detector with this model that resizes the short side to `size` pixels; `max_size` scales with it.

        Raises:
            ValueError: a size out of range.
        """
        check_arguments(Detector.resized, {"size": size})
        limit = self.spec.max_size
        limit = None if limit is None else max(size, round(limit * size / self.spec.size))
        return Detector(self.model, replace(self.spec, size=size, max_size=limit), device=self.device)

    def predict(
        self, images: Picture | Sequence[Picture], *, threshold: Share | None = None, batch_size: BatchSize = 8
    ) -> Found | list[Found]:
        """Detect objects in one or more images, or with a panoptic model segments.

        Args:
            images: an image, a list of images, or a folder. An image is a path to an image file (or a dataset's row of
                a parquet file), the bytes of one, a PIL image of any mode, a (H, W, 3) uint8 RGB array, or a (3, H, W)
                uint8 RGB tensor; gray and RGBA are accepted, too (`detrkit.data.images.as_rgb`). EXIF orientation of
                files and PIL images is applied, so boxes fit the upright image; pixels of 12, 16 and 32 bits are
                scaled (`detrkit.data.pixels.to_rgb`).
            threshold: only results with a greater score are returned, 0 to 1; by default `Detector.threshold`. 0.5
                shows most objects; the DETR notebooks use 0.7, and 0.85 for segments. For evaluation use 0.
            batch_size: images per forward pass; the result does not depend on it (but see `padding="official"`).

        Returns:
            For one image Detections, or the PanopticResult of a panoptic model; a list of them for a list or a folder.
            Detections are sorted by descending score, have boxes xyxy in pixels of the image, and masks if the model
            has masks. Their tensors are ordinary ones: they may be changed in place and used in a loss.

        Raises:
            DetrkitError: a file is missing, not an image or damaged, or a folder has no images.
            ValueError: an array or tensor of another shape or type, an image without pixels (the message names it), a
                threshold that is not from 0 to 1, or a batch size below 1.
        """
        if isinstance(images, (str, Path)) and Path(images).is_dir():
            return list(self.stream(image_files(Path(images)), threshold=threshold, batch_size=batch_size))
        if isinstance(images, (list, tuple)):
            return list(self.stream(images, threshold=threshold, batch_size=batch_size))
        return next(self._stream([images], self._threshold(threshold, 1), 1, single=True))

    def stream(
        self, images: Iterable[Picture], *, threshold: float | None = None, batch_size: int = 8
    ) -> Iterator[Found]:
        """Yield the results of `predict` one by one, so that memory holds no more than a batch.

        Args and errors: as `predict`.
        """
        return self._stream(images, self._threshold(threshold, batch_size), batch_size)

    def _threshold(self, threshold: float | None, batch_size: int) -> float:
        """Check the arguments, and return the threshold or the default one.

        Raises:
            ValueError: a number out of range, or images that do not fit into memory.
        """
        check_arguments(Detector.predict, {"threshold": threshold, "batch_size": batch_size})
        check_batch(self.spec.size, self.spec.max_size, 1)
        return self.threshold if threshold is None else float(threshold)

    def _stream(
        self, images: Iterable[Any], threshold: float, batch_size: int, *, single: bool = False
    ) -> Iterator[Found]:
        """Yield results as `stream`; messages give a `single` image no number."""
        source = (as_rgb(image, None if single else f"image {number}") for number, image in enumerate(images))
        while pictures := list(islice(source, batch_size)):
            for result, picture in zip(self._detect(pictures, threshold), pictures, strict=True):
                yield replace(result, image=picture)

    def _detect(self, pictures: Sequence[Image.Image], threshold: float) -> list[Found]:
        """Predict one batch; the results are on the CPU."""
        transform = EvalTransform(size=self.spec.size, max_size=self.spec.max_size)
        sizes = [transform.draw(picture.height, picture.width).size for picture in pictures]
        for picture, (height, width) in zip(pictures, sizes, strict=True):
            resized = f"{picture.width} x {picture.height} pixels, resized to {width} x {height} (width x height)"
            check_memory(
                height * width * (4 * 3 + CHANNELS),
                f"an image of {resized},",
                fix="it is too long and narrow for a model without max_size",
            )
        device = self.device
        memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
        results: dict[int, Found] = {}
        for group in split_by_shape(sizes, batch_pixels(memory)):
            results.update(zip(group, self._ordinary([pictures[i] for i in group], threshold), strict=True))
        return [results[i] for i in range(len(pictures))]

    def _ordinary(self, pictures: Sequence[Image.Image], threshold: float) -> list[Found]:
        """Predict images that are padded to one size; the results are ordinary tensors on the CPU."""
        results = self._inferred(pictures, threshold)
        # Copies made outside inference mode are ordinary tensors; tensors of inference mode cannot be changed in place
        # or used in a loss. Sorting copies anyway.
        with torch.inference_mode(False):  # of the caller
            return [
                replace(result, id_map=result.id_map.to("cpu", copy=True))
                if isinstance(result, PanopticResult)
                else result.select(result.scores.argsort(descending=True, stable=True)).to("cpu")
                for result in results
            ]

    def _inferred(self, pictures: Sequence[Image.Image], threshold: float) -> Sequence[Found]:
        """Predict one batch; the results are on the device."""
        device, dtype = self.device, self.dtype
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            batch = Batch.from_images([self._prepared(picture) for picture in pictures]).to(device)
            return self._results(replace(batch, images=batch.images.to(dtype)), pictures, threshold)

    def _results(self, batch: Batch, pictures: Sequence[Image.Image], threshold: float) -> Sequence[Found]:
        """Run the model on a batch; the results are in pixels of the images."""
        # masks are computed only for queries above the threshold
        outputs = self.model(batch, defer_masks=True)
        sizes = [(picture.height, picture.width) for picture in pictures]
        options: dict[str, Any] = {
            "image_sizes": batch.sizes,
            "threshold": threshold,
            "scores": architecture(self.spec.name).activation,
            "classes": self.classes,
        }
        if self.panoptic:
            return panoptic(outputs, sizes=sizes, **options)
        # models with more than 100 queries may detect more than 100 objects
        return postprocess(outputs, sizes, top_k=max(100, outputs.logits.shape[1]), **options)

    def _prepared(self, picture: Image.Image) -> Tensor:
        """Convert an image to (3, h, w) float, resized by the published rule and normalized."""
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)  # (3, H, W)
        size = (picture.height, picture.width)
        boxes = torch.zeros(0, 4, dtype=torch.float32, device="cpu")
        sample = Sample(
            pixels.as_subclass(tv_tensors.Image),
            tv_tensors.BoundingBoxes(boxes, device=boxes.device, format="XYXY", canvas_size=size),
            torch.zeros(0, dtype=torch.int64, device="cpu"),
            None,
            image_id=0,
            orig_size=size,
        )
        sample = EvalTransform(size=self.spec.size, max_size=self.spec.max_size)(sample)
        normalized: Tensor = normalise(sample, self.spec.mean, self.spec.std).image.as_subclass(Tensor)
        return normalized


def load(name_or_path: str | Path, *, name: str | None = None, device: torch.device | str | None = None) -> Detector:
    """Load a detector with published or other weights.

    Args:
        name_or_path: a model name (the published weights, downloaded once), or a path: detrkit .safetensors, a
            training state, a run directory, an official .pth file, a Hugging Face directory, or a .pdparams file.
        name: the model of an official file, if the file does not hold it.
        device: where to run; by default an accelerator if available.

    Raises:
        DetrkitError: the weights are missing, damaged, unknown or do not fit.
    """
    with _own_defaults():
        model, spec = load_any(name_or_path, name=name)
    return Detector(model, spec, device=device)


@contextmanager
def _own_defaults() -> Iterator[None]:
    """Set torch's defaults as at its import, so that a model is the same in every program that loads it."""
    dtype = torch.get_default_dtype()
    if dtype != torch.float32:
        torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.device("cpu"):
            yield
    finally:
        if dtype != torch.float32:
            torch.set_default_dtype(dtype)


def has_masks(model: nn.Module) -> bool:
    """Return whether a model predicts masks."""
    return getattr(model, "segmentation", None) is not None


def is_panoptic(model: nn.Module, classes: ClassList | None) -> bool:
    """Return whether a model is panoptic: it has masks, and some of its classes are stuff (uncountable)."""
    things = None if classes is None else classes.things
    return has_masks(model) and things is not None and not all(things)


def segments_above(spec: ModelSpec) -> float:
    """Return the score threshold of a model's segments: 0.85 as published; 0.4 for focal loss, which lowers scores."""
    return architecture(spec.name).thresholds.segment


def default_device() -> torch.device:
    """Return the accelerator of this machine, or the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def as_device(name: torch.device | str) -> torch.device:
    """Return the device of that name.

    Raises:
        DetrkitError: this machine has no such device.
    """
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise NotImplementedError("it holds no values")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch has no common exception for this
        raise DetrkitError(
            f"device {name}: not to be had on this machine; use cpu, or cuda where there is one"
        ) from error
    return device


def image_files(folder: Path) -> list[Path]:
    """List the image files in a folder by name, without hidden ones.

    Raises:
        DetrkitError: the folder has no image files.
    """
    files = sorted(f for f in folder.iterdir() if is_picture(f) and f.is_file())
    if not files:
        raise DetrkitError(f"{folder}: no images in this folder (known: {', '.join(sorted(SUFFIXES))})")
    return files
