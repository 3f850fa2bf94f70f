"""`Detector`: a model with its pre- and post-processing, from images to detections or segments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detrkit.data.grouping import split_by_shape
from detrkit.data.image_processor import ImageProcessor
from detrkit.data.images import ImageInput, image_files
from detrkit.data.sources import TableImage
from detrkit.detector_base import DetectorBase
from detrkit.models.base import has_masks as has_masks
from detrkit.models.base import is_panoptic as is_panoptic
from detrkit.models.postprocess import PostProcessor
from detrkit.models.registry import architecture
from detrkit.structures.batch import Batch
from detrkit.structures.image_outputs import ImageOutputs as ImageOutputs
from detrkit.structures.outputs import Capturing, Outputs
from detrkit.structures.panoptic import Prediction, ordered_copies
from detrkit.structures.thresholds import ScoreThresholds
from detrkit.tiling.predicting import predict_images
from detrkit.tiling.tiles import DEFAULT_OVERLAP
from detrkit.utils.devices import as_device as as_device
from detrkit.utils.devices import default_device as default_device
from detrkit.utils.errors import DetrkitError
from detrkit.utils.memory import batch_pixels, check_batch
from detrkit.utils.ranges import BatchSize, Overlap, ScoreThreshold, TileSide, check_arguments
from detrkit.utils.timing import NORMALIZING, POSTPROCESSING, READING, RESIZING
from detrkit.utils.torch_defaults import own_defaults
from detrkit.weights.checkpoint import load_any

Threshold = float | tuple[float, ...]  # of all labels, or of each


class PredictOptions(TypedDict, total=False):
    """Keyword arguments of `Detector.predict`."""

    threshold: ScoreThreshold | None
    batch_size: BatchSize
    tile: TileSide | None
    overlap: Overlap


class Detector(DetectorBase):
    """A model with its pre- and post-processing: resizing, normalization, thresholding, class names.

    Args:
        model: a detrkit model with its weights.
        spec: preprocessing of the input and meaning of the labels.
        device: where to run; by default an accelerator if available.

    Attributes:
        model: on `device`, in eval mode.
        spec: preprocessing of the input and meaning of the labels.
        tiling: how larger images are cut, see `tiled`; None: not at all.
        timer: enters a part at each stage of a prediction (`detrkit.utils.timing`); by default it measures nothing.

    Arithmetic uses the model's dtype and device: half, bfloat16 and double models predict, too. Results do not depend
    on the default dtype or device of torch, on autocast, or on grad or inference mode around a call.
    """

    @property
    def processor(self) -> ImageProcessor:
        """What makes a batch of images, with the size and the normalization of `spec`."""
        return ImageProcessor.of(self.spec)

    @property
    def postprocessor(self) -> PostProcessor:
        """What makes results of outputs, with the classes of `spec`; all queries, or as many as the model selects."""
        processor = PostProcessor.of(self.spec)
        return processor if hasattr(self.model, "num_select") else replace(processor, top_k=None)

    @property
    def threshold(self) -> float:
        """Score threshold of `predict` where the checkpoint suggests none, else the suggested one of all classes.

        Without a suggestion it is as the model was registered: 0.5, for panoptic models that of segments.
        """
        thresholds, suggested = architecture(self.spec.name).thresholds, self.suggested_thresholds
        if suggested is not None:
            return suggested.general
        return thresholds.segment if self.panoptic else thresholds.predict

    @property
    def suggested_thresholds(self) -> ScoreThresholds | None:
        """Scores with the best F1 on the validation images of the run, of all classes (`general`) and of each.

        None for weights that hold none (published ones, those of earlier versions), and for panoptic models.
        """
        return None if self.panoptic else self.spec.score_thresholds

    @overload
    def predict(
        self, images: Image.Image | np.ndarray | Tensor | bytes | TableImage, **options: Unpack[PredictOptions]
    ) -> Prediction: ...

    @overload  # of a folder a list; `Any` spares callers with one file a check (typeshed's convention)
    def predict(self, images: str | Path, **options: Unpack[PredictOptions]) -> Prediction | Any: ...

    @overload
    def predict(self, images: list[Any] | tuple[Any, ...], **options: Unpack[PredictOptions]) -> list[Prediction]: ...

    def predict(
        self,
        images: ImageInput | Sequence[ImageInput],
        *,
        threshold: ScoreThreshold | None = None,
        batch_size: BatchSize = 8,
        tile: TileSide | None = None,
        overlap: Overlap = DEFAULT_OVERLAP,
    ) -> Prediction | list[Prediction]:
        """Detect objects in one or more images, or with a panoptic model segments.

        Args:
            images: an image, a list of images, or a folder. An image is a path to an image file (or a dataset's row of
                a parquet file), the bytes of one, a PIL image of any mode, a (H, W, 3) uint8 RGB array, or a (3, H, W)
                uint8 RGB tensor; gray and RGBA are accepted, too (`detrkit.data.images.as_rgb`). EXIF orientation of
                files and PIL images is applied, so boxes fit the upright image; pixels of 12, 16 and 32 bits are
                scaled (`detrkit.data.pixels.to_rgb`).
            threshold: only results with a greater score are returned, 0 to 1. "auto": each class has the one that the
                checkpoint suggests (`suggested_thresholds`). By default "auto" where the checkpoint suggests any, else
                `Detector.threshold`: 0.5, which shows most objects of published weights; the DETR notebooks use 0.7,
                and 0.85 for segments. For evaluation use 0.
            batch_size: images, or tiles, per forward pass; the result does not depend on it (but see
                `padding="official"`).
            tile: side in pixels of the tiles that a larger image is cut into, each predicted as an image of its own,
                and merged with the prediction of the whole image; None: as `tiled` was called, by default no tiles.
            overlap: share of its side that a tile has in common with its neighbor, 0 to 0.9.

        Returns:
            For one image Detections, or the PanopticResult of a panoptic model; a list of them for a list or a folder.
            Detections are sorted by descending score, have boxes xyxy in pixels of the image, and masks if the model
            has masks. Their tensors are ordinary ones: they may be changed in place and used in a loss.

        Raises:
            DetrkitError: a file is missing, not an image or damaged, a folder has no images, or "auto" for weights
                that suggest no threshold.
            ValueError: an array or tensor of another shape or type, an image without pixels (the message names it), a
                threshold, batch size, tile or overlap out of range, or tiles for a panoptic model.
        """
        detector = self if tile is None else self.tiled(tile, overlap)
        if isinstance(images, (str, Path)) and Path(images).is_dir():
            return list(detector.stream(image_files(Path(images)), threshold=threshold, batch_size=batch_size))
        if isinstance(images, (list, tuple)):
            return list(detector.stream(images, threshold=threshold, batch_size=batch_size))
        limits = self.resolve_threshold(threshold, 1 if detector.tiling is None else batch_size)
        return next(detector._stream([images], limits, batch_size, single=True))

    def stream(
        self, images: Iterable[ImageInput], *, threshold: Threshold | str | None = None, batch_size: int = 8
    ) -> Iterator[Prediction]:
        """Yield the results of `predict` one by one, so that memory holds no more than a batch.

        Args and errors: as `predict`; `threshold` may also be one for each label.
        """
        return self._stream(images, self.resolve_threshold(threshold, batch_size), batch_size)

    def outputs(self, images: Sequence[ImageInput], *, capture: Capturing = False) -> ImageOutputs:
        """Run the model on images as one batch, without post-processing: for attention, features and own results.

        Args:
            images: each as `predict` takes it.
            capture: also keep attention and intermediate tensors, as `Outputs.capture`; "attention": the first alone.

        Returns:
            Outputs in the model's dtype, whose masks are computed on request (`Outputs.masks_of`), with the batch and
            the images. `detector.postprocessor` makes results of them. Their tensors are ordinary ones without
            gradients.

        Raises:
            DetrkitError: a file is missing, not an image or damaged, or an image does not fit into memory.
            ValueError: no images, or an array or tensor that is no image.
        """
        read = [self.processor.read(image, f"image {number}") for number, image in enumerate(images)]
        self.processor.check_memory(read)
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            batch = self._batch(read)
            return ImageOutputs(self.model(batch, capture=capture, defer_masks=True), batch, read)

    def results_of(self, computed: ImageOutputs, *, threshold: Threshold) -> list[Prediction]:
        """Make results of `outputs` as `predict` makes them.

        Args:
            computed: by `outputs`.
            threshold: as of `predict`: one for all labels, or one for each; 0 to 1.

        Returns:
            A result for each image, as of `predict`.
        """
        outputs, batch, images = computed
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            results = ordered_copies(self._results(outputs, batch, images, threshold))
        return [replace(result, image=image) for result, image in zip(results, images, strict=True)]

    def resolve_threshold(self, threshold: Threshold | str | None, batch_size: int = 1) -> Threshold:
        """Check the arguments of `predict`, and return the threshold that they mean, or one for each label.

        Raises:
            ValueError: a number out of range, or images that do not fit into memory.
            DetrkitError: "auto", and the checkpoint suggests none.
        """
        for limit in threshold if isinstance(threshold, tuple) else (threshold,):
            check_arguments(Detector.predict, {"threshold": limit, "batch_size": batch_size})
        check_batch(self.spec.size, self.spec.max_size, 1)
        if threshold is not None and threshold != "auto":
            return threshold if isinstance(threshold, tuple) else float(threshold)
        suggested = self.suggested_thresholds
        if suggested is not None:
            return suggested.per_label(self.classes, self.spec.num_classes)
        if threshold == "auto":
            why = (
                "a panoptic model has no suggested thresholds"
                if self.panoptic
                else "this checkpoint holds no suggested thresholds (published weights and those of earlier versions "
                "hold none, nor do weights of a run that learned next to nothing)"
            )
            raise DetrkitError(f"threshold auto: {why}: give a number, such as {self.threshold:g}")
        return self.threshold

    def _stream(
        self, images: Iterable[Any], threshold: Threshold, batch_size: int, *, single: bool = False
    ) -> Iterator[Prediction]:
        """Yield results as `stream`; messages give a `single` image no number."""
        source = self._read(images, single=single)
        while read := list(islice(source, batch_size)):
            for result, image in zip(self._predict_batch(read, threshold, batch_size), read, strict=True):
                yield replace(result, image=image)

    def _read(self, images: Iterable[Any], *, single: bool) -> Iterator[Image.Image]:
        """Yield upright RGB images."""
        processor = self.processor
        for number, image in enumerate(images):
            with self.timer.part(READING):
                rgb = processor.read(image, None if single else f"image {number}")
            yield rgb

    def _predict_batch(self, images: Sequence[Image.Image], threshold: Threshold, batch_size: int) -> list[Prediction]:
        """Predict images that are read, the larger ones in tiles where the detector has them."""
        if self.tiling is None:
            return self._detect(images, threshold)
        detect = partial(self._detect, threshold=threshold)
        return predict_images(images, self.tiling, detect, batch_size=batch_size)

    def _detect(self, images: Sequence[Image.Image], threshold: Threshold) -> list[Prediction]:
        """Predict one batch; the results are on the CPU."""
        sizes = self.processor.check_memory(images)
        device = self.device
        memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
        results: dict[int, Prediction] = {}
        for group in split_by_shape(sizes, batch_pixels(memory)):
            results.update(zip(group, self._ordinary([images[i] for i in group], threshold), strict=True))
        return [results[i] for i in range(len(images))]

    def _ordinary(self, images: Sequence[Image.Image], threshold: Threshold) -> list[Prediction]:
        """Predict images that are padded to one size; the results are ordinary tensors on the CPU."""
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            batch = self._batch(images)
            outputs = self.model(batch, defer_masks=True)  # masks only of queries above the threshold
            results = self._results(outputs, batch, images, threshold)
        return ordered_copies(results)

    def _batch(self, images: Sequence[Image.Image]) -> Batch:
        """Make the input of the model, in its dtype and on its device."""
        device, dtype, processor = self.device, self.dtype, self.processor
        with self.timer.part(RESIZING):
            resized = [processor.prepare(image) for image in images]
        with self.timer.part(NORMALIZING):
            batch = processor.batch(resized, device=device)
            return replace(batch, images=batch.images.to(dtype))

    def _results(
        self, outputs: Outputs, batch: Batch, images: Sequence[Image.Image], threshold: Threshold
    ) -> Sequence[Prediction]:
        """Make the results of a batch; they are on its device, in pixels of the images."""
        postprocessor = replace(self.postprocessor, threshold=threshold)
        if isinstance(threshold, float):
            postprocessor = replace(postprocessor, segment_threshold=threshold)
        with self.timer.part(POSTPROCESSING):
            if self.panoptic:
                return postprocessor.panoptic(outputs, _sizes(images), batch.sizes)
            return postprocessor.detections(outputs, _sizes(images), batch.sizes)


def load(name_or_path: str | Path, *, name: str | None = None, device: torch.device | str | None = None) -> Detector:
    """Load a detector with published or other weights.

    Args:
        name_or_path: a model name (the published weights, downloaded once), or a path: detrkit .safetensors, a
            training state, run directory, official .pth, Hugging Face directory, .pdparams, or a file of `export`.
        name: the model of an official file, if the file does not hold it.
        device: where to run; by default an accelerator if available.

    Raises:
        DetrkitError: the weights are missing, damaged, unknown or do not fit.
    """
    with own_defaults():
        model, spec = load_any(name_or_path, name=name)
    return Detector(model, spec, device=device)


def _sizes(images: Sequence[Image.Image]) -> list[tuple[int, int]]:
    """Return the (height, width) in pixels of every image."""
    return [(image.height, image.width) for image in images]
