"""Networks of timm (PyTorch Image Models) as backbones: `backbone="timm:convnext_tiny"`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detrkit.backbones.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    RGB,
    WIDTH,
    Backbone,
    Norm,
    Padding,
    PretrainedWeights,
    register_backbone,
)
from detrkit.utils.errors import DetrkitError, SettingError
from detrkit.utils.messages import shortened
from detrkit.utils.meta import on_meta
from detrkit.utils.similar import nearest_names

PREFIX = "timm:"
# of a network in timm's registry, with the tag of its weights; no address ("hf-hub:...") and no path
_NAME = re.compile(r"(\w+)(\.[\w-]+)?", re.ASCII)
# timm's options for images of any size, tried in turn: most networks need none, transformers one of the others
_ANY_SIZE: tuple[Mapping[str, Any], ...] = ({}, {"dynamic_img_size": True}, {"strict_img_size": False})
_PROBE = (3, 4)  # height and width of the image that a network is tried with, in cells of its coarsest map


class _Structure(NamedTuple):
    """What was learned about a network by running it on the meta device.

    Attributes:
        options: of `timm.create_model`.
        multiple: stride of the coarsest map that the network can return: sides that it divides suit every network.
        channels: by stage, up to the last one asked for.
        unused: names of parameters that no map asked for depends on.
    """

    options: Mapping[str, Any]
    multiple: int
    channels: Mapping[int, int]
    unused: frozenset[str]


@register_backbone(PREFIX)
class TimmBackbone(Backbone):
    """A network of timm that returns the maps of chosen stages.

    Its norms are its own. Batch norms, where it has them, keep the statistics and factors of pretrained weights with
    norm="frozen" and train with "batch"; layer norms train with both. No other layer is frozen.

    Args:
        name: "timm:" and a name of `timm.list_models()`, with the tag of its weights or without:
            "timm:convnext_tiny", "timm:convnext_tiny.fb_in22k".
        dilation: DC5: stage 5 keeps the stride of stage 4, as timm's `output_stride=16` has it.
        norm: "frozen" or "batch".
        width: of the network itself.
        stages: those to return. Convolutional networks and hierarchical transformers have 2 to 5, a plain vision
            transformer with patches of 16 pixels has 4 alone.
        padding: see `Backbone`. With "exact", images of different sizes run one after the other.

    Raises:
        SettingError: an option or a stage that the network does not have, or one that takes images of one size alone.
    """

    def __init__(
        self,
        name: str,
        *,
        dilation: bool = False,
        norm: Norm = "frozen",
        width: int = WIDTH,
        stages: Sequence[int] = (5,),
        padding: Padding = "exact",
    ) -> None:
        self.check(name, dilation=dilation, norm=norm, width=width)
        structure = _structure(name, tuple(stages), dilation=dilation)
        config = _timm(name).get_pretrained_cfg(name.removeprefix(PREFIX))
        super().__init__(
            name,
            stages=stages,
            channels=structure.channels,
            strides={s: 16 if dilation and s == 5 else 2**s for s in structure.channels},
            padding=padding,
            norm=norm,
            multiple=structure.multiple,
            mean=IMAGENET_MEAN if config is None else _rgb(config.mean),
            std=IMAGENET_STD if config is None else _rgb(config.std),
        )
        self._options = structure.options
        self.body = _timm(name).create_model(name.removeprefix(PREFIX), **structure.options)
        for parameter_name, parameter in self.body.named_parameters():
            if parameter_name in structure.unused:
                parameter.requires_grad_(False)  # processes that train together would wait for its gradient
        if norm == "frozen":
            for module in self._batch_norms():
                module.requires_grad_(False)
        self.train()

    @classmethod
    def check(cls, name: str, *, dilation: bool, norm: str, width: int) -> None:
        """Check the name and the options; see `Backbone.check`.

        Raises:
            SettingError: a name that timm does not list, norm="group", a width, or timm is not installed.
        """
        super().check(name, dilation=False, norm=norm, width=width)
        timm = _timm(name)
        match = _NAME.fullmatch(name.removeprefix(PREFIX))
        if match is None or not timm.is_model(match[1]):
            near = nearest_names([match[1]], timm.list_models()).get(match[1]) if match else None
            hint = f" ({PREFIX}{near}?)" if near else ""
            raise SettingError(f"unknown backbone {shortened(name)!r}{hint}: timm.list_models() names those of timm")
        try:
            timm.get_pretrained_cfg(match[0])
        except RuntimeError as error:
            tags = [full.partition(".")[2] for full in timm.list_models(f"{match[1]}.*", pretrained=True)]
            raise SettingError(
                f"unknown backbone {shortened(name)!r}: timm's weights of {match[1]} are {', '.join(tags) or 'none'}"
            ) from error

    def train(self, mode: bool = True) -> TimmBackbone:
        """Set the mode as `torch.nn.Module.train`, except for frozen batch norms."""
        super().train(mode)
        if self.norm == "frozen":
            for module in self._batch_norms():
                module.eval()
        return self

    def maps(self, images: Tensor) -> list[Tensor]:
        """Compute the maps of `all_stages`; see `Backbone.maps`."""
        return _channels_first(self.body, self.body(images))

    def pretrained_weights(self, path: Path | None, read: Callable[[Path], dict[str, Tensor]]) -> PretrainedWeights:
        """Read timm's weights of this name, which timm downloads, or a state dict with timm's names.

        Raises:
            SettingError: timm has no weights of this name.
            DetrkitError: weights that cannot be downloaded or read, or do not fit.
        """
        timm, name = _timm(self.name), self.name.removeprefix(PREFIX)
        overlay = None if path is None else {"state_dict": read(path)}
        config = timm.get_pretrained_cfg(name)
        if path is None and (config is None or not config.has_weights):
            raise SettingError(f"timm has no weights of {self.name}: give the path of a file, or random")

        def built(**options: Any) -> nn.Module:
            """Build the network from the same random numbers each time, so that weights left random are equal."""
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                torch.default_generator.manual_seed(0)
                network: nn.Module = timm.create_model(name, **self._options, **options)
                return network

        try:
            network = built(pretrained=True, pretrained_cfg_overlay=overlay)
        except Exception as error:  # of the network, the hub, the file or the fit: each library has its own
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            if path is None:
                fix = "give the path of a file, or random"
                raise DetrkitError(f"the weights of {self.name} cannot be downloaded ({reason}): {fix}") from error
            raise DetrkitError(f"{path}: no weights of {self.name} ({reason})") from error
        # timm loads what there is in a file and leaves the rest as it was
        random = dict(built().named_parameters())
        left = [
            parameter_name
            for parameter_name, parameter in network.named_parameters()
            if torch.equal(parameter, random[parameter_name]) and (parameter != parameter.flatten()[0]).any()
        ]
        source = str(path) if path is not None else f"timm's weights of {self.name}"
        if left:
            raise DetrkitError(f"{source}: no weights of {self.name} ({len(left)} tensors are missing, as {left[0]})")
        return PretrainedWeights(source, network.state_dict())

    def _batch_norms(self) -> Iterator[nn.Module]:
        return (module for module in self.modules() if isinstance(module, _BatchNorm))


def _timm(name: str) -> ModuleType:
    """Import timm, which takes a second.

    Raises:
        SettingError: it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise SettingError(f"backbone={shortened(name)!r} needs timm: pip install 'detrkit[timm]'") from error
    return timm


def _rgb(values: Sequence[float]) -> RGB:
    red, green, blue = map(float, values)
    return red, green, blue


def _channels_first(network: nn.Module, maps: Sequence[Tensor]) -> list[Tensor]:
    """Return maps as (B, C, h, w), which some networks have as (B, h, w, C)."""
    last = getattr(network, "output_fmt", "NCHW") == "NHWC"
    return [x.permute(0, 3, 1, 2) if last else x for x in maps]


@cache
def _structure(name: str, stages: tuple[int, ...], *, dilation: bool) -> _Structure:
    """Learn the structure of a network: built and run on the meta device, which computes shapes alone.

    Args:
        name: with the prefix.
        stages: those whose maps are used.
        dilation: whether stage 5 has stride 16.

    Raises:
        SettingError: the network has no maps of the strides needed, or does not take images of any size.
    """
    if dilation:
        plain = _structure(name, stages, dilation=False)
        try:
            dilated = {**plain.options, "output_stride": 16}
            return _tried(name, dilated, tuple(plain.channels), stages, multiple=plain.multiple, dilation=True)
        except Exception as error:  # what timm's networks raise for an option that they lack differs
            reason = "timm has no dilated (DC5) form of it; leave out dilation"
            raise SettingError(f"dilation=True and backbone={name!r}: {reason}") from error
    first_error: Exception | None = None
    for options in _ANY_SIZE:
        try:
            indices = _indices(name, options)
            present = tuple(stage for stage in indices if stage <= max(stages))
            if not present:
                break
            chosen = {**options, "features_only": True, "out_indices": tuple(indices[stage] for stage in present)}
            return _tried(name, chosen, present, stages, multiple=2 ** max(indices), dilation=False)
        except Exception as error:
            first_error = first_error or error
    else:
        reason = " ".join(str(first_error).split())[:200]
        raise SettingError(f"backbone={name!r}: it does not take images of any size ({reason})")
    raise SettingError(
        f"backbone={name!r}: it has no map of stride {2 ** max(stages)} or finer; "
        + (f"its first stage is {min(indices)}" if indices else "its strides are none of 4, 8, 16, 32")
    )


def _indices(name: str, options: Mapping[str, Any]) -> dict[int, int]:
    """Return timm's index of the last map of every stage from 2."""
    with on_meta():
        info: Any = _timm(name).create_model(name.removeprefix(PREFIX), features_only=True, **options).feature_info
    by_stride = dict(zip(info.reduction(), info.out_indices, strict=True))
    return {stage: by_stride[2**stage] for stage in range(2, 6) if 2**stage in by_stride}


def _tried(
    name: str,
    options: Mapping[str, Any],
    present: tuple[int, ...],
    stages: tuple[int, ...],
    *,
    multiple: int,
    dilation: bool,
) -> _Structure:
    """Build and run a network; whatever timm raises is raised.

    Args:
        name: with the prefix.
        options: of `timm.create_model`.
        present: stages whose maps it returns.
        stages: those that are used.
        multiple: pixels that divide the sides of the image.
        dilation: whether stage 5 has stride 16.

    Raises:
        ValueError: maps of other shapes than those of their strides.
    """
    height, width = (cells * multiple for cells in _PROBE)
    with torch.inference_mode(False), torch.enable_grad(), on_meta():
        network: nn.Module = _timm(name).create_model(name.removeprefix(PREFIX), **options).eval()
        maps = _channels_first(network, network(torch.empty(1, 3, height, width)))
        channels = {}
        for stage, x in zip(present, maps, strict=True):
            stride = 16 if dilation and stage == 5 else 2**stage
            channels[stage] = int(x.shape[1])
            if x.shape[2:] != (height // stride, width // stride):
                raise ValueError(
                    f"its map of stage {stage} has {tuple(x.shape[2:])} cells for {height} x {width} pixels"
                )
        used = [x.sum() for stage, x in zip(present, maps, strict=True) if stage in stages]
        if not used:
            return _Structure(options, multiple, channels, frozenset())
        names, parameters = zip(*network.named_parameters(), strict=True)
        gradients = torch.autograd.grad(torch.stack(used).sum(), parameters, allow_unused=True)
    unused = frozenset(n for n, gradient in zip(names, gradients, strict=True) if gradient is None)
    return _Structure(options, multiple, channels, unused)
