"""The settings of a training run, as frozen dataclasses, and their YAML form (recipes, a run's config.yaml)."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from detrkit.utils.class_weight_words import CLASS_WEIGHTS
from detrkit.utils.devices import DeviceName
from detrkit.utils.errors import SettingError
from detrkit.utils.layouts import Layout
from detrkit.utils.ranges import (
    BatchSize,
    Count,
    CountOrNone,
    Decay,
    Devices,
    InputSize,
    Layers,
    Range,
    Seed,
    Share,
    Weight,
    Width,
    Workers,
)
from detrkit.utils.settings_files import check_changes, read_yaml, shipped, validated

if TYPE_CHECKING:
    from pydantic import ConfigDict

_STRICT: ConfigDict = {"extra": "forbid", "allow_inf_nan": False}


def _named_values(words: list[str]) -> dict[str, Any] | None:
    """Read words such as `depth=3`; values are YAML.

    Raises:
        ValueError: a word without a name or a value.
    """
    if words == ["None"]:
        return None
    from detrkit.utils.documents import parse_yaml

    values = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not name or not equals:
            raise ValueError(f"{word} is no name=value")
        values[name.replace("-", "_")] = parse_yaml(text, name)
    return values


def _named_words(values: dict[str, Any] | None) -> list[str]:
    """Write values as `_named_values` reads them."""
    return ["None"] if values is None else [f"{name}={json.dumps(value)}" for name, value in values.items()]


_NAMED_VALUES = tyro.constructors.PrimitiveConstructorSpec(
    nargs="*",
    metavar="NAME=VALUE",
    instance_from_str=_named_values,
    is_instance=lambda value: value is None or isinstance(value, dict),
    str_from_instance=_named_words,
)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model. None means as the model was published, or as in the checkpoint that the run starts from."""

    __pydantic_config__ = _STRICT

    name: Annotated[str | None, tyro.conf.arg(name="model")] = None
    """One of `detrkit models`; by default that of --init-from, else detr-r50."""
    backbone_weights: str = "imagenet"
    """First weights of the backbone: "imagenet" (downloaded once), "random", or the path of a state dict of torchvision
    or timm. Ignored with --init-from."""
    backbone: str | None = None
    """resnet18, 34, 50, 101, 152, resnet10 (small work, random weights), timm:NAME, such as timm:convnext_tiny (needs
    detrkit[timm]), or one of another package."""
    backbone_norm: Literal["frozen", "group", "batch"] | None = None
    """By default frozen with pretrained weights, group with random ones (timm: batch)."""
    backbone_width: Width | None = None
    """Channels of the stem (64); fewer for small work from random weights."""
    backbone_stage: Annotated[int, Range(ge=2, le=5)] | None = None
    """DETR: the stage whose map the transformer reads (5 = stride 32)."""
    backbone_stages: tuple[Annotated[int, Range(ge=2, le=5)], ...] | None = None
    """Deformable DETR: the stages whose maps are read (3 4 5)."""
    dilation: bool | None = None
    """DC5: the last stage at stride 16."""
    position_embedding: Literal["sine", "learned"] | None = None
    """Position encoding of the feature map, or maps (sine)."""
    position_entries: Width | None = None
    """Rows and columns a learned encoding can hold (50); Deformable DETR's first map has one per 8 pixels."""
    num_queries: Annotated[int, Range(ge=1, le=100_000)] | None = None
    """The most objects predicted in an image (100; deformable 300)."""
    hidden_dim: Width | None = None
    """Width of the transformer (256)."""
    nheads: Width | None = None
    """Attention heads (8)."""
    dim_feedforward: Annotated[int, Range(ge=1, le=1_000_000)] | None = None
    """Width of the feed-forward networks (2048; deformable 1024)."""
    enc_layers: Annotated[int, Range(ge=0, le=1000)] | None = None
    """Encoder layers (6; 0 as in the paper's Table 2)."""
    dec_layers: Layers | None = None
    """Decoder layers (6)."""
    dropout: Decay | None = None
    """Dropout in the transformer (0.1)."""
    pre_norm: bool | None = None
    """DETR: normalize before each sublayer instead of after it."""
    num_feature_levels: Annotated[int, Range(ge=1, le=10)] | None = None
    """Deformable DETR: levels of the feature pyramid (4)."""
    enc_n_points: Annotated[int, Range(ge=1, le=1000)] | None = None
    """Deformable DETR: sampled points per head and level in the encoder (4)."""
    dec_n_points: Annotated[int, Range(ge=1, le=1000)] | None = None
    """Deformable DETR: the same in the decoder (4)."""
    with_box_refine: bool | None = None
    """Deformable DETR: every decoder layer refines the boxes of the one before."""
    two_stage: bool | None = None
    """Deformable DETR: the queries are the encoder's best proposals."""
    masks: bool | None = None
    """Predict a mask for every query, too: instances or, on a COCO panoptic dataset, things and stuff. The *-panoptic
    models do; --masks alone means yes."""
    aux_loss: bool | None = None
    """Train on the outputs of every decoder layer (yes)."""
    options: Annotated[dict[str, Any] | None, _NAMED_VALUES] = None
    """Options of a model of another package, which have no field here: on the command line `--options name=value ...`.
    """

    def overrides(self) -> dict[str, Any]:
        """Return the overrides of `build_model` that were set.

        Raises:
            SettingError: one of `options` has a field of its own.
        """
        fields = [f.name for f in dataclasses.fields(self)]
        options = self.options or {}
        doubled = next((name for name in options if name in fields), None)
        if doubled is not None:
            raise SettingError(f"model.options: {doubled} is a setting of its own: give model.{doubled}")
        values = {name: getattr(self, name) for name in fields if name not in ("name", "backbone_weights", "options")}
        return {name: value for name, value in values.items() if value is not None} | options


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images, and how they are loaded and augmented."""

    __pydantic_config__ = _STRICT

    path: tyro.conf.Suppress[str] = ""
    """The dataset: a folder of COCO, Pascal VOC, YOLO, parquet or CSV, or a COCO json, data.yaml or CSV; the layout is
    recognized."""
    train_split: str | None = "train"
    """The split to train on."""
    val_data: str | None = None
    """Another dataset to evaluate on; by default the same one."""
    layout: Layout | None = None
    """The kind of files to read; by default it is recognized. From a folder with COCO instances and COCO panoptic files
    a model with masks reads the panoptic ones, other models the instances."""
    val_split: str | None = "val"
    """The split to evaluate on, each epoch; "none" for no evaluation."""
    test_split: str | None = None
    """A split on which the best checkpoint is evaluated when the training has ended."""
    ids: Literal["contiguous", "official"] = "contiguous"
    """Labels: contiguous from 0, or the dataset's raw category ids as in the published COCO models."""
    unusable: Literal["error", "skip"] = "error"
    """Training images that are missing, unreadable or of another size than their annotations say: stop at the first
    one, or leave them out and print how many."""
    size: InputSize | None = None
    """Short side of the images in pixels (training draws from 0.6 to 1 times it, as published); by default that of
    --init-from, else 800."""
    max_size: InputSize | None = None
    """Longest side in pixels; by default that of --init-from, or size * 1333 / 800."""
    augment: Literal["detr", "flip", "none"] = "detr"
    """Training augmentation: as published (flip, multi-scale, crops), flips alone, or none."""
    batch_size: BatchSize = 2
    """Images per process and step."""
    epoch_images: Count | None = None
    """Images per epoch; by default the whole training split. Fewer: each epoch goes on where the one before ended, so
    that all images come once before one comes again. More: an epoch of a small split has several turns."""
    eval_batch_size: BatchSize | None = None
    """Images per process in evaluation; by default batch_size. It does not change the result."""
    workers: Workers | None = None
    """Processes that load images; by default 0 on a CPU, whose cores train, else CPU cores - 1, at most 4."""
    cache: Literal["auto", "none", "ram"] = "auto"
    """Keep decoded images in memory: auto does when they take less than 1 GiB."""
    draft: bool = False
    """Decode JPEGs for training at a half, a quarter or an eighth of their size where the augmented image is even
    smaller: faster for large photographs, with slightly different pixels. Not for images kept in memory."""
    group_by_size: bool = False
    """Put training images of similar size into one step: much less padding, but steps are no longer random samples."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer, its schedule and the number of epochs."""

    __pydantic_config__ = _STRICT

    epochs: Count = 300
    """Passes over the training split."""
    lr: Annotated[float, Range(gt=0, le=100)] = 1e-4
    """Learning rate of the transformer and the heads (AdamW), for the global batch given."""
    lr_backbone: Annotated[float, Range(ge=0, le=100)] = 1e-5
    """Learning rate of the backbone; 0 freezes it."""
    lr_sampling_factor: Weight = 0.1
    """Deformable DETR: share of lr for sampling offsets and reference points."""
    weight_decay: Annotated[float, Range(ge=0, le=100)] = 1e-4
    """Decoupled weight decay, on everything as published."""
    clip_max_norm: Annotated[float, Range(ge=0, le=1e9)] = 0.1
    """Largest global gradient norm; 0 for no clipping."""
    schedule: Literal["step", "cosine"] = "step"
    """The learning rate falls to a tenth after lr_drop epochs, or along a cosine to 0."""
    lr_drop: Count = 200
    """Epochs before the drop of the step schedule."""
    warmup_steps: CountOrNone = 0
    """Steps in which the learning rate rises linearly."""
    accumulate: BatchSize = 1
    """Batches per step: the gradient equals that of one batch of all their images. A dataset with too few images for
    one step is repeated to fill it."""
    freeze: tuple[str, ...] = ()
    """Parameters that are not trained, by names or globs of parameters or modules, such as backbone or
    "transformer.encoder.*". Batch norms among them keep their statistics."""
    ema: Decay = 0.0
    """Decay of the exponential moving average of the weights, which is then evaluated and saved; 0 for none."""
    mask_epochs: CountOrNone = 0
    """Train masks in a second phase of this many epochs, as published: first the detector alone, for `epochs`, in the
    folder detector/ of the run; then the masks, with the detector frozen. 0: one phase."""
    mask_lr_drop: Count | None = None
    """Epochs of the second phase before its drop; by default lr_drop in proportion."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The weights of the losses and of the matching costs. None means as published for the model."""

    __pydantic_config__ = _STRICT

    set_cost_class: Weight | None = None
    """Matching cost of the class (1; deformable 2)."""
    set_cost_bbox: Weight | None = None
    """Matching cost of the box's L1 distance (5)."""
    set_cost_giou: Weight | None = None
    """Matching cost of the box's GIoU (2)."""
    cls_loss_coef: Weight | None = None
    """Weight of the class loss (1; deformable 2)."""
    bbox_loss_coef: Weight | None = None
    """Weight of the box's L1 loss (5)."""
    giou_loss_coef: Weight | None = None
    """Weight of the box's GIoU loss (2)."""
    eos_coef: Weight | None = None
    """DETR: weight of the no-object class (0.1)."""
    focal_alpha: Share | None = None
    """Deformable DETR: alpha of the focal loss (0.25); the matching cost keeps 0.25."""
    focal_gamma: Annotated[float, Range(ge=0, le=100)] | None = None
    """Deformable DETR: gamma of the focal loss (2); the matching cost keeps 2."""
    mask_loss_coef: Weight | None = None
    """With masks: weight of the focal loss of the pixels (1)."""
    dice_loss_coef: Weight | None = None
    """With masks: weight of the dice loss (1)."""

    class_weights: Annotated[dict[str, Weight] | Literal["balanced"] | None, CLASS_WEIGHTS] = None
    """Weights of objects in the class loss by the names of their classes, such as --class-weights WBC=2 RBC=0.5; others
    have 1. balanced: each class alike, whatever its number of objects."""

    def overrides(self) -> dict[str, float]:
        """Return the settings of `build_criterion` that were set, without the weights of classes."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None and k != "class_weights"}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The folder, device, evaluation and logs of a run."""

    __pydantic_config__ = _STRICT

    out: str = "runs/detrkit"
    """The run's folder, for checkpoints, logs and report."""
    seed: Seed = 42
    """Seed of weights, order and augmentation."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast; weights and losses stay in fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: same gradients, less memory, more time."""
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


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of a training run."""

    __pydantic_config__ = _STRICT

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def to_yaml(self) -> str:
        """Format the settings as the YAML that `load_config` reads, without unset fields."""
        import yaml  # here: most commands that import this module neither read nor write YAML

        plain = {}
        for section in dataclasses.fields(self):
            part = getattr(self, section.name)
            values = {f.name: (getattr(part, f.name), f.default) for f in dataclasses.fields(part)}
            plain[section.name] = {
                name: list(value) if isinstance(value, tuple) else value
                for name, (value, default) in values.items()
                if value is not None or default is not None
            }
        return yaml.safe_dump({k: v for k, v in plain.items() if v}, sort_keys=False)

    def changed(self, **sections: dict[str, Any]) -> TrainConfig:
        """Return a copy with fields changed: `config.changed(run={"out": "runs/b"}, optim={"epochs": 5})`.

        Raises:
            SettingError: no such section or field; values are checked later, where they are used.
        """
        check_changes(self, sections)
        return dataclasses.replace(
            self, **{name: dataclasses.replace(getattr(self, name), **values) for name, values in sections.items()}
        )


def recipes() -> list[str]:
    """Return the names of the recipes that come with detrkit."""
    return shipped()


def load_config(source: str | Path, *, data: str | None = None) -> TrainConfig:
    """Read a config.yaml, or a recipe by name.

    Args:
        source: a YAML file, or one of `recipes()`.
        data: the dataset's path; overrides the file's.

    Raises:
        DetrkitError: no such file, not YAML, or a field that is unknown, of the wrong type or out of range; names file
            and field.
    """
    plain = read_yaml(source, expected="sections data, model, optim, loss, run")
    plain = {section: values for section, values in plain.items() if values is not None}  # all of it commented out
    config = validated(TrainConfig, plain, str(source), hint="see `detrkit train --help` for the fields")
    return config if data is None else config.changed(data={"path": data})
