"""Runners of the models of a comparison: detrkit models with weights from a file or from a seed.

`transformers_runner` has the one for models of transformers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from detrkit.comparison.recording import Recording, load_recording
from detrkit.comparison.stages import stages_of
from detrkit.layers.deformable import MSDeformAttention
from detrkit.models.base import DetectionModel
from detrkit.models.criterion import SetCriterion, build_criterion
from detrkit.models.registry import ARCHITECTURES
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Outputs
from detrkit.utils.errors import DetrkitError
from detrkit.weights.checkpoint import ModelSpec, load_any, published_spec

# gains of matrices, by the end of their names: a residual must neither vanish nor make all tokens alike
_GAINS = (
    ("self_attention.out_proj.weight", 0.6),
    ("cross_attention.out_proj.weight", 1.4),
    ("linear1.weight", 0.5),
    ("linear2.weight", 0.6),
    *((f"box_head.layers.{i}.weight", 1.4) for i in range(3)),
)


class ModelRunner(Protocol):
    """A model runner that returns intermediate tensors.

    Attributes:
        name: for messages and headings.
    """

    name: str

    @property
    def has_masks(self) -> bool:
        """True if the model predicts masks."""

    def run(self, pixels: Tensor) -> tuple[Outputs, dict[str, Tensor]]:
        """Compute the outputs for one (1, 3, H, W) normalized image, and its stages without losses."""

    def criterion(self) -> SetCriterion:
        """Return the losses of the model."""


class DetrkitRunner:
    """A detrkit model.

    Args:
        name: for messages and headings.
        model: with its weights; put in eval mode.
        spec: of the model.
        device: where to run; `record` copies the stages to the CPU.
    """

    def __init__(
        self, name: str, model: DetectionModel, spec: ModelSpec, *, device: torch.device | str = "cpu"
    ) -> None:
        self.name = name
        self.model = model.eval().to(device)
        self.spec = spec
        self.device = device

    @classmethod
    def load(cls, source: str | Path, *, model: str | None = None, device: torch.device | str = "cpu") -> DetrkitRunner:
        """Load a model from anything that `detrkit.load` takes, or from a name with a seed, such as "detr-r50:0".

        Args:
            source: weights, or name:seed.
            model: name of the model, for files that do not hold it.
            device: where to run.

        Raises:
            DetrkitError: the weights are missing, damaged, unknown or do not fit.
        """
        if seeded := re.fullmatch(r"([\w.-]+):(\d+)", str(source)):
            if seeded[1] not in ARCHITECTURES:
                raise DetrkitError(f"{source}: no model of that name; models are {', '.join(ARCHITECTURES)}")
            return cls(str(source), *seeded_model(seeded[1], int(seeded[2])), device=device)
        return cls(str(source), *load_any(source, name=model), device=device)

    @property
    def has_masks(self) -> bool:
        """True if the model predicts masks."""
        return self.model.segmentation is not None

    def run(self, pixels: Tensor) -> tuple[Outputs, dict[str, Tensor]]:
        """Compute outputs and stages; see `ModelRunner.run`."""
        batch = Batch(pixels.to(self.device), [(int(pixels.shape[2]), int(pixels.shape[3]))])
        outputs = self.model(batch, capture=True)
        return outputs, stages_of(outputs)

    def criterion(self) -> SetCriterion:
        """Return the losses of the model; see `ModelRunner.criterion`."""
        return build_criterion(self.spec.name, num_classes=self.spec.num_classes)


def open_runner(
    source: str,
    *,
    framework: Literal["detrkit", "transformers"] = "detrkit",
    model: str | None = None,
    device: torch.device | str = "cpu",
) -> ModelRunner | Recording:
    """Open a model or a recording from a user's description.

    Args:
        source: a stage file (.npz), or what `DetrkitRunner.load` takes, or for transformers the folder of its model.
        framework: that runs the model.
        model: its name, for weights that do not hold it.
        device: where to run.

    Raises:
        DetrkitError: missing, damaged or foreign files; transformers is not installed or cannot load the folder.
    """
    if framework == "transformers":
        from detrkit.comparison.transformers_runner import TransformersRunner

        return TransformersRunner.load(source, device=device)
    if source.endswith(".npz"):
        return load_recording(source)
    return DetrkitRunner.load(source, model=model, device=device)


def seeded_model(name: str, seed: int, **overrides: Any) -> tuple[DetectionModel, ModelSpec]:
    """Build a model with weights from a seed with which every part affects the result.

    Initial weights would hide mistakes: published box heads start at zero, attention weighs all points alike, and norms
    are the identity. Here each tensor is drawn at random, scaled so that the values of every stage stay moderate.

    Args:
        name: as `build_model`.
        seed: of the weights; drawn on the CPU, in the order of the model's tensors.
        overrides: of the model's options.

    Returns:
        The model, in eval mode, and its spec, with which `save_model` or `save_official` write it.
    """
    published = published_spec(name)
    spec = ModelSpec(
        name,
        overrides,
        num_classes=published.num_classes,
        classes=published.classes,
        mean=published.mean,
        std=published.std,
        size=published.size,
        max_size=published.max_size,
        square=published.square,
        training={"seed": seed},
    )
    model = spec.build()
    generator = torch.Generator().manual_seed(seed)
    residual = _residual_norms(model)
    offsets = {id(m.sampling_offsets.bias) for m in model.modules() if isinstance(m, MSDeformAttention)}
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for key, tensor in model.state_dict(keep_vars=True).items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        weight = tensor.detach()
        if key.endswith("running_var"):
            value = 1 + 0.1 * noise.clamp(-3, 3)
        elif id(tensor) in offsets:
            value = weight + 0.25 * noise  # around the published initial offsets, which form rays
        elif id(tensor) in embeddings or key.endswith(("level_embed", "row_embed", "col_embed", "queries")):
            value = noise
        elif tensor.ndim == 1 and key.endswith("weight"):  # of norms
            value = (0.3 if key in residual else 1.0) + 0.1 * noise
        elif tensor.ndim == 1:
            value = 0.1 * noise
        elif tensor.ndim == 4 and key.startswith("backbone."):
            value = noise * (2 / weight[0].numel()) ** 0.5  # a ReLU follows
        else:
            value = noise * weight[0].numel() ** -0.5 * next((g for end, g in _GAINS if key.endswith(end)), 1.0)
        if key.endswith("in_proj_weight"):
            value[: 2 * len(value) // 3] *= 2.5  # queries and keys: sharper attention
            value[2 * len(value) // 3 :] *= 1.5 if "cross_attention" in key else 0.5
        weight.copy_(value)
    return model.eval(), spec


def _residual_norms(model: DetectionModel) -> set[str]:
    """Return names of the last norms' weights of the residual branches: 1 there would double the values per block."""
    names = set()
    for name, block in model.backbone.named_modules():
        last = next((norm for norm in ("bn3", "bn2", "branch2c", "branch2b") if hasattr(block, norm)), None)
        if last is not None and last.startswith("branch"):  # of PResNet: a convolution with its norm
            names.add(f"backbone.{name}.{last}.norm.weight")
        elif last is not None:
            names.add(f"backbone.{name}.{last}.weight")
    return names
