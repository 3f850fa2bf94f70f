"""A model recorded as a graph of PyTorch's own operators, with free batch, height and width, padding exact."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import detrkit
from detrkit.backbones.resnet import ResNetBackbone
from detrkit.layers.folding import fold_for_good
from detrkit.models.base import DetectionModel
from detrkit.models.postprocess import PostProcessor
from detrkit.models.proposals import least_side, observed_choice
from detrkit.models.registry import architecture
from detrkit.models.spec import ModelSpec
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.runtimes.metadata import ExportInfo, Format
from detrkit.structures.batch import Batch, TracedBatch
from detrkit.structures.outputs import Outputs
from detrkit.utils.errors import DetrkitError, SettingError
from detrkit.utils.visible import first_line

EXAMPLE_STEP = 64  # pixels: sides of the example are a little more than multiples of it, and differ
_CHECKS = (torch.ops.aten._assert_scalar.default, torch.ops.aten._assert_tensor_metadata.default)


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A recorded graph.

    Attributes:
        program: of `torch.export`.
        info: of the graph.
        spec: of its model, with the resize rule that fits a fixed size.
    """

    program: torch.export.ExportedProgram
    info: ExportInfo
    spec: ModelSpec


class _Graph(nn.Module):
    """What is recorded: a model as a function of tensors.

    Args:
        model: in eval mode, folded.
        postprocessor: makes detections of outputs, or None for the raw outputs alone.
    """

    def __init__(self, model: DetectionModel, postprocessor: PostProcessor | None) -> None:
        super().__init__()
        self.model = model
        self.postprocessor = postprocessor

    def forward(
        self, images: Tensor, padding_mask: Tensor | None = None, target_sizes: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Return the tensors of `names`, in this order."""
        with observed_choice() as choice:
            outputs: Outputs = self.model(TracedBatch(images, padding=padding_mask), defer_masks=False)
        results = [outputs.logits, outputs.boxes]
        if outputs.masks is not None:
            results.append(outputs.masks)
        if choice.indices is not None:
            results.append(choice.indices)
        if self.postprocessor is not None:
            assert target_sizes is not None
            scores, labels, queries, boxes = self.postprocessor.best_detections(outputs)
            scale = target_sizes.flip(1).to(boxes.dtype).repeat(1, 2)  # (B, 4) width, height, width, height
            results += [scores, labels, queries, cxcywh_to_xyxy(boxes) * scale[:, None]]
        return tuple(results)


def takes_mask(model: DetectionModel, spec: ModelSpec) -> bool:
    """Return whether a model's graph has a padding mask as input.

    torchvision's ResNets compute a padded batch at once, and all models as published with padding="official". Other
    backbones run images of one size together, and square models have no padding.
    """
    return not spec.square and (isinstance(model.backbone, ResNetBackbone) or spec.padding == "official")


def record(
    model: DetectionModel,
    spec: ModelSpec,
    *,
    format: Format,
    fixed: tuple[int, int] | None = None,
    batch: int | None = None,
    postprocess: bool = False,
    source: str = "",
    sha256: str = "",
) -> Recorded:
    """Record a model, whose copy is folded.

    Args:
        model: on the CPU, of float32.
        spec: of the model.
        format: of the file that it is for.
        fixed: (height, width) in pixels of the only input; None: any size.
        batch: the only number of images; None: any, with `fixed` too.
        postprocess: compute detections, too.
        source: name of the weights, for the description.
        sha256: of the weights, likewise.

    Raises:
        SettingError: a model that cannot have a fixed size, or no such input.
        DetrkitError: a model whose code cannot be recorded.
    """
    masked = takes_mask(model, spec)
    info = _info(model, spec, format, masked, fixed, batch, postprocess)
    info = replace(info, source=source, sha256=sha256)
    spec = _spec_of(spec, masked, fixed)
    model = copy.deepcopy(model).eval().requires_grad_(False)
    height, width, count = _example_size(info)
    example = Batch(torch.zeros(count, 3, height, width), [(height, width)] * count)
    with torch.no_grad():
        fold_for_good(model, lambda: model(example, defer_masks=True))
    graph = _Graph(model, postprocessor_of(model, spec) if postprocess else None).eval()
    inputs = _example_inputs(info, height, width, count)
    program = _program(graph, inputs, info, spec.name)
    _remove_checks(program)
    return Recorded(program=program, info=info, spec=spec)


def _program(graph: nn.Module, inputs: dict[str, Tensor], info: ExportInfo, name: str) -> torch.export.ExportedProgram:
    """Record a graph with free axes.

    Raises:
        DetrkitError: the model's code cannot be recorded, such as one that needs a size as a number.
    """
    try:
        with torch.no_grad():
            # conditions that no range states, such as "as many tokens as queries", become checks and no failed export
            return torch.export.export(
                graph,
                (),
                inputs,
                dynamic_shapes=_dynamic_shapes(info),
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except (DetrkitError, MemoryError):
        raise
    except Exception as error:  # whatever the code of a model of another package raises for symbols
        raise DetrkitError(
            f"{name} cannot be recorded as a graph ({first_line(error)[:300]}): its code must not need the sizes of a "
            "batch as numbers, see docs/export.md"
        ) from error


def _remove_checks(program: torch.export.ExportedProgram) -> None:
    """Remove the checks of sizes that the exporter inserts, in place.

    It notes which way a comparison went for the example, such as "this map has padding to cut off", also where the same
    operators compute both: a model that pads to multiples of 32 would refuse images of 640 pixels. What a graph
    computes for other sizes is compared by the gates.
    """
    graph = program.graph_module.graph
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and node.target in _CHECKS:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def postprocessor_of(model: DetectionModel, spec: ModelSpec) -> PostProcessor:
    """Return the post-processing as `Detector` does it: all queries, or as many as the model selects."""
    processor = PostProcessor.of(spec)
    return processor if hasattr(model, "num_select") else replace(processor, top_k=None)


def _info(
    model: DetectionModel,
    spec: ModelSpec,
    format: Format,
    masked: bool,
    fixed: tuple[int, int] | None,
    batch: int | None,
    postprocess: bool,
) -> ExportInfo:
    """Describe the graph before it is recorded."""
    names = ["logits", "boxes"]
    names += ["masks"] if model.segmentation is not None else []
    names += ["proposal_index"] if model.chooses_tokens else []
    names += ["scores", "labels", "queries", "pixel_boxes"] if postprocess else []
    least, largest = _sides(model)
    arch = architecture(spec.name)
    return ExportInfo(
        detrkit=detrkit.__version__,
        format=format,
        inputs=("images", *(["padding_mask"] if masked else []), *(["target_sizes"] if postprocess else [])),
        outputs=tuple(names),
        least_side=least,
        largest_side=largest,
        fixed=fixed,
        batch=batch,
        num_queries=model.num_queries,
        num_select=getattr(model, "num_select", None),
        activation=arch.activation,
        threshold=arch.thresholds.predict,
        source="",
        sha256="",
    )


def _sides(model: DetectionModel) -> tuple[int, int | None]:
    """Return the least and the largest side in pixels that a graph takes.

    Every map has two cells a side at least: the exporter takes a side of one for a constant. Two-stage models need as
    many tokens as queries. Learned positions are as many as their table has rows.
    """
    strides = model.level_strides
    least = strides[-1] + 1
    if model.chooses_tokens:
        least = max(least, least_side(strides, model.num_queries))
    rows = getattr(model, "row_embed", None)
    rows = getattr(getattr(model, "position_encoding", None), "row_embed", rows)
    if rows is None:
        return least, None
    entries = rows.num_embeddings if isinstance(rows, nn.Embedding) else len(rows)
    return least, entries * strides[0]


def _spec_of(spec: ModelSpec, masked: bool, fixed: tuple[int, int] | None) -> ModelSpec:
    """Return the spec whose resize rule gives images that a fixed size takes.

    Raises:
        SettingError: the model cannot have this fixed size.
    """
    if fixed is None:
        return spec
    height, width = fixed
    if spec.square:
        if height != width:
            raise SettingError(f"fixed={height}x{width}: {spec.name} takes squares alone: give one side, {height}")
        return replace(spec, size=height)
    if not masked or spec.padding == "official":
        why = "its outputs depend on the padding" if spec.padding == "official" else "its graph has no padding mask"
        raise SettingError(f"fixed={height}x{width}: {spec.name} cannot have a fixed size, because {why}")
    longest = max(fixed) if spec.max_size is None else min(spec.max_size, max(fixed))
    return replace(spec, size=min(spec.size, *fixed), max_size=longest)


def _example_size(info: ExportInfo) -> tuple[int, int, int]:
    """Return height, width and number of images of the example that the graph is recorded with.

    No side is a multiple of a stride, no map is twice as large as the next: what is equal by chance in the example,
    such as a map and its part without padding, the exporter may take for equal always.
    """
    if info.fixed is not None:
        return *info.fixed, info.batch or 2
    height = -(-max(info.least_side, 96) // EXAMPLE_STEP) * EXAMPLE_STEP + 5
    width = height + EXAMPLE_STEP - 2
    if info.largest_side is not None and width > info.largest_side:
        height, width = info.largest_side - 37, info.largest_side - 27
    return height, width, info.batch or 2


def _example_inputs(info: ExportInfo, height: int, width: int, count: int) -> dict[str, Tensor]:
    """Return inputs for recording: the last image is smaller than the others where the graph takes a mask."""
    inputs: dict[str, Tensor] = {"images": torch.zeros(count, 3, height, width)}
    if info.masked:
        sizes = [(height, width)] * (count - 1) + [(height - 3, width - 5)]
        inputs["padding_mask"] = Batch(inputs["images"], sizes).mask()
    if "target_sizes" in info.inputs:
        inputs["target_sizes"] = torch.tensor([(480, 640)] * count)
    return inputs


def _dynamic_shapes(info: ExportInfo) -> dict[str, Any]:
    """Return which axes of the inputs are free."""
    free = torch.export.Dim.DYNAMIC
    batch = {} if info.batch else {0: free}
    height_width = {} if info.fixed else {1: free, 2: free}
    shapes: dict[str, Any] = {"images": {**batch, **{axis + 1: dim for axis, dim in height_width.items()}}}
    if info.masked:
        shapes["padding_mask"] = {**batch, **height_width}
    if "target_sizes" in info.inputs:
        shapes["target_sizes"] = dict(batch)
    return shapes
