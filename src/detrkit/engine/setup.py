"""The parts of a run, made before its first step: processes, model, spec."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import detrkit
from detrkit.backbones import Backbone, backbone_class
from detrkit.config import TrainConfig
from detrkit.data import Dataset
from detrkit.data.samplers import LARGEST_SCALE
from detrkit.engine.class_weights import make_criterion
from detrkit.engine.environment import check_processes, cluster_environment, training_device
from detrkit.engine.fabric import DDPStrategy, Fabric
from detrkit.engine.fine_tune import CLASS_HEADS, FirstWeights, InitReport, init_from, load_first_weights
from detrkit.engine.freezing import matched_names
from detrkit.engine.launching import launch
from detrkit.engine.loading import image_mix
from detrkit.engine.splits import data_name
from detrkit.models.base import DetectionModel
from detrkit.models.precision import usable_precision
from detrkit.models.registry import Architecture, architecture, build_options
from detrkit.models.settings import check_parameters, full_options
from detrkit.utils.download import DownloadError
from detrkit.utils.errors import DetrkitError
from detrkit.utils.memory import check_batch
from detrkit.weights.build import build_model
from detrkit.weights.checkpoint import ModelSpec

_WAYS_OUT = "--recipe small (a small model from random weights), or --backbone-weights random"


def make_fabric(config: TrainConfig) -> Fabric:
    """Launch the processes of a run: one, several on this machine, or those that torchrun or Slurm started.

    Raises:
        DetrkitError: a device that is not there, or that cannot train; impossible environment variables or number of
            processes.
    """
    run = config.run
    devices, nodes = check_processes(config)
    several = devices * nodes > 1
    device = training_device(run.device, several=several, precision=run.precision)
    # every parameter takes part in every step, with or without objects; frozen statistics need no broadcast
    strategy = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True) if several else "auto"
    fabric = Fabric(
        accelerator=device.type,
        devices=devices if device.index is None else [device.index],
        num_nodes=nodes,
        strategy=strategy,
        plugins=cluster_environment(),
        precision="bf16-mixed" if usable_precision(run.precision, device) == "bf16" else "32-true",
    )
    # of convolutions of 1 x 1, whose gradients have other strides along the sides of one element: the order is the same
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    launch(fabric, run.timeout)
    return fabric


@dataclass(frozen=True)
class Source:
    """The trained weights that a run starts from.

    Attributes:
        name: as in the config.
        weights: their tensors, and the model that they belong to.
    """

    name: str
    weights: FirstWeights

    @property
    def spec(self) -> ModelSpec:
        """Spec of the model that the weights belong to."""
        return self.weights.spec


def load_source(config: TrainConfig) -> Source | None:
    """Load the weights that --init-from or --freeze-detector names; return None without either.

    Raises:
        DetrkitError: missing or unusable weights.
    """
    name = config.run.freeze_detector or config.run.init_from
    if name is None:
        return None
    dilation = config.model.dilation
    if dilation is None and config.model.name is not None:
        dilation = bool(architecture(config.model.name).options.get("dilation", False))
    # fine-tuning takes what fits; a frozen detector must be complete
    whole = config.run.freeze_detector is not None
    try:
        return Source(name, load_first_weights(name, whole=whole, dilation=dilation))
    except DownloadError as error:
        raise DetrkitError(f"{error}; or name the path of a file there, or train without it: {_WAYS_OUT}") from error


def chosen_model(config: TrainConfig, source: Source | None) -> tuple[str, dict[str, Any]]:
    """Return name and options of the model that a config asks for; unset ones are those of the source."""
    options = config.model.overrides()
    if source is None:
        return config.model.name or "detr-r50", options
    spec = source.spec
    name = config.model.name or spec.name
    # from another model only the options of the backbone that both have; another kind of backbone has others
    arch = architecture(name)
    inherited = {k: v for k, v in spec.options.items() if name == spec.name or ("backbone" in k and arch.takes(k))}
    if "backbone" in options and not _same_kind(options["backbone"], source.weights.backbone):
        inherited = {k: v for k, v in inherited.items() if k not in ("backbone_norm", "backbone_width", "dilation")}
    if config.run.freeze_detector is not None:
        options["masks"] = True
    return name, {**inherited, **options}


def _same_kind(backbone: str, other: str | None) -> bool:
    """Return whether two backbones have the same options."""
    return other is not None and backbone_class(backbone) is backbone_class(other)


def predicts_masks(name: str, options: Mapping[str, Any]) -> bool:
    """Return whether a model of this name, built with these options, predicts masks."""
    return bool({**architecture(name).options, **options}.get("masks", False))


def _check_images(config: TrainConfig, spec: ModelSpec, train: Dataset) -> None:
    """Check that a batch of the largest images fits into memory, and that the images can be mixed.

    Raises:
        DetrkitError: they do not or cannot.
    """
    mix = image_mix(config)
    largest = LARGEST_SCALE if mix.multi_scale else 1.0
    longest = None if spec.max_size is None else round(spec.max_size * largest)
    check_batch(round(spec.size * largest), longest, min(config.data.batch_size, len(train)))
    mix.check(train)


def make_model(
    config: TrainConfig, train: Dataset, source: Source | None = None
) -> tuple[DetectionModel, ModelSpec, InitReport | None]:
    """Build the model with its first weights, and the spec that its checkpoints will carry.

    Args:
        config: of the run.
        train: dataset with the classes to learn.
        source: from `load_source`.

    Raises:
        DetrkitError: options that the model does not take, missing weights, a detector that is to be frozen and does
            not fit.
    """
    name, options = chosen_model(config, source)
    arch = architecture(name)
    backbone_weights: str | None = None
    full = full_options(arch.build, {**arch.options, **options})
    backbone: str | None = full.get("backbone")
    if backbone is None:
        if config.model.backbone_weights not in ("imagenet", "random"):  # "imagenet" is the default of all models
            raise DetrkitError(f"model.backbone_weights: {name} has no choice of backbones: leave it out")
    elif source is None and config.model.backbone_weights != "random":
        backbone_weights = config.model.backbone_weights
    elif "backbone_norm" in full:
        # with random weights, frozen statistics would mean a network without normalization
        norm = backbone_class(backbone).scratch_norm
        if source is not None and _same_kind(backbone, source.weights.backbone):
            norm = source.weights.norm or norm
        options.setdefault("backbone_norm", norm)
    spec = ModelSpec(
        name=name,
        options=options,
        num_classes=len(train.classes),
        classes=train.classes,
        **_input_size(config, arch, source),
        training={"detrkit": detrkit.__version__, "dataset": data_name(config)},
    )
    spec.check_max_size(config.data.max_size)
    _check_images(config, spec, train)
    try:
        make_criterion(config, spec, train)  # before anything is written
        on_cpu = training_device(config.run.device).type == "cpu"
        check_parameters(arch.build, build_options(arch, options), training=on_cpu)
        model = build_model(
            name, num_classes=spec.num_classes, padding=spec.padding, backbone_weights=backbone_weights, **options
        )
        matched_names(model, config.optim.freeze)
    except DownloadError as error:
        raise DetrkitError(f"{error}; or give --backbone-weights its path, or train without it: {_WAYS_OUT}") from error
    except (TypeError, ValueError) as error:
        raise DetrkitError(str(error)) from error
    if source is not None and source.weights.backbone == backbone:
        spec = replace(spec, mean=source.spec.mean, std=source.spec.std)
    elif isinstance(built := getattr(model, "backbone", None), Backbone):
        spec = replace(spec, mean=built.mean, std=built.std)
    if source is None:
        return model, spec, None
    softmax = arch.activation == "softmax"
    report = init_from(model, spec.classes, source.weights.state, source.spec, background=softmax)
    report.unused += source.weights.left_over
    started = "init_from"
    if config.run.freeze_detector is not None:
        _check_whole(report, source, train)
        started = "freeze_detector"
    return model, replace(spec, training={**spec.training, started: source.name}), report


def _input_size(config: TrainConfig, arch: Architecture, source: Source | None) -> dict[str, Any]:
    """Return the fields of the spec that say to which size images are brought: unset ones are those of the source."""
    size, max_size = config.data.size, config.data.max_size
    if size is None and source is not None:
        size, max_size = source.spec.size, max_size or source.spec.max_size
    size = size or arch.size
    square = arch.square if source is None or source.spec.name != arch.name else source.spec.square
    return {"size": size, "max_size": None if square else max_size or round(size * 1333 / 800), "square": square}


def _check_whole(report: InitReport, source: Source, train: Dataset) -> None:
    """Check that a detector to be frozen has no part that would have to be trained first.

    Raises:
        DetrkitError: the detector lacks a class or weights.
    """
    unknown = report.classes_new
    if unknown:
        raise DetrkitError(
            f"run.freeze_detector: {source.name} does not know {len(unknown)} of the classes of {train.path}, such as "
            f"{unknown[0]}: train the detector on them first (optim.mask_epochs does both), or all of it with "
            "run.init_from"
        )
    random = [name for name in report.new if not name.startswith("segmentation.")]
    random += [name for name in report.adapted if not name.startswith(CLASS_HEADS)]
    if random:
        raise DetrkitError(
            f"run.freeze_detector: {source.name} has another {random[0]} than this model: leave the model's options as "
            "they are there"
        )
