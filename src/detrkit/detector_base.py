"""`DetectorBase`: a model with what its input and its labels mean, and the detectors that are made of it."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any, Self

import torch

from detrkit.models.base import DetectionModel, is_panoptic
from detrkit.models.compiled import compiled
from detrkit.models.precision import Precision, in_precision
from detrkit.structures.classes import ClassList
from detrkit.tiling.predicting import refuse_segments
from detrkit.tiling.tiles import DEFAULT_OVERLAP, Tiling
from detrkit.utils.devices import as_device, default_device
from detrkit.utils.ranges import Count, Overlap, Pixels, TileSide, check_arguments
from detrkit.utils.timing import NoTimer, PartTimer
from detrkit.weights.checkpoint import ModelSpec


class DetectorBase:
    """What a detector is made of; `Detector` predicts with it. Arguments and attributes: see there."""

    def __init__(self, model: DetectionModel, spec: ModelSpec, *, device: torch.device | str | None = None) -> None:
        self.model = model.eval()
        self.spec = spec
        self.timer: PartTimer = NoTimer()
        self.tiling: Tiling | None = None
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

    def to(self, device: torch.device | str) -> Self:
        """Move the model, and return the detector itself."""
        self.model.to(as_device(device))
        return self

    def resized(self, size: Pixels) -> Self:
        """Return a detector with this model that resizes the short side (of square images both) to `size` pixels.

        Raises:
            ValueError: a size out of range.
        """
        check_arguments(DetectorBase.resized, {"size": size})
        limit = self.spec.max_size
        limit = None if limit is None else max(size, round(limit * size / self.spec.size))
        return self._with(spec=replace(self.spec, size=size, max_size=limit))

    def tiled(
        self, tile: TileSide | None, overlap: Overlap = DEFAULT_OVERLAP, *, max_detections: Count | None = None
    ) -> Self:
        """Return a detector with this model that predicts images larger than a tile in tiles: see `predict`.

        Args:
            tile: as of `predict`; None: images are not cut, whatever this detector does.
            overlap: as of `predict`.
            max_detections: of an image that is cut, the best ones; None: all.

        Raises:
            ValueError: a number out of range, or a panoptic model.
        """
        if tile is None:
            return self._with(tiling=None)
        tiling = Tiling(tile, overlap, max_detections)
        refuse_segments(self.panoptic)
        return self._with(tiling=tiling)

    def with_num_queries(self, count: Count) -> Self:
        """Return a detector with this model's weights that chooses another number of tokens as its queries.

        Of the same number the results are equal to the bit. Detections of an image may be as many as queries then.

        Raises:
            ValueError: a number out of range, a model whose queries are learned, or more than have learned contents.
        """
        check_arguments(DetectorBase.with_num_queries, {"count": count})
        model = self.model.with_num_queries(count)
        return self if model is self.model else self._with(model=model, spec=self.spec.of_queries(model))

    def in_precision(self, precision: Precision) -> Self:
        """Return a detector that computes in float32 or bfloat16; its weights are rounded to it, results stay float32.

        On a device that has no instructions for bfloat16 it is a warning, and this detector.

        Args:
            precision: "fp32" or "bf16".

        Raises:
            SettingError: another precision, or an exported model, whose precision is part of its file.
        """
        model = in_precision(self.model, precision, self.device)
        return self if model is self.model else self._with(model=model)

    def compiled(self) -> Self:
        """Return a detector whose forward passes `torch.compile` does where it is measured to be faster.

        A size of input that comes often (its batch, too) is compiled, which takes half a minute to minutes; then
        compiled and plain passes take turns, and the faster way stays. At most four sizes are tried. Numbers differ in
        their last bits. `detrkit.models.compiled.compiled_forward(detector.model).report()` says what was chosen. Call
        it last: `in_precision` and `with_num_queries` make detectors that are not compiled.

        Raises:
            SettingError: an exported model, whose graph is fixed.
        """
        return self._with(model=compiled(self.model))

    def _with(self, **changes: Any) -> Self:
        detector = copy(self)
        vars(detector).update(changes)
        return detector
