"""`Detector`: from pictures to detections in their own pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision import tv_tensors

from detrkit.checkpoint import ModelSpec, load_any
from detrkit.classes import ClassList
from detrkit.data.images import SUFFIXES, read_rgb
from detrkit.data.sample import Sample
from detrkit.data.transforms import EvalTransform, normalise
from detrkit.errors import DetrkitError
from detrkit.models.batch import Batch
from detrkit.models.postprocess import postprocess
from detrkit.registry import architecture
from detrkit.results import Detections

Picture = str | Path | Image.Image | np.ndarray | Tensor


class Detector:
    """A model with everything around it: resizing, normalisation, thresholding, class names.

    Args:
        model: a detrkit model with its weights.
        spec: how its input is prepared and what its labels mean.
        device: where to run; by default an accelerator if there is one.

    Attributes:
        model: on `device`, in eval mode.
        spec: as given.
        device: where the model is.
    """

    def __init__(self, model: nn.Module, spec: ModelSpec, *, device: torch.device | str | None = None) -> None:
        self.model = model.eval()
        self.spec = spec
        self.device = default_device() if device is None else as_device(device)
        self.to(self.device)

    @property
    def classes(self) -> ClassList | None:
        """Names and dataset ids of the labels, or None when the checkpoint does not tell."""
        return self.spec.classes

    def to(self, device: torch.device | str) -> Detector:
        """Moves the model; returns the detector itself."""
        self.device = as_device(device)
        self.model.to(self.device)
        return self

    def resized(self, size: int) -> Detector:
        """The same model for images whose short side becomes `size` pixels; the maximum changes in proportion.

        Raises:
            ValueError: a size below 1.
        """
        if size < 1:
            raise ValueError(f"size is {size}: the short side needs at least one pixel")
        limit = self.spec.max_size
        limit = None if limit is None else max(size, round(limit * size / self.spec.size))
        return Detector(self.model, replace(self.spec, size=size, max_size=limit), device=self.device)

    def predict(
        self, images: Picture | Sequence[Picture], *, threshold: float = 0.5, batch_size: int = 8
    ) -> Detections | list[Detections]:
        """Finds the objects in one picture or in several.

        Args:
            images: a picture, or a list of them, or a folder. A picture is a path to an image file, a PIL image, a
                (H, W, 3) uint8 RGB array, or a (3, H, W) uint8 RGB tensor. EXIF orientation of files and PIL images is
                followed, so boxes fit the picture as one sees it.
            threshold: detections with a greater score are kept. 0.5 shows most objects; the DETR notebooks use 0.7.
                For evaluation use 0.
            batch_size: pictures a forward pass; the result does not depend on it (but see `padding="official"`).

        Returns:
            Detections for one picture, a list of them for a list or a folder, each sorted by descending score, boxes
            xyxy in pixels of the picture.

        Raises:
            DetrkitError: a file is missing, not an image or damaged, or a folder has no images.
            ValueError: an array or tensor of another shape or type.
        """
        if isinstance(images, (str, Path)) and Path(images).is_dir():
            return list(self.stream(image_files(Path(images)), threshold=threshold, batch_size=batch_size))
        if isinstance(images, (list, tuple)):
            return list(self.stream(images, threshold=threshold, batch_size=batch_size))
        return next(self.stream([images], threshold=threshold))  # type: ignore[list-item]

    def stream(self, images: Iterable[Picture], *, threshold: float = 0.5, batch_size: int = 8) -> Iterator[Detections]:
        """As `predict`, one result after the other, so that memory holds no more than a batch.

        Args and errors: as `predict`.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: at least 1")
        source = iter(images)
        while pictures := [as_rgb(image) for image in islice(source, batch_size)]:
            for found, picture in zip(self._detect(pictures), pictures, strict=True):
                best = found.above(threshold)
                yield replace(best.select(best.scores.argsort(descending=True, stable=True)), image=picture)

    @torch.inference_mode()
    def _detect(self, pictures: Sequence[Image.Image]) -> list[Detections]:
        """All detections of one batch, on the CPU."""
        batch = Batch.from_images([self._prepared(picture) for picture in pictures])
        outputs = self.model(batch.to(self.device))
        found = postprocess(
            outputs,
            [(picture.height, picture.width) for picture in pictures],
            scores=architecture(self.spec.name).scores,
            top_k=max(100, outputs.logits.shape[1]),  # a model with more queries is meant to find more objects
            classes=self.classes,
        )
        return [detections.to("cpu") for detections in found]

    def _prepared(self, picture: Image.Image) -> Tensor:
        """(3, h, w) float: resized by the published rule and normalised."""
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)  # (3, H, W)
        size = (picture.height, picture.width)
        sample = Sample(
            tv_tensors.Image(pixels),
            tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=size),
            torch.zeros(0, dtype=torch.int64),
            None,
            image_id=0,
            orig_size=size,
        )
        sample = EvalTransform(size=self.spec.size, max_size=self.spec.max_size)(sample)
        normalised: Tensor = normalise(sample, self.spec.mean, self.spec.std).image.as_subclass(Tensor)
        return normalised


def load(name_or_path: str | Path, *, name: str | None = None, device: torch.device | str | None = None) -> Detector:
    """A detector from published or own weights.

    Args:
        name_or_path: a model name (the published weights, downloaded once), or a path: detrkit .safetensors, a
            training state, a run directory, or an official .pth file.
        name: the model an official file is of, where the file does not tell.
        device: where to run; by default an accelerator if there is one.

    Raises:
        DetrkitError: weights that are missing, damaged, unknown or do not fit.
    """
    model, spec = load_any(name_or_path, name=name)
    return Detector(model, spec, device=device)


def default_device() -> torch.device:
    """The accelerator of this machine, or the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def as_device(name: torch.device | str) -> torch.device:
    """The device of that name.

    Raises:
        DetrkitError: there is no such device in this machine.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch has no one kind for this
        raise DetrkitError(
            f"device {name}: not to be had on this machine; use cpu, or cuda where there is one"
        ) from error
    return device


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder, by name.

    Raises:
        DetrkitError: there is none.
    """
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file())
    if not files:
        raise DetrkitError(f"{folder}: no images in this folder (known: {', '.join(sorted(SUFFIXES))})")
    return files


def as_rgb(image: Picture | Any) -> Image.Image:
    """Any supported picture as an upright 8-bit RGB image.

    Raises:
        DetrkitError: a file is missing, not an image or damaged.
        ValueError: an array or tensor of another shape or type.
    """
    if isinstance(image, (str, Path)):
        return read_rgb(Path(image))
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image).convert("RGB")
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"a picture as a tensor must be (3, H, W) uint8, not {tuple(image.shape)} {image.dtype}")
        return Image.fromarray(image.permute(1, 2, 0).cpu().contiguous().numpy())
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"a picture as an array must be (H, W, 3) uint8, not {image.shape} {image.dtype}")
        return Image.fromarray(np.ascontiguousarray(image))
    raise ValueError(f"not a picture: {type(image).__name__}; expected a path, PIL image, uint8 array or tensor")
