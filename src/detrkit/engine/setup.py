"""What a run is made of, before its first step: processes, datasets, model, spec."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch import nn

import detrkit
from detrkit.build import build_model
from detrkit.checkpoint import ModelSpec, load_any
from detrkit.config import TrainConfig
from detrkit.console import console
from detrkit.data import Dataset, open_dataset
from detrkit.engine.fine_tune import InitReport, init_from
from detrkit.errors import DetrkitError
from detrkit.registry import architecture

OVERFIT_STEPS = 50  # per epoch, with one process


def make_fabric(config: TrainConfig) -> Fabric:
    """The processes of a run: one, several on this machine, or those that torchrun or Slurm started.

    Raises:
        DetrkitError: CUDA was asked for and there is none.
    """
    run = config.run
    cuda = torch.cuda.is_available() and run.device != "cpu"
    if run.device == "cuda" and not cuda:
        raise DetrkitError("run.device is cuda but torch sees no CUDA device: use --device cpu or mend the driver")
    devices, nodes = run.devices, run.nodes
    if "TORCHELASTIC_RUN_ID" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    elif "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        nodes = int(os.environ.get("SLURM_NNODES", "1"))
        devices = int(os.environ["SLURM_NTASKS"]) // nodes
    several = devices * nodes > 1
    # every parameter takes part in every step, with or without objects; frozen statistics need no broadcast
    strategy = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True) if several else "auto"
    fabric = Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=devices,
        num_nodes=nodes,
        strategy=strategy,
        precision="bf16-mixed" if run.precision == "bf16" else "32-true",
    )
    fabric.launch()
    return fabric


@dataclass(frozen=True)
class Splits:
    """The datasets of a run; `val` and `test` may be absent."""

    train: Dataset
    val: Dataset | None
    test: Dataset | None


def open_splits(config: TrainConfig) -> Splits:
    """Opens what the config names; with overfit, the same few images for training and evaluation.

    Raises:
        DetrkitError: a path or split that is not there, or classes that differ between the splits.
    """
    data = config.data
    train = open_dataset(data.path, split=data.train_split, ids=data.ids, unusable=data.unusable)
    if train.skipped:
        console.print(f"{train.skipped} images of {train.split} are left out; `detrkit data check` says why")
    if len(train) == 0:
        raise DetrkitError(f"{data.path}: the split {train.split} has no images")
    if config.run.overfit:
        with_objects = [i for i, r in enumerate(train.records) if (~r.crowd).any()][: config.run.overfit]
        if not with_objects:
            raise DetrkitError(f"{data.path}: no image of {train.split} has an object: nothing to overfit")
        few = train.subset(with_objects)
        # an epoch of a few images would be a step or two: repeat them, so that epochs, logs and evaluations keep a pace
        times = -(-OVERFIT_STEPS * data.batch_size * config.optim.accumulate // len(few))
        return Splits(train.subset(with_objects * times), few, None)
    val = test = None
    if data.val_split not in (None, "none"):
        val = open_dataset(data.val_data or data.path, split=data.val_split, ids=data.ids)
    if data.test_split is not None:
        test = open_dataset(data.val_data or data.path, split=data.test_split, ids=data.ids)
    for other in (val, test):
        if other is not None and set(other.class_names) - set(train.class_names):
            extra = sorted(set(other.class_names) - set(train.class_names))
            raise DetrkitError(
                f"{other.path} ({other.split}) has classes that {train.path} ({train.split}) has not: "
                f"{', '.join(extra[:5])}; give both splits one class list"
            )
    return Splits(train, val, test)


def make_model(config: TrainConfig, train: Dataset) -> tuple[nn.Module, ModelSpec, InitReport | None]:
    """The model with its first weights, and the spec its checkpoints will carry.

    Raises:
        DetrkitError: options that the model does not take, weights that are not there.
    """
    wanted = config.model.options()
    source = spec = None
    if config.run.init_from is not None:
        source, spec = load_any(config.run.init_from)
    name = config.model.name or (spec.name if spec is not None else "detr-r50")
    options = dict(wanted)
    backbone_weights: str | None = None
    if spec is not None:
        # the rest as in the source, as far as this model knows it
        inherited = spec.options if name == spec.name else {k: v for k, v in spec.options.items() if "backbone" in k}
        options = {**inherited, **wanted}
        if "backbone_norm" not in options and source is not None:
            options["backbone_norm"] = source.backbone.norm
    elif config.model.backbone_weights == "random":
        # frozen statistics of random weights would be a network without norm
        options.setdefault("backbone_norm", "group")
    else:
        backbone_weights = config.model.backbone_weights
    size, max_size = config.data.size, config.data.max_size
    if size is None and spec is not None:
        size, max_size = spec.size, max_size or spec.max_size
    size = size or 800
    own = ModelSpec(
        name=name,
        options=options,
        num_classes=len(train.classes),
        classes=train.classes,
        size=size,
        max_size=max_size or round(size * 1333 / 800),
        training={"detrkit": detrkit.__version__, "dataset": Path(config.data.path).name},
    )
    try:
        model = build_model(
            name, num_classes=own.num_classes, padding=own.padding, backbone_weights=backbone_weights, **options
        )
    except (TypeError, ValueError) as error:
        raise DetrkitError(str(error)) from error
    report = None
    if source is not None and spec is not None:
        softmax = architecture(name).scores == "softmax"
        report = init_from(model, own.classes, source.state_dict(), spec, background=softmax)
        own = replace(own, training={**own.training, "init_from": str(config.run.init_from)})
    return model, own, report
