"""`Backbone`: the base class of all backbones, with exact padding for any network; `register_backbone`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.layers.checkpointing import checkpointed
from detrkit.structures.batch import Batch, rounded_up
from detrkit.utils.errors import SettingError
from detrkit.utils.messages import shortened
from detrkit.utils.registry import Registry

Norm = Literal["frozen", "group", "batch"]
Padding = Literal["exact", "official"]

# of RGB channels in [0, 1]: what torchvision's weights were trained with, and so every published DETR
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
WIDTH = 64  # channels of a published stem

RGB = tuple[float, float, float]
T = TypeVar("T", bound="Backbone")


class PretrainedWeights(NamedTuple):
    """Pretrained weights of a backbone.

    Attributes:
        source: the file or the address that they come from, for messages.
        state: tensors by the names of `Backbone.body`; others of the file may be there, too.
    """

    source: str
    state: Mapping[str, Tensor]


class Backbone(nn.Module):
    """Network that turns a batch into feature maps: the base class of all backbones.

    A subclass has the network in `body`, and computes the maps in `maps`. Its constructor takes `name` and the keywords
    `dilation`, `norm`, `width`, `stages` and `padding`, and passes on what the base needs; `check` refuses the options
    that it does not have.

    `padding="exact"` holds for every network: each image is padded with zeros to sides that `multiple` divides, as if
    it were alone, images of one size then run together, and the maps are cut to ceil(size / stride) cells. So an
    image's maps do not depend on its batch, as long as no layer mixes the images of a batch (batch norm in training
    does).

    Args:
        name: as it was asked for, "timm:convnext_tiny".
        stages: those to return; stage s has stride 2 ** s.
        channels: channels by stage, of every stage that the network computes up to the last of `stages`.
        strides: pixels between the cells, by stage; by default 2 ** s.
        padding: "exact": an image's maps do not depend on its batch; "official": the padded batch runs as it is.
        norm: see `check`.
        multiple: pixels; sides of the images that `maps` gets are multiples of it; by default 2 ** (last stage).
        mean: per RGB channel, for pixels in [0, 1], of the normalization that pretrained weights expect.
        std: likewise.

    Attributes:
        channels, strides: of `stages`, in their order.
        all_stages: stages whose maps `forward` returns with `every_stage`.
        checkpointing: see `detrkit.layers.checkpointing`.

    Raises:
        SettingError: a stage that the network does not have.
    """

    body: nn.Module
    checkpointing = False
    scratch_norm: ClassVar[Norm] = "batch"  # norm to train with from random weights

    def __init__(
        self,
        name: str,
        *,
        stages: Sequence[int],
        channels: Mapping[int, int],
        strides: Mapping[int, int] | None = None,
        padding: Padding = "exact",
        norm: Norm = "frozen",
        multiple: int | None = None,
        mean: RGB = IMAGENET_MEAN,
        std: RGB = IMAGENET_STD,
    ) -> None:
        super().__init__()
        missing = [stage for stage in stages if stage not in channels]
        if missing:
            raise SettingError(
                f"backbone={name!r} has no stage {missing[0]} (stride {2 ** missing[0]}): its stages are "
                f"{', '.join(map(str, channels)) or 'others'}; masks need all stages from 2"
            )
        self.name = name
        self.norm = norm
        self.padding = padding
        self.mean, self.std = mean, std
        self.stages = tuple(stages)
        self.all_stages = tuple(stage for stage in channels if stage <= max(stages))
        self.multiple = 2 ** self.all_stages[-1] if multiple is None else multiple
        self._strides = {stage: 2**stage if strides is None else strides[stage] for stage in self.all_stages}
        self.channels = [channels[stage] for stage in self.stages]
        self.strides = [self._strides[stage] for stage in self.stages]

    @classmethod
    def check(cls, name: str, *, dilation: bool, norm: str, width: int) -> None:
        """Check the name and the options, before anything is built.

        The base has neither dilation nor another width. Of the norms it has "frozen" and "batch", for networks whose
        norms are their own matter.

        Args:
            name: as it was asked for.
            dilation: DC5: stage 5 keeps the stride of stage 4.
            norm: "frozen": statistics of pretrained weights; "batch": batch norm that is trained; "group": group norm.
            width: channels of the stem, 64 as published.

        Raises:
            SettingError: an unknown name, an option that this kind of backbone does not have.
        """
        if dilation:
            raise SettingError(f"dilation=True and backbone={name!r}: it has no dilated (DC5) form; leave out dilation")
        if norm not in ("frozen", "batch"):
            raise SettingError(
                f"backbone_norm={norm!r} and backbone={name!r}: it has norms of its own; choose frozen for pretrained "
                "weights or batch for random ones"
            )
        if width != WIDTH:
            raise SettingError(
                f"backbone_width={width} and backbone={name!r}: it has one width; leave it out or give {WIDTH}"
            )

    def forward(self, batch: Batch, *, every_stage: bool = False) -> list[tuple[Tensor, Tensor]]:
        """Compute the features of a batch.

        Args:
            batch: normalized images.
            every_stage: return the maps of `all_stages`, not of the chosen stages alone.

        Returns:
            Per stage the (B, C, h, w) map, h = ceil(H / stride), and its (B, h, w) bool padding mask, True = padded.
        """
        stages = [stage for stage in self.all_stages if every_stage or stage in self.stages]
        alike = self.padding == "official" or not batch.padded
        maps = self._run(batch.images, stages) if alike else self._by_size(batch, stages)
        return [(x, self.padding_mask(batch, self._strides[s])) for s, x in zip(stages, maps, strict=True)]

    def _by_size(self, batch: Batch, stages: Sequence[int]) -> list[Tensor]:
        """Compute the (B, C, h, w) maps of stages: images of one size run together, each at its true size."""
        multiple = self.multiple
        by_size: dict[tuple[int, int], list[int]] = {}  # indices of the images that run together
        for i, (h, w) in enumerate(batch.sizes):
            by_size.setdefault((-(-h // multiple) * multiple, -(-w // multiple) * multiple), []).append(i)
        runs = []
        for (height, width), indices in by_size.items():
            images = batch.images if len(by_size) == 1 else batch.images[indices]
            runs.append(self._run(images[..., :height, :width], stages))  # beyond its size an image is zero
        order = [i for indices in by_size.values() for i in indices]
        height, width = map(int, batch.images.shape[-2:])
        maps = []
        for level, stage in enumerate(stages):
            cells = batch.cells(self._strides[stage])
            shape = (rounded_up(height, self._strides[stage]), rounded_up(width, self._strides[stage]))
            if all(size == shape for size in cells):
                maps.append(runs[0][level])
            else:
                parts = dict(zip(order, (image for run in runs for image in run[level]), strict=True))
                maps.append(torch.stack([_fitted(parts[i], cells[i], shape) for i in range(len(batch))]))
        return maps

    def _run(self, images: Tensor, stages: Sequence[int]) -> list[Tensor]:
        """Compute the (B, C, h, w) maps of stages for (B, 3, H, W) images of one size, h = ceil(H / stride)."""
        height, width = images.shape[-2:]
        multiple = self.multiple
        sides = (rounded_up(height, multiple) * multiple, rounded_up(width, multiple) * multiple)
        images = F.pad(images, (0, sides[1] - width, 0, sides[0] - height))
        maps = checkpointed(self.maps, images, on=self.checkpointing)
        cut = []
        for stage in stages:
            level, stride = self.all_stages.index(stage), self._strides[stage]
            self._check_shape(maps, level, (sides[0] // stride, sides[1] // stride))
            cut.append(maps[level][..., : rounded_up(height, stride), : rounded_up(width, stride)])
        return cut

    def maps(self, images: Tensor) -> list[Tensor]:
        """Compute the maps of `all_stages`: what a subclass defines.

        Args:
            images: (B, 3, H, W), normalized; `multiple` divides H and W.

        Returns:
            (B, C, H / stride, W / stride) of every stage.
        """
        raise TypeError(f"{type(self).__name__} computes no maps: a backbone defines `maps`")

    def padding_mask(self, batch: Batch, stride: int) -> Tensor:
        """Return the (B, h, w) bool padding mask of a map at `stride`, True where padded."""
        if self.padding == "official":
            height, width = batch.images.shape[-2:]
            shape = (rounded_up(height, stride), rounded_up(width, stride))
            # nearest neighbor (floor) from the full-resolution mask, as published
            return F.interpolate(batch.mask()[:, None].float(), size=shape)[:, 0].bool()
        return batch.padding_mask(stride)

    def freeze_early_layers(self) -> None:
        """Freeze the layers that never train with pretrained weights: none, where a subclass names none."""

    def pretrained_weights(self, path: Path | None, read: Callable[[Path], dict[str, Tensor]]) -> PretrainedWeights:
        """Read pretrained weights; `detrkit.weights.build.load_backbone` checks and loads them.

        Args:
            path: of a file of `body`'s weights; None for those trained on ImageNet, which are downloaded.
            read: reads the tensors of a file by their names.

        Raises:
            SettingError: there are none, or they do not go with the norm.
            DetrkitError: weights that cannot be downloaded or read.
        """
        if path is None:
            raise SettingError(f"backbone={self.name!r} has no ImageNet weights: give the path of a file, or random")
        return PretrainedWeights(str(path), read(path))

    def _check_shape(self, maps: Sequence[Tensor], level: int, shape: tuple[int, int]) -> None:
        """Check that a map has as many cells as its stride says.

        Raises:
            ValueError: it has not.
        """
        actual = tuple(maps[level].shape[-2:])
        if actual != shape:
            stage = self.all_stages[level]
            raise ValueError(f"{self.name}: the map of stage {stage} has {actual} cells, {shape} expected")


def _fitted(x: Tensor, cells: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """Cut a (C, h, w) map to an image's cells and pad it with zeros to the shape of the batch's map."""
    (h, w), (height, width) = cells, shape
    return F.pad(x[:, :h, :w], (0, width - w, 0, height - h))


BACKBONES: Registry[type[Backbone]] = Registry("backbone")


def register_backbone(*names: str, replace: bool = False) -> Callable[[type[T]], type[T]]:
    """Register a subclass of `Backbone`, as a decorator.

        @detrkit.register_backbone("patches")
        class Patches(detrkit.Backbone): ...

    Every model then takes `backbone="patches"`.

    Args:
        names: of the backbone. One that ends in a colon is a prefix: "timm:" stands for every name that begins so.
        replace: replace backbones of these names, as when a notebook's cell runs again.

    Raises:
        ValueError: an empty name, or one that is taken.
    """

    def register(kind: type[T]) -> type[T]:
        for name in names:
            BACKBONES.add(name, kind, replace=replace)
        return kind

    return register


def backbone_class(name: str) -> type[Backbone]:
    """Return the class that builds the backbone of that name.

    Raises:
        SettingError: an unknown name.
    """
    prefix, colon, argument = name.partition(":")
    kind = BACKBONES.find(prefix + colon if argument else name)
    if colon and not argument:
        raise SettingError(f"backbone={shortened(name)!r}: a name must follow the colon")
    return kind


def check_backbone(name: str, *, dilation: bool = False, norm: str = "frozen", width: int = WIDTH) -> None:
    """Check that there is a backbone of that name, and that it has these options; nothing is built.

    Raises:
        SettingError: there is none, or it has not.
    """
    backbone_class(name).check(name, dilation=dilation, norm=norm, width=width)


def build_backbone(
    name: str,
    *,
    dilation: bool = False,
    norm: Norm = "frozen",
    width: int = WIDTH,
    stages: Sequence[int] = (5,),
    padding: Padding = "exact",
) -> Backbone:
    """Build a backbone by name, with random weights.

    Args:
        name: a torchvision ResNet (`RESNETS`), "timm:NAME", or a name that another package registered.
        dilation: DC5; see `Backbone.check`.
        norm: see `Backbone.check`.
        width: channels of the stem; see `Backbone.check`.
        stages: those whose maps are returned.
        padding: "exact" or "official"; see `Backbone`.

    Raises:
        SettingError: an unknown name, or an option that the backbone does not have.
    """
    options: dict[str, Any] = {"dilation": dilation, "norm": norm, "width": width}
    check_backbone(name, **options)
    return backbone_class(name)(name, stages=stages, padding=padding, **options)
