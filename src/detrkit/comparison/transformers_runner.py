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
    "RTDetrForObjectDetection": "rtdetr-r50",
    "RTDetrV2ForObjectDetection": "rtdetrv2-r50",
}
_REAL_TIME = ("RTDetrForObjectDetection", "RTDetrV2ForObjectDetection")
_REAL_TIME_STRIDE = 32  # of the coarsest map: transformers doubles each map's sides and expects those of the next
# modules of transformers 4 or 5 that compute a stage: end of the module's name, stage, offset of the stage's number
_BODY = r"\bbackbone\.(?:conv_encoder\.)?model\."
_MODULES = (
    (_BODY + r"layer(\d)", "backbone", 1),  # of timm
    (_BODY + r"encoder\.stages\.(\d)", "backbone", 2),
    (r"\binput_projection", "projection", 0),
    (r"\b(?:encoder_)?input_proj\.(\d+)", "projection", 0),
    (r"\bmodel\.encoder\.layers\.(\d+)", "encoder", 0),
    (r"\bmodel\.encoder\.(?:aifi|encoder)\.0\.layers\.(\d+)", "encoder", 0),  # of RT-DETR, as what follows
    (r"\bmodel\.encoder\.fpn_blocks\.1", "fused", 0),
    (r"\bmodel\.encoder\.pan_blocks\.(\d+)", "fused", 1),
    (r"\bmodel\.decoder_input_proj\.(\d+)", "decoder_input", 0),
    (r"\bmodel\.decoder\.layers\.(\d+)", "decoder", 0),
    (r"\bposition_embedding", "position", 0),
    (r"\bbbox_attention", "mask_attention", 0),
)


class TransformersRunner:
    """A DETR, Deformable DETR or RT-DETR that transformers runs.

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
        """Compute outputs and stages; see `ModelRunner.run`.

        Raises:
            DetrkitError: sides that transformers' RT-DETR does not take.
        """
        self._check_sides(pixels)
        inputs: dict[str, Any] = {"pixel_values": pixels.to(self.device)}
        if self.kind == "DeformableDetrForObjectDetection":
            # transformers returns predictions of earlier layers only with a loss, and a loss only with objects
            objects = {"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}
            inputs["labels"] = [{name: value.to(self.device) for name, value in objects.items()}]
        with _captured_stages(self.model) as seen:
            result = self.model(**inputs)
        last = max(int(name.split(".")[1]) for name in seen if name.startswith("decoder."))
        if self.kind in _REAL_TIME:
            outputs, stages = _real_time_outputs(result), _real_time_stages(result, seen)
        else:
            outputs, stages = _outputs(result), dict(seen)
            if getattr(result, "init_reference_points", None) is not None:
                stages["reference"] = result.init_reference_points
        stages[f"queries.{last}"] = result.last_hidden_state
        return outputs, distinct_stages(stages | predictions_of(outputs, last))

    def _check_sides(self, pixels: Tensor) -> None:
        """Check that the model takes (B, 3, H, W) images.

        Raises:
            DetrkitError: it does not.
        """
        height, width = pixels.shape[2:]
        if self.kind in _REAL_TIME and (height % _REAL_TIME_STRIDE or width % _REAL_TIME_STRIDE):
            raise DetrkitError(
                f"{self.name}: transformers' RT-DETR takes images whose sides {_REAL_TIME_STRIDE} divides, not "
                f"{height} x {width}: give another --size or --input"
            )


def _outputs(result: Any) -> Outputs:
    """Return what a DETR or Deformable DETR of transformers predicts."""
    outputs = Outputs(result.logits, result.pred_boxes, masks=getattr(result, "pred_masks", None))
    earlier = getattr(result, "auxiliary_outputs", None) or []
    outputs.aux = [Outputs(layer["logits"], layer["pred_boxes"]) for layer in earlier]
    if getattr(result, "enc_outputs_class", None) is not None:
        outputs.encoder = Outputs(result.enc_outputs_class, result.enc_outputs_coord_logits.sigmoid())
    return outputs


def _real_time_outputs(result: Any) -> Outputs:
    """Return what an RT-DETR of transformers predicts; the encoder's are those of the tokens chosen."""
    layers = zip(result.intermediate_logits.unbind(1), result.intermediate_reference_points.unbind(1), strict=True)
    *aux, outputs = (Outputs(logits, boxes) for logits, boxes in layers)
    outputs.aux = aux
    outputs.encoder = Outputs(result.enc_topk_logits, result.enc_topk_bboxes)
    return outputs


def _real_time_stages(result: Any, seen: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the stages of an RT-DETR under their names.

    Args:
        result: of the model.
        seen: what its modules output.
    """
    levels = [seen[name] for name in sorted(seen) if name.startswith("decoder_input.")]  # L (B, D, h, w)
    stages = {name: tensor for name, tensor in seen.items() if not name.startswith(("decoder_input.", "position."))}
    stages["memory"] = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)  # (B, S, D)
    stages["reference"] = result.init_reference_points.sigmoid()
    if "position.0" in seen:  # transformers 4 computes it in no module
        coarsest = len(levels) - 1
        position = seen["position.0"].transpose(1, 2)  # (1, D, h * w), of the coarsest map alone
        stages[f"position.{coarsest}"] = position.unflatten(2, levels[coarsest].shape[2:])
    return stages


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
