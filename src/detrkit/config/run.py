"""The settings of the folder, device, evaluation and logs of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from detrkit.config.strict import STRICT
from detrkit.utils.devices import DeviceName
from detrkit.utils.ranges import (
    Count,
    CountOrNone,
    Devices,
    Range,
    Seed,
    Share,
)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The folder, device, evaluation and logs of a run."""

    __pydantic_config__ = STRICT

    out: str = "runs/detrkit"
    """The run's folder, for checkpoints, logs and report."""
    seed: Seed = 42
    """Seed of weights, order and augmentation."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast; weights and losses stay in fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: same gradients, less memory, more time."""
    compile: bool = False
    """Compute forward and backward passes by torch.compile, for the sizes of a batch for which that is measured to be
    faster. It takes minutes a size at first, of at most four sizes: for images of one size. A resumed run may differ in
    the last bits. Denoising models (DINO, RT-DETR) train without it."""
    device: DeviceName = "auto"
    """Device to train on: cpu, cuda, cuda:1, mps, or the number of a GPU; auto: CUDA, else MPS, else the CPU."""
    devices: Devices = 1
    """Processes on this machine; under torchrun or Slurm their number counts."""
    nodes: Annotated[int, Range(ge=1, le=100_000)] = 1
    """Machines; under torchrun or Slurm their number counts."""
    timeout: Count | None = None
    """Seconds that a process waits for another one before it gives up; by default 300 for all to join, 1800 later."""
    init_from: str | None = None
    """Fine-tune: start from these weights (a model name for the published ones, a name on the Hugging Face Hub, a
    checkpoint, or a run). Heads are adapted by class name and what was kept is printed."""
    freeze_detector: str | None = None
    """Train masks alone, on this detector (a model name for the published weights, a checkpoint, or a run), which stays
    frozen. It must know every class of the dataset."""
    overfit: CountOrNone = 0
    """Train and evaluate on this many training images, without augmentation, to see whether the pipeline can learn."""
    eval_every: Count = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    max_dets: Count = 100
    """Detections counted per image in AP."""
    threshold: Share | None = None
    """Panoptic evaluation: score above which a query becomes a segment; by default 0.85 as published, 0.4 for
    Deformable DETR, whose scores are lower."""
    minutes: Annotated[float, Range(gt=0, le=1e6)] | None = None
    """Minutes for the whole run, evaluations and report included. The number of epochs follows from steps that are
    measured before the first one, and where one epoch takes longer, the images per epoch. --overfit has 2."""
    patience: CountOrNone = 0
    """Stop when the metric that selects the best epoch (AP; with masks, the masks' AP; on panoptic data, PQ) has not
    risen for this many evaluations; 0 for never. Evaluations of a split without objects do not count."""
    log_every: Count = 10
    """Steps between lines of steps.csv."""
    save_every: CountOrNone = 0
    """Steps between saves of last.pt within an epoch; it is also saved after every epoch."""
    tensorboard: bool = True
    """Also log for TensorBoard."""
    pictures: bool = True
    """Draw while it trains: labels and first batch at the start, curves and examples after evaluations."""
    loggers: tuple[str, ...] = ()
    """Further loggers: wandb (Weights & Biases), mlflow, and those that other packages register (docs/extending.md)."""
