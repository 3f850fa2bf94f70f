"""`detrkit convert`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from detrkit.cli.preflight import check_dataset, check_model, check_weights
from detrkit.utils.console import console
from detrkit.utils.errors import DetrkitError
from detrkit.utils.names import real_path
from detrkit.utils.ranges import Width

if TYPE_CHECKING:
    from detrkit.structures.classes import ClassList


@dataclass(frozen=True)
class Convert:
    """Convert weights between detrkit, the official code, Hugging Face and, one way, PaddleDetection.

    The name of TARGET decides what is written. With the suffix .safetensors it is detrkit's form, which also holds the
    model's name, its options, classes and input size. With .pth it is the official form, which the official code reads.
    Without a suffix it is a directory that Hugging Face's from_pretrained reads, with class names as id2label. A file
    that is there already is replaced only with --force, a directory never, and SOURCE itself never.

    SOURCE may be any of these, a training state or run directory, or a .pdparams file of PaddleDetection. No file is
    unpickled with code in it. Published .pth files are recognized by their hash, other .pth files by the arguments and
    the tensors in them. Tensors do not show dilation (DC5): if nothing else does, give --dilation. They do not show
    class names, either: evaluation and prediction by name need --classes.

    transformers has DETR and Deformable DETR with ResNets of frozen batch norm. Runs from trained weights go there, and
    runs from random weights if they were trained with --backbone-norm batch; those of the recipes small and quickstart
    have group norm and do not, nor does a Deformable DETR with masks.

    Such as:

    detrkit convert detr-r50-e632da11.pth detr.safetensors

    detrkit convert facebook/detr-resnet-50 detr.safetensors

    detrkit convert runs/tuned my-hugging-face-model

    detrkit convert weights.pth detr.safetensors --dilation False --classes my_data
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Weights to read: .pth, .safetensors, .pdparams, a training state, a run directory, a Hugging Face directory, or a
    name on the Hugging Face Hub such as SenseTime/deformable-detr."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
    """What to write: a .pth or .safetensors file, or a new directory."""
    model: str | None = None
    """Model name, such as detr-r50, for files that do not name their model."""
    dilation: bool | None = None
    """Whether the model is a DC5 one, for files that do not say it."""
    nheads: Width | None = None
    """Attention heads, for files that do not say it; by default 8."""
    classes: str | None = None
    """Classes of the labels, for files that do not say it: coco or coco-panoptic, numbered as in the published models,
    or the dataset that the model was trained on. If there are more labels than classes, the labels are its class ids,
    as in the official code, else their order."""
    backbone_names: Literal["resnet", "timm"] | None = None
    """For Hugging Face: names of the backbone's weights, those of transformers' own ResNet or timm's, which loading
    then needs. By default transformers' own; for DC5 timm's, because transformers' own has no DC5."""

    force: bool = False
    """Replace a file that is there already."""

    def check(self) -> None:
        """Check what needs no torch.

        Raises:
            DetrkitError: no such weights, model or dataset.
        """
        check_weights(self.source)
        check_model(self.model)
        if self.classes not in ("coco", "coco-panoptic"):
            check_dataset(self.classes)

    def run(self) -> int:
        """Convert the weights and print the path."""
        from detrkit.detector import has_masks
        from detrkit.weights.checkpoint import load_model, save_huggingface, save_model, save_official

        suffix = self.target.suffix
        if suffix not in (".pth", ".safetensors", ""):
            raise DetrkitError(
                f"{self.target}: the name must end with .pth (official) or .safetensors (detrkit), "
                "or have no suffix (a Hugging Face directory)"
            )
        if self.backbone_names is not None and suffix:
            raise DetrkitError(f"--backbone-names is for Hugging Face directories, and {self.target} is none")
        self._check_target()
        settings = {"dilation": self.dilation, "nheads": self.nheads}
        options = {option: value for option, value in settings.items() if value is not None}
        model, spec = load_model(self.source, name=self.model, options=options)
        if self.classes is not None:
            if spec.classes is not None:
                raise DetrkitError(f"{self.source}: the file says its classes: leave out --classes {self.classes}")
            spec = replace(spec, classes=_class_list(self.classes, spec.num_classes, masks=has_masks(model)))
        if suffix == ".pth":
            save_official(self.target, model, spec)
        elif suffix == ".safetensors":
            save_model(self.target, model, spec)
        else:
            save_huggingface(self.target, model, spec, backbone=self.backbone_names)
        classes = f"{spec.num_classes} classes" + ("" if spec.classes else " without names (--classes gives them)")
        console.print(f"{self.target}: {spec.name}, {classes}")
        return 0

    def _check_target(self) -> None:
        """Check that nothing would be overwritten that is not to be replaced.

        Raises:
            DetrkitError: the target exists, or it is the source or a file of it.
        """
        source, target = real_path(self.source), real_path(self.target)
        if not target.exists():
            return
        if source in target.parents or (source.exists() and target.samefile(source)):  # through hard links, too
            raise DetrkitError(f"{self.target} is the source, or a file of it: name another target")
        if target.is_file() and not self.force:
            raise DetrkitError(f"{self.target} exists already: name another file, or pass --force to replace it")


def _class_list(source: str, labels: int, *, masks: bool) -> ClassList:
    """Return the classes of `--classes`, of which there must be as many as labels.

    Raises:
        DetrkitError: another number, or a dataset that cannot be read.
    """
    from detrkit.data import open_dataset
    from detrkit.structures.classes import ClassList
    from detrkit.structures.coco_classes import COCO_91, COCO_250

    published = {"coco": COCO_91, "coco-panoptic": COCO_250}
    if source in published:
        if len(published[source]) != labels:
            raise DetrkitError(f"--classes {source}: {len(published[source])} labels, but the weights have {labels}")
        return published[source]
    split = None if Path(source).is_file() else "train"
    classes = open_dataset(source, split=split, masks=masks).classes
    if len(classes) == labels:
        return classes
    if max(classes.ids) >= labels:
        raise DetrkitError(
            f"--classes {source}: {len(classes)} classes with ids up to {max(classes.ids)}, but the weights have "
            f"{labels} labels"
        )
    things = None if classes.things is None else dict(zip(classes.ids, classes.things, strict=True))
    return ClassList.official(dict(zip(classes.ids, classes.names, strict=True)), things, count=labels)
