"""`ExportedModel`: a graph in a runtime behind the interface of every model of detrkit."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.models.base import DetectionModel
from detrkit.models.instance_masks import MASK_STRIDE
from detrkit.models.spec import ModelSpec
from detrkit.runtimes.metadata import ExportInfo, read_metadata
from detrkit.runtimes.sessions import Arrays, Precision, Runtime, Session, open_session
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import MASKED_LOGIT, Capturing, Outputs, Target
from detrkit.utils.download import sha256
from detrkit.utils.errors import DetrkitError, ImageSizeError, SettingError

log = logging.getLogger(__name__)


class ExportedModel(DetectionModel):
    """An exported graph as a model: `Detector`, evaluation and prediction use it as they use the original.

    It computes on the CPU, whatever the device of the batch, and returns its outputs there. It has no parameters, takes
    no gradient and keeps no attention.

    Args:
        session: runs the graph.
        info: of the graph.
        spec: of the model.
        digest: SHA-256 of its files, by which results of other weights are told apart; b"" for a graph in memory.

    Attributes:
        session, info: as the arguments.
        digest: (32,) uint8, in the place of weights in the state dict.
    """

    digest: Tensor

    def __init__(self, session: Session, info: ExportInfo, spec: ModelSpec, *, digest: bytes = b"") -> None:
        super().__init__()
        self.register_buffer("digest", torch.tensor(list(digest), dtype=torch.uint8))
        self.session, self.info = session, info
        self.num_classes = spec.num_classes
        self.num_queries = info.num_queries
        self.square = spec.square
        self.exact = spec.padding == "exact"
        self.segmentation = _MasksOfGraph() if "masks" in info.outputs else None  # type: ignore[assignment]
        if info.num_select is not None:
            self.num_select = info.num_select

    def forward(
        self,
        images: Sequence[Tensor] | Batch,
        targets: Sequence[Target] | None = None,
        capture: Capturing = False,
        defer_masks: bool | None = None,
    ) -> Outputs:
        """Predict a set of objects for every image.

        Args:
            images: normalized (3, h, w) float tensors of any sizes, or a Batch.
            targets: not used.
            capture: not available.
            defer_masks: not used: a graph computes all masks.

        Returns:
            Outputs with logits, boxes and, of models that have them, masks, as those of the original.

        Raises:
            DetrkitError: attention is asked for.
            ImageSizeError: an image of a size that the graph does not take.
        """
        if capture:
            raise DetrkitError("an exported model keeps no attention: explain the checkpoint that it was made of")
        batch = images if isinstance(images, Batch) else Batch.from_images(images)
        results = self.arrays(batch)
        tensors = {name: torch.from_numpy(array).to(batch.images.device) for name, array in results.items()}
        outputs = Outputs(tensors["logits"], tensors["boxes"], masks=tensors.get("masks"))
        if outputs.masks is not None and self.exact:
            outputs.mask_sizes = batch.cells(MASK_STRIDE)
        return outputs

    def with_num_queries(self, count: int) -> Self:
        """Return this model if it has that number of queries.

        Raises:
            SettingError: it has another one.
        """
        if count != self.num_queries:
            raise SettingError(
                f"num_queries is {count}: the number of queries, {self.num_queries}, is part of an exported graph; "
                f"predict with the checkpoint that it was made of"
            )
        return self

    def arrays(self, batch: Batch, target_sizes: Sequence[tuple[int, int]] | None = None) -> Arrays:
        """Run the graph on a batch and return its outputs by name, without conversion.

        Args:
            batch: the images.
            target_sizes: (height, width) in pixels of the original images, for graphs with post-processing; by default
                the size of the input.

        Raises:
            ImageSizeError: an image of a size that the graph does not take.
        """
        parts = []
        order: list[int] = []
        for indices, inputs in self.inputs(batch, target_sizes):
            results = self.session.run(inputs)
            parts.append({name: array[: len(indices)] for name, array in results.items()})
            order += indices
        return parts[0] if len(parts) == 1 else _joined(parts, order)

    def inputs(
        self, batch: Batch, target_sizes: Sequence[tuple[int, int]] | None = None
    ) -> Iterator[tuple[list[int], Arrays]]:
        """Yield the inputs of every run of the graph that a batch takes, and the indices of the images in it.

        Args:
            batch: the images.
            target_sizes: as of `arrays`.

        Raises:
            ImageSizeError: an image of a size that the graph does not take.
        """
        sizes = batch.sizes if target_sizes is None else list(target_sizes)
        for indices, some in self._groups(batch):
            inputs: Arrays = {"images": np.ascontiguousarray(some.images.float().cpu().numpy())}
            if self.info.masked:
                inputs["padding_mask"] = some.mask().cpu().numpy()
            if "target_sizes" in self.info.inputs:
                chosen = [sizes[i] for i in indices]
                chosen += [some.sizes[-1]] * (len(some) - len(indices))
                inputs["target_sizes"] = np.array(chosen, dtype=np.int64)
            yield indices, inputs

    def padded_as_run(self, batch: Batch) -> Batch:
        """Return a batch as a graph with a mask gets it: padded further if the graph takes larger images alone."""
        padded = self._padded(batch, list(range(len(batch))))
        return Batch(padded.images[: len(batch)], batch.sizes)

    def _groups(self, batch: Batch) -> list[tuple[list[int], Batch]]:
        """Divide a batch into what the graph takes at once: indices of the images, and the batch that holds them.

        Without a mask images of one size run together. A graph of one size gets padded images, a graph of one number
        of images is filled up with empty ones.
        """
        info = self.info
        groups: dict[Any, list[int]] = {}
        for i, size in enumerate(batch.sizes):
            groups.setdefault(None if info.masked else size, []).append(i)
        step = info.batch or len(batch)
        parts = [indices[at : at + step] for indices in groups.values() for at in range(0, len(indices), step)]
        return [(part, self._padded(batch, part)) for part in parts]

    def _padded(self, batch: Batch, indices: list[int]) -> Batch:
        """Return some images of a batch, padded to a size and a number that the graph takes.

        Raises:
            ImageSizeError: there is none.
        """
        info = self.info
        sizes = [batch.sizes[i] for i in indices]
        height, width = (int(side) for side in batch.images.shape[-2:])
        if not info.masked:
            height, width = sizes[0]
        elif info.fixed is not None:
            height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
        target = info.fixed or (height, width)
        if info.masked and self.exact and info.fixed is None:  # padding changes nothing
            target = (max(height, info.least_side), max(width, info.least_side))
        if height > target[0] or width > target[1] or (not info.masked and (height, width) != target):
            raise ImageSizeError(
                f"this graph takes images of {target[0]} x {target[1]} pixels (height x width), not of "
                f"{height} x {width}: use a size that fits, or export the model without a fixed size"
            )
        self._check_sides(target)
        images = batch.images if len(indices) == len(batch) else batch.images[indices]
        images = images[..., :height, :width]
        images = F.pad(images, (0, target[1] - width, 0, target[0] - height))
        missing = (info.batch or len(indices)) - len(indices)
        if missing > 0:
            images = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)])
            sizes = [*sizes, *[sizes[-1]] * missing]
        return Batch(images, sizes)

    def _check_sides(self, size: tuple[int, int]) -> None:
        """Check a (height, width) in pixels against the limits of the graph.

        Raises:
            ImageSizeError: a side is too small or too large.
        """
        least, largest = self.info.least_side, self.info.largest_side
        if self.info.fixed is None and (min(size) < least or (largest is not None and max(size) > largest)):
            limit = f"at least {least}" + ("" if largest is None else f" and at most {largest}")
            raise ImageSizeError(
                f"the exported graph takes sides of {limit} pixels, the image has {size[0]} x {size[1]}"
            )


class _MasksOfGraph(nn.Module):
    """Marks a model whose graph computes masks."""


def _joined(parts: Sequence[Arrays], order: Sequence[int]) -> Arrays:
    """Join results of parts of a batch in the order of its images; fewer queries, or smaller maps, are filled up."""
    joined: Arrays = {}
    place = np.argsort(np.array(order))
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        shape = np.max([array.shape[1:] for array in arrays], 0)
        fill = MASKED_LOGIT if name == "logits" else 0
        wide = [
            np.pad(array, [(0, 0), *((0, int(most) - side) for most, side in zip(shape, array.shape[1:], strict=True))],
                   constant_values=fill)
            for array in arrays
        ]  # fmt: skip
        joined[name] = np.concatenate(wide)[place]
    return joined


def load_exported(
    path: str | Path, *, runtime: Runtime | None = None, precision: Precision | None = None
) -> tuple[ExportedModel, ModelSpec]:
    """Read an exported file.

    Args:
        path: .onnx, .xml of OpenVINO with its .bin beside it, or .pt2 of torch.export.
        runtime: which runs it; by default ONNX Runtime for .onnx, OpenVINO where that alone is installed.
        precision: of the arithmetic in OpenVINO; by default the one that the file was exported for.

    Returns:
        The model and its spec.

    Raises:
        DetrkitError: missing, damaged, foreign or written by a later version, or its runtime is not installed.
    """
    path = Path(path)
    session = open_session(path, runtime=runtime, precision=precision)
    try:
        info, spec = read_metadata(session.metadata)
    except DetrkitError as error:
        raise DetrkitError(f"{path}: {error}") from error
    log.info("%s runs in %s", path, session.runtime)
    return ExportedModel(session, info, spec, digest=_digest(path)), spec


def _digest(path: Path) -> bytes:
    """Return the SHA-256 of an exported file, of OpenVINO's two together."""
    digest = bytes.fromhex(sha256(path))
    weights = path.with_suffix(".bin")
    if path.suffix != ".xml" or not weights.is_file():
        return digest
    return hashlib.sha256(digest + bytes.fromhex(sha256(weights))).digest()
