"""Gates of an export: the outputs of the file beside those of the model in PyTorch, over batches of every kind.

Two runtimes add the same numbers in another order. On small models with random weights, whose logits are up to 3, and
on a trained one that moved logits by at most 3e-5, boxes by 1e-5, mask logits by 2e-6 of the largest. The epsilon of a
single layer norm, 1e-2 in the place of 1e-5, moves logits by 4e-4; that of all frozen batch norms, 1e-3, by 6e-4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detrkit.exporting.fitting import Room
from detrkit.exporting.graph import postprocessor_of
from detrkit.models.base import DetectionModel
from detrkit.models.proposals import observed_choice
from detrkit.models.spec import ModelSpec
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.runtimes.metadata import ExportInfo
from detrkit.runtimes.model import ExportedModel
from detrkit.runtimes.sessions import Arrays
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import MASKED_LOGIT, Outputs

# largest differences that pass, of float32
TOLERANCES = {
    "logits": 2e-4,  # where logits exceed 10, as much more as they do
    "boxes": 5e-5,  # of an image's side: 0.07 pixels of 1333
    "masks": 1e-4,  # times the largest mask logit, if that is above 1
    "token scores": 2e-4,  # as logits
    "scores": 1e-5,
    "pixel_boxes": 1e-2,  # pixels
}
BATCHES = (1, 2, 8)
Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Result of one comparison.

    Attributes:
        name: what was compared, such as "2 images padded to 128 x 192".
        differences: largest absolute difference of each output; divided by a tenth of the largest logit where that is
            above 10, "masks" by the largest above 1.
        tolerance: the largest that passes, of each output.
    """

    name: str
    differences: dict[str, float]
    tolerance: dict[str, float]

    @property
    def failure(self) -> str | None:
        """What is wrong, in a line; None if the gate is passed."""
        for output, difference in self.differences.items():
            if not difference <= self.tolerance[output]:  # NaN fails
                return (
                    f"{output} differ by {difference:.3g} from PyTorch's (at most {self.tolerance[output]:g} passes) "
                    f"for {self.name}"
                )
        return None


@torch.no_grad()
def check_outputs(
    model: DetectionModel, exported: ExportedModel, spec: ModelSpec, *, scale: float = 1.0, full_size: bool = True
) -> Iterator[Gate]:
    """Compare an exported model with its original, batch by batch.

    Args:
        model: in eval mode, on the CPU, of float32.
        exported: of its file.
        spec: of the model, as in the file.
        scale: factor of the tolerances, for arithmetic of less precision.
        full_size: compare an image of the size that `spec` asks for, too.

    Yields:
        The gates, in the order in which they are computed. Of a fixed size a batch has as many images as the memory
        has room for, which the names of the gates say.
    """
    info = exported.info
    generator = torch.Generator().manual_seed(0)
    room = Room()
    for number, sizes in enumerate(batches_of(info, spec, full_size=full_size)):
        largest = len(sizes) == max(BATCHES)
        # of a fixed size every image is as large as any, and the first batch tells what one takes
        sizes = sizes[: room.fits(len(sizes))] if info.fixed is not None and info.batch is None else sizes
        images = [_image(size, generator) for size in sizes]
        with room.measure(len(sizes)) if info.fixed is not None and number == 0 else nullcontext():
            batch = Batch.from_images(images)
            name = _name(batch, sizes)
            arrays = exported.arrays(batch)
            gates = [_compared(name, model, exported, batch, arrays, scale)]
        if "scores" in arrays:
            gates.append(_postprocessed(name, model, spec, arrays, batch, scale))
        yield from gates
        if largest and info.masked:
            smallest = min(range(len(sizes)), key=lambda i: math.prod(sizes[i]))
            alone = Batch.from_images([images[smallest]])
            found = exported.arrays(alone)
            name = f"an image of {sizes[smallest][0]} x {sizes[smallest][1]} alone and in a batch"
            yield _compared(f"{name}, alone", model, exported, alone, found, scale)
            if spec.padding == "exact":  # as published an image depends on its batch, in the file too
                yield _alone(name, arrays, found, smallest, scale, ranked=model.chooses_tokens)


def batches_of(info: ExportInfo, spec: ModelSpec, *, full_size: bool = True) -> list[list[Size]]:
    """Return the sizes (height, width) in pixels of the images of every batch that is compared."""
    if info.fixed is not None:
        full = info.fixed
        counts = (info.batch,) if info.batch else BATCHES
        if not info.masked:
            return [[full] * count for count in counts]
        smaller = [full] + [(max(1, full[0] - 17 * i), max(1, full[1] - 29 * (i % 3))) for i in range(1, 8)]
        return [[full] * counts[0], *(smaller[:count] for count in counts), [smaller[-1]]]
    least = max(info.least_side, 64)
    largest = info.largest_side or 10**6
    square, wide, tall = (
        (min(h, largest), min(w, largest))
        for h, w in ((least + 32, least + 32), (least + 7, least + 90), (least + 61, least))
    )
    many = [wide, tall, square, *((min(least + 11 * i, largest), min(least + 90 - 13 * i, largest)) for i in range(5))]
    if info.masked:
        groups = [[wide], [square], [tall, wide], many]
    else:
        groups = [[square], [wide], [tall, tall], [square] * 8]
    if info.batch:
        groups = [[group[i % len(group)] for i in range(info.batch)] for group in groups]
    if full_size:
        side = min(spec.size, largest)
        other = side if spec.square else min(spec.max_size or round(side * 4 / 3), round(side * 4 / 3), largest)
        if min(side, other) >= info.least_side:
            groups.append([(side, other)])
    return groups


def _name(batch: Batch, sizes: Sequence[Size]) -> str:
    height, width = batch.images.shape[-2:]
    count = "1 image" if len(sizes) == 1 else f"{len(sizes)} images"
    return f"{count} {'padded to' if batch.padded else 'of'} {height} x {width}"


def _image(size: Size, generator: torch.Generator) -> Tensor:
    """Make a normalized (3, h, w) image: noise of several scales, which every layer answers to."""
    height, width = size
    image = torch.zeros(3, height, width)
    for side in (4, 16, 64):
        cells = torch.randn(1, 3, -(-height // side), -(-width // side), generator=generator)
        image += torch.nn.functional.interpolate(cells, scale_factor=float(side))[0, :, :height, :width]
    return image


def _compared(
    name: str, model: DetectionModel, exported: ExportedModel, batch: Batch, arrays: Arrays, scale: float
) -> Gate:
    """Compare raw outputs with those of the model, which takes the tokens that the file chose."""
    index = arrays.get("proposal_index")
    forced = None if index is None else torch.from_numpy(index)
    padded = batch
    if exported.info.masked and exported.exact:  # as the file gets it: tokens are counted in the padded map
        padded = exported.padded_as_run(batch)
    with observed_choice(forced) as choice:
        expected: Outputs = model(padded, defer_masks=False)
    differences = {}
    logits, boxes = torch.from_numpy(arrays["logits"]), torch.from_numpy(arrays["boxes"])
    real = (expected.logits != MASKED_LOGIT).any(-1)
    unit = max(1.0, _largest(expected.logits[real].abs()) / 10)
    differences["logits"] = _largest((logits - expected.logits).abs()) / unit
    differences["boxes"] = _largest((boxes - expected.boxes).abs()[real])
    if expected.masks is not None:
        most = max(1.0, float(expected.masks.abs().max()))
        differences["masks"] = _largest((torch.from_numpy(arrays["masks"]) - expected.masks).abs()) / most
    if forced is not None and choice.scores is not None and choice.indices is not None:
        differences["token scores"] = _ranking_difference(choice.scores, choice.indices, forced) / unit
    return Gate(name=name, differences=differences, tolerance=_tolerances(differences, scale))


def _ranking_difference(scores: Tensor, best: Tensor, chosen: Tensor) -> float:
    """Return how much the scores (B, S) of the chosen tokens (B, Q) differ from those of the best, rank by rank."""
    if chosen.sort(1).values.diff(dim=1).eq(0).any():
        return math.inf  # a token twice
    ranked, own = scores.gather(1, chosen), scores.gather(1, best)
    return _largest(torch.where(ranked == own, 0.0, (ranked - own).abs()))  # of padded ones both are -inf


def _alone(name: str, together: Arrays, alone: Arrays, index: int, scale: float, *, ranked: bool) -> Gate:
    """Compare an image alone with the same image in a batch, both of the file.

    Two-stage models order their queries by scores, and nearly equal ones change places: their logits are compared in
    descending order of the best class.
    """
    logits, single = together["logits"][index], alone["logits"][0]
    unit = max(1.0, float(np.abs(single[(single != MASKED_LOGIT).any(-1)]).max()) / 10)
    if ranked:
        differences = {"logits": float(np.abs(np.sort(logits.max(-1)) - np.sort(single.max(-1))).max()) / unit}
    else:
        boxes = np.abs(together["boxes"][index] - alone["boxes"][0]).max()
        differences = {"logits": float(np.abs(logits - single).max()) / unit, "boxes": float(boxes)}
    return Gate(name=name, differences=differences, tolerance=_tolerances(differences, scale))


def _postprocessed(
    name: str, model: DetectionModel, spec: ModelSpec, arrays: Arrays, batch: Batch, scale: float
) -> Gate:
    """Compare the detections of the graph with `PostProcessor`'s, of the graph's own logits and boxes."""
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    processor = postprocessor_of(model, spec)
    logits = tensors["logits"]
    scores, _, _, _ = processor.best_detections(Outputs(logits, tensors["boxes"]))
    probability = logits.softmax(-1) if processor.activation == "softmax" else logits.sigmoid()
    image = torch.arange(len(logits))[:, None]
    queries, labels = tensors["queries"], tensors["labels"]
    sizes = torch.tensor([(w, h, w, h) for h, w in batch.sizes])[:, None]
    pixels = cxcywh_to_xyxy(tensors["boxes"][image, queries]) * sizes
    stated = probability[image, queries, labels]  # of the query and the class that each detection names
    differences = {
        "scores": max(_largest((tensors["scores"] - scores).abs()), _largest((stated - scores).abs())),
        "pixel_boxes": _largest((tensors["pixel_boxes"] - pixels).abs()),
    }
    return Gate(name=f"detections of {name}", differences=differences, tolerance=_tolerances(differences, scale))


def _largest(differences: Tensor) -> float:
    """Return the largest value, NaN if any is; 0 of none."""
    return float(differences.max()) if differences.numel() else 0.0


def _tolerances(differences: dict[str, float], scale: float) -> dict[str, float]:
    return {output: TOLERANCES[output] * scale for output in differences}
