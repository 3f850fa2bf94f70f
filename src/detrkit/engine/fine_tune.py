"""`--init-from`: fine-tuning from other weights; heads are adapted by class name, a report lists what was kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from detrkit.backbones.base import Backbone, Norm
from detrkit.models.registry import architecture
from detrkit.models.settings import full_options
from detrkit.structures.classes import ClassList
from detrkit.utils.errors import DetrkitError
from detrkit.utils.messages import names_and_more
from detrkit.utils.similar import nearest_names
from detrkit.weights.build import Fit, check_weights, fitting_weights, load_weights
from detrkit.weights.checkpoint import ModelSpec, located, read_model

CLASS_HEADS = ("class_head.", "class_heads.")
_LABELS = ("label_embed.",)  # DINO's contents of noised objects, a row for each class and an unused one
_QUERIES = ("queries", "queries.weight")


class FirstWeights(NamedTuple):
    """Weights to start from; some tensors of the model may be missing.

    Attributes:
        state: the tensors that fit the model of `spec`, by detrkit's names.
        spec: of the model that they belong to.
        backbone: name of its backbone; None for a model without a named one.
        norm: norm of its backbone, or None.
        left_over: names of tensors in the file that do not fit that model.
    """

    state: dict[str, Tensor]
    spec: ModelSpec
    backbone: str | None
    norm: Norm | None
    left_over: list[str]


def load_first_weights(name_or_path: str | Path, *, whole: bool = False, dilation: bool | None = None) -> FirstWeights:
    """Read weights of any kind to start a training from.

    Args:
        name_or_path: as `load_any`.
        whole: require every tensor of the model, and no other. Otherwise parts such as the class head may be missing.
        dilation: whether the model is a DC5 one, for files that do not say it.

    Raises:
        DetrkitError: missing, damaged or foreign file; weights that do not fit, or less than half of which do.
    """
    path, name = located(name_or_path)
    file, empty, spec = read_model(path, name=name, dilation=dilation)
    try:
        if whole:
            check_weights(empty, file)
            model = spec.build()
            load_weights(model, file)
        fit = Fit(model.state_dict(), []) if whole else fitting_weights(empty, file)
    except (DetrkitError, MemoryError) as error:
        raise DetrkitError(f"{file.path}: {error}") from error
    backbone = getattr(empty, "backbone", None)
    name, norm = (backbone.name, backbone.norm) if isinstance(backbone, Backbone) else (None, None)
    return FirstWeights(fit.state, spec, name, norm, fit.left_over)


@dataclass
class InitReport:
    """Report on the weights that a fine-tuning started from.

    Attributes:
        kept: tensors taken over unchanged.
        adapted: tensors some rows of which were taken over, with the reason.
        new: tensors of the model that the source lacks or has in another shape; they keep their random values.
        unused: tensors of the source that the model lacks.
        classes_kept, classes_new: names of the model's classes that the source has, and lacks.
        nearest: new class -> similarly named class of the source, if the model lacks that one.
    """

    kept: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    classes_kept: list[str] = field(default_factory=list)
    classes_new: list[str] = field(default_factory=list)
    nearest: dict[str, str] = field(default_factory=dict)

    def lines(self, most: int | None = 8) -> list[str]:
        """Return the report as lines, for the terminal and the run's log.

        Args:
            most: number of names in a list; None for all.
        """
        lines = [f"{len(self.kept)} tensors kept, {len(self.adapted)} adapted, {len(self.new)} new"]
        lines += [f"  adapted {name}: {why}" for name, why in self.adapted.items()]
        if self.classes_kept:
            lines.append(f"  classes kept by name: {names_and_more(self.classes_kept, most)}")
        if self.classes_new:
            lines.append(f"  classes that start anew: {names_and_more(self.classes_new, most)}")
        if self.nearest:
            pairs = [f"{name!r} ({near!r} in the weights)" for name, near in self.nearest.items()]
            lines.append(
                f"  warning: start anew for another name: {names_and_more(pairs, most)}; rename them to keep their rows"
            )
        if self.new:
            lines.append(f"  new (random): {names_and_more(self.new, most)}")
        if self.unused:
            lines.append(f"  not used: {names_and_more(self.unused, most)}")
        return lines


@torch.no_grad()
def init_from(
    model: nn.Module, classes: ClassList | None, source: Mapping[str, Tensor], spec: ModelSpec, *, background: bool
) -> InitReport:
    """Copy into `model` the weights of another model that fit.

    Rows of the class heads, and of DINO's table of noised labels, follow the class names; "no object" is kept. If the
    number of object queries differs, the first ones are kept: of a hybrid model, of either kind.

    Args:
        model: receives the weights.
        classes: the model's classes.
        source: state dict of the other model, in detrkit's names.
        spec: of the other model.
        background: whether class heads have a last row for "no object" (softmax models).
    """
    report = InitReport()
    source_classes = {} if spec.classes is None else spec.classes.used
    names = {} if classes is None else classes.used
    rows = {label: source_classes[name] for name, label in names.items() if name in source_classes}
    same = classes is not None and spec.classes is not None and classes.names == spec.classes.names
    if not same:
        report.classes_kept = [n for n in names if n in source_classes]
        report.classes_new = [n for n in names if n not in source_classes]
        report.nearest = nearest_names(report.classes_new, [n for n in source_classes if n not in names])
    # column 0 of a two-stage model's proposal head is an objectness, not the first class
    heads: Any = getattr(model, "class_heads", ())
    proposals = f"class_heads.{len(heads) - 1}." if getattr(model, "two_stage", False) else None
    model_state = model.state_dict()
    for name, tensor in model_state.items():
        value = source.get(name)
        if value is None:
            report.new.append(name)
        elif name.startswith((*CLASS_HEADS, *_LABELS)) and not same and value.shape[1:] == tensor.shape[1:]:
            if proposals is not None and name.startswith(proposals):
                tensor[0] = value[0]
                report.adapted[name] = "objectness of the proposals"
                continue
            for label, row in rows.items():
                tensor[label] = value[row]
            no_object = background and name.startswith(CLASS_HEADS)
            if no_object:
                tensor[-1] = value[-1]
            report.adapted[name] = f"{len(rows)} of {len(names)} classes" + (" and no-object" if no_object else "")
        elif value.shape == tensor.shape and (
            name not in _QUERIES or len(set(_borders(tensor, value, model, spec))) == 1
        ):
            tensor.copy_(value)
            report.kept.append(name)
        elif name in _QUERIES and value.shape[1:] == tensor.shape[1:]:
            report.adapted[name] = _adapt_queries(tensor, value, model, spec)
        else:
            report.new.append(name)
    if not any(name.startswith(CLASS_HEADS) for name in (*report.kept, *report.adapted)):
        report.classes_kept, report.classes_new, report.nearest = (
            [],
            list(names),
            {},
        )  # the source's class head is missing or does not fit
    report.unused = [name for name in source if name not in model_state]
    return report


def _adapt_queries(table: Tensor, source: Tensor, model: nn.Module, spec: ModelSpec) -> str:
    """Copy the first rows of another table of queries, and return what was copied.

    Args:
        table: (Q, ...) of the model; of a hybrid one the one-to-one queries, then the one-to-many queries.
        source: (Q', ...) of the other model.
        model: the model.
        spec: of the other model.
    """
    own, other = _borders(table, source, model, spec)
    first, further = min(own, other), min(len(table) - own, len(source) - other)
    table[:first] = source[:first]
    if not further:
        return f"the first {first} of {len(source)} queries"
    table[own : own + further] = source[other : other + further]
    return f"the first {first} of {other} one-to-one and {further} of {len(source) - other} one-to-many queries"


def _borders(table: Tensor, source: Tensor, model: nn.Module, spec: ModelSpec) -> tuple[int, int]:
    """Return the number of one-to-one queries in the model's table and in the other: all, but for hybrid models."""
    if not hasattr(model, "num_queries_one2many"):
        return len(table), len(source)
    arch = architecture(spec.name)
    options = full_options(arch.build, {**arch.options, **spec.build_options})
    return cast(int, model.num_queries), options["num_queries"] if "num_queries_one2many" in options else len(source)
