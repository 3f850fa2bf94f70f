"""`TransformersRunner`: a model of Hugging Face's transformers, run by its own code from its folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from detrkit.comparison.stages import distinct_stages, predictions_of
from detrkit.models.criterion import SetCriterion, build_criterion
from detrkit.structures.outputs import Outputs
from detrkit.utils.errors import DetrkitError
from detrkit.utils.visible import first_line
from detrkit.weights.hub import download_checkpoint, hub_name

# class in transformers -> detrkit model with the same losses
KINDS = {
    "DetrForObjectDetection": "detr-r50",
    "DetrForSegmentation": "detr-r50-panoptic",
    "DeformableDetrForObjectDetection": "deformable-detr-r50",
}
# modules of transformers 4 or 5 that compute a stage: end of the module's name, stage, offset of the stage's number
_BODY = r"\bbackbone\.(?:conv_encoder\.)?model\."
_MODULES = (
    (_BODY + r"layer(\d)", "backbone", 1),  # of timm
    (_BODY + r"encoder\.stages\.(\d)", "backbone", 2),
    (r"\binput_projection", "projection", 0),
    (r"\binput_proj\.(\d+)", "projection", 0),
    (r"\bmodel\.encoder\.layers\.(\d+)", "encoder", 0),
    (r"\bmodel\.decoder\.layers\.(\d+)", "decoder", 0),
    (r"\bposition_embedding", "position", 0),
    (r"\bbbox_attention", "mask_attention", 0),
)


class TransformersRunner:
    """A DETR or a Deformable DETR that transformers runs.

    Args:
        name: for messages and headings.
        model: of one of the classes in KINDS; put in eval mode.
        device: where to run.
    """

    def __init__(self, name: str, model: Any, *, device: torch.device | str = "cpu") -> None:
        self.name = name
        self.kind = type(model).__name__
        self.model: Any = model.eval().to(device)
        self.device = device
        if self.kind == "DeformableDetrForObjectDetection":
            self.model.config.auxiliary_loss = True  # otherwise the outputs lack the predictions of earlier layers

    @classmethod
    def load(cls, folder: str | Path, *, device: torch.device | str = "cpu") -> TransformersRunner:
        """Read a folder that `save_pretrained` or detrkit wrote, or a model of the Hub ("owner/name", see `hub_name`).

        Raises:
            DetrkitError: transformers is not installed, or the folder has no model of transformers, or none of KINDS.
        """
        try:
            import transformers
            from transformers.utils import logging
        except ImportError as error:
            raise DetrkitError("--framework transformers needs transformers: pip install transformers") from error
        name = hub_name(folder)
        folder = folder if name is None else download_checkpoint(name)
        if not (Path(folder) / "config.json").is_file():
            raise DetrkitError(f"{folder}: no config.json there; transformers reads a model's folder")
        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            kind = (config.architectures or ["nothing"])[0]
            if kind not in KINDS:
                raise DetrkitError(f"{folder}: config.json says {kind}; can be compared: {', '.join(KINDS)}")
            model = getattr(transformers, kind).from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            raise DetrkitError(f"{folder}: transformers cannot load it ({first_line(error)})") from error
        finally:
            if bars:
                logging.enable_progress_bar()
        return cls(str(folder), model, device=device)

    @property
    def has_masks(self) -> bool:
        """True if the model predicts masks."""
        return self.kind == "DetrForSegmentation"

    def criterion(self) -> SetCriterion:
        """Return detrkit's losses for such a model: those of transformers do not report the same terms."""
        return build_criterion(KINDS[self.kind], num_classes=self.model.config.num_labels)

    def run(self, pixels: Tensor) -> tuple[Outputs, dict[str, Tensor]]:
        """Compute outputs and stages; see `ModelRunner.run`."""
        inputs: dict[str, Any] = {"pixel_values": pixels.to(self.device)}
        if self.kind == "DeformableDetrForObjectDetection":
            # transformers returns predictions of earlier layers only with a loss, and a loss only with objects
            objects = {"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}
            inputs["labels"] = [{name: value.to(self.device) for name, value in objects.items()}]
        with _captured_stages(self.model) as seen:
            result = self.model(**inputs)
        earlier = getattr(result, "auxiliary_outputs", None) or []
        outputs = Outputs(result.logits, result.pred_boxes, masks=getattr(result, "pred_masks", None))
        outputs.aux = [Outputs(layer["logits"], layer["pred_boxes"]) for layer in earlier]
        last = max(int(name.split(".")[1]) for name in seen if name.startswith("decoder."))
        stages = dict(seen)
        if getattr(result, "enc_outputs_class", None) is not None:
            outputs.encoder = Outputs(result.enc_outputs_class, result.enc_outputs_coord_logits.sigmoid())
        if getattr(result, "init_reference_points", None) is not None:
            stages["reference"] = result.init_reference_points
        stages[f"queries.{last}"] = result.last_hidden_state
        return outputs, distinct_stages(stages | predictions_of(outputs, last))


@contextmanager
def _captured_stages(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that collects the stages that a model's modules output while it runs."""
    seen: dict[str, Tensor] = {}
    handles = []

    def capture(module: nn.Module, stage: str, number: int | None) -> None:
        def store(_: nn.Module, __: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if stage == "position":  # one module for all levels, called one after the other
                level = sum(name.startswith("position.") for name in seen)
                seen[f"position.{level}"] = tensor
            else:
                seen[stage if number is None else f"{stage}.{number}"] = tensor

        handles.append(module.register_forward_hook(store))

    for name, module in model.named_modules():
        for pattern, stage, offset in _MODULES:
            if match := re.search(pattern + "$", name):
                number = int(match[1]) + offset if match.groups() else 0
                capture(module, stage, None if stage == "mask_attention" else number)
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
