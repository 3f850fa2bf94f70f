"""PResNet-vd, the backbone of RT-DETR: a ResNet with a stem of three convolutions and average-pooled shortcuts.

"Bag of tricks" ResNet-D (He et al. 2019, Sec. 4.2) as PaddlePaddle's ResNet-vd. The parts of `body` are named as in the
official code, whose files of ImageNet weights therefore load as they are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.backbones.base import WIDTH, Backbone, Norm, Padding, PretrainedWeights, register_backbone
from detrkit.backbones.resnet import NORMS
from detrkit.layers.conv_norm import ConvNorm
from detrkit.layers.norms import GROUPS, groups_divide
from detrkit.ops.malloc import retain_freed_memory
from detrkit.utils.errors import SettingError
from detrkit.utils.ranges import multiples_near

MakeNorm = Callable[[int], nn.Module]

DEPTHS = {  # blocks of the stages 2 to 5; presnet10 is for small work from random weights
    "presnet10": (1, 1, 1, 1),
    "presnet18": (2, 2, 2, 2),
    "presnet34": (3, 4, 6, 3),
    "presnet50": (3, 4, 6, 3),
    "presnet101": (3, 4, 23, 3),
}
BASIC = ("presnet10", "presnet18", "presnet34")  # made of basic blocks
# of the official code; it names no hash to verify them
_IMAGENET = "https://github.com/lyuwenyu/storage/releases/download/v0.1/ResNet{}_pretrained_from_paddle.pth"
_FILES = {"presnet18": "18_vd", "presnet34": "34_vd", "presnet50": "50_vd_ssld_v2", "presnet101": "101_vd_ssld"}


class PooledShortcut(nn.Module):
    """Shortcut of a block of stride 2: the average of 2 x 2 cells, then a 1 x 1 convolution (ResNet-D)."""

    def __init__(self, channels_in: int, channels_out: int, norm: MakeNorm) -> None:
        super().__init__()
        self.conv = ConvNorm(channels_in, channels_out, 1, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w), h and w even, to (B, C', h / 2, w / 2)."""
        shortcut: Tensor = self.conv(F.avg_pool2d(x, 2))
        return shortcut


def _shortcut(channels_in: int, channels_out: int, stride: int, norm: MakeNorm) -> nn.Module:
    """Make the shortcut of a stage's first block; in stages that keep their size it is a 1 x 1 convolution."""
    if stride == 2:
        return PooledShortcut(channels_in, channels_out, norm)
    return ConvNorm(channels_in, channels_out, 1, norm=norm)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions around which the input is added; the first may have a stride."""

    expansion = 1

    def __init__(self, channels_in: int, width: int, stride: int, *, first: bool, norm: MakeNorm) -> None:
        super().__init__()
        self.branch2a = ConvNorm(channels_in, width, 3, stride=stride, activation="relu", norm=norm)
        self.branch2b = ConvNorm(width, width, 3, activation="relu", norm=norm)
        self.short = _shortcut(channels_in, width, stride, norm) if first else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, width, h / stride, w / stride)."""
        shortcut = x if self.short is None else self.short(x)
        out: Tensor = self.branch2b(self.branch2a(x), residual=shortcut)
        return out


class Bottleneck(nn.Module):
    """A 1 x 1, a 3 x 3 and a 1 x 1 convolution around which the input is added; the 3 x 3 one may have a stride."""

    expansion = 4

    def __init__(self, channels_in: int, width: int, stride: int, *, first: bool, norm: MakeNorm) -> None:
        super().__init__()
        self.branch2a = ConvNorm(channels_in, width, 1, activation="relu", norm=norm)
        self.branch2b = ConvNorm(width, width, 3, stride=stride, activation="relu", norm=norm)
        self.branch2c = ConvNorm(width, width * 4, 1, activation="relu", norm=norm)
        self.short = _shortcut(channels_in, width * 4, stride, norm) if first else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, 4 * width, h / stride, w / stride)."""
        shortcut = x if self.short is None else self.short(x)
        out: Tensor = self.branch2c(self.branch2b(self.branch2a(x)), residual=shortcut)
        return out


class Stage(nn.Module):
    """The blocks of a stage."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C', h / stride, w / stride)."""
        for block in self.blocks:
            x = block(x)
        return x


class PResNet(nn.Module):
    """Stem and stages; names as in the official code.

    Args:
        name: of `DEPTHS`.
        width: channels of the stem.
        last: number of the last stage, from 2.
        norm: makes the norm of so many channels.
    """

    def __init__(self, name: str, *, width: int, last: int, norm: MakeNorm) -> None:
        super().__init__()
        half = width // 2
        stem = {"conv1_1": (3, half, 2), "conv1_2": (half, half, 1), "conv1_3": (half, width, 1)}
        self.conv1 = nn.Sequential(
            OrderedDict(
                (part, ConvNorm(i, o, 3, stride=stride, activation="relu", norm=norm))
                for part, (i, o, stride) in stem.items()
            )
        )
        kind = BasicBlock if name in BASIC else Bottleneck
        stages = []
        channels = width
        for stage in range(2, last + 1):
            blocks: list[nn.Module] = []
            for i in range(DEPTHS[name][stage - 2]):
                stride = 2 if i == 0 and stage > 2 else 1
                blocks.append(kind(channels, width * 2 ** (stage - 2), stride, first=i == 0, norm=norm))
                channels = width * 2 ** (stage - 2) * kind.expansion
            stages.append(Stage(blocks))
        self.res_layers = nn.ModuleList(stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")  # torchvision's rule

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map (B, 3, H, W) images, sides divisible by the last stride, to the (B, C, h, w) maps of all stages."""
        x = F.max_pool2d(self.conv1(images), 3, stride=2, padding=1)
        maps = []
        for stage in self.res_layers:
            x = stage(x)
            maps.append(x)
        return maps


@register_backbone(*DEPTHS)
class PResNetBackbone(Backbone):
    """PResNet-vd: "presnet18", 34, 50 and 101 as published, and "presnet10" for small work from random weights.

    Args:
        name: of `DEPTHS`.
        dilation: not available.
        norm: "frozen", "batch" or "group" (see `detrkit.backbones.resnet.NORMS`). RT-DETR trains R18 and R34 with
            batch norm, deeper ones with frozen statistics.
        width: channels of the stem, 64 or fewer for small work from random weights.
        stages: which stages to return: 2, 3, 4, 5 have strides 4, 8, 16, 32.
        padding: see `Backbone`.

    Raises:
        SettingError: see `check`.
    """

    body: PResNet

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
        expansion = 1 if name in BASIC else 4
        channels = {s: width * 2 ** (s - 2) * expansion for s in range(2, 6)}
        # RT-DETR reads pixels in [0, 1], also with ImageNet weights
        super().__init__(
            name,
            stages=stages,
            channels=channels,
            padding=padding,
            norm=norm,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
        )
        self.body = PResNet(name, width=width, last=max(stages), norm=NORMS[norm])

    @classmethod
    def check(cls, name: str, *, dilation: bool, norm: str, width: int) -> None:
        """Check the name and the options; see `Backbone.check`.

        Raises:
            SettingError: an unknown name or norm, dilation, a width that is odd or whose group norms would have groups
                of several sizes.
        """
        if name not in DEPTHS:
            raise SettingError(f"unknown backbone {name!r}: choose one of {', '.join(DEPTHS)}")
        if norm not in NORMS:
            raise SettingError(f"unknown backbone norm {norm!r}: choose one of {', '.join(NORMS)}")
        if dilation:
            super().check(name, dilation=dilation, norm="batch", width=WIDTH)
        if width % 2:
            raise SettingError(
                f"backbone_width={width!r} and backbone={name!r}: its stem begins with half as many channels: "
                f"{multiples_near(width, 2)}"
            )
        doubled = 4 if name in BASIC else 6  # from the stem to the last stage's output
        if norm == "group" and not all(groups_divide(width // 2 * 2**i) for i in range(doubled + 1)):
            raise SettingError(
                f"backbone_width={width!r} and backbone_norm={norm!r}: the group norm of the backbone needs half a "
                f"width that 32 divides, or 4, 8, 16: {multiples_near(width, 2 * GROUPS)}"
            )

    def maps(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.maps`."""
        if images.device.type == "cpu" and not torch.compiler.is_compiling():
            if not self.checkpointing:
                retain_freed_memory()
            images = images.contiguous(memory_format=torch.channels_last)  # as in `ResNetBackbone`
        maps: list[Tensor] = self.body(images)
        return maps

    def freeze_early_layers(self) -> None:
        """Freeze the stem where the norms are frozen, as published (freeze_at 0); R18 and R34 train all of it."""
        if self.norm == "frozen":
            self.body.conv1.requires_grad_(False)

    def pretrained_weights(self, path: Path | None, read: Callable[[Path], dict[str, Tensor]]) -> PretrainedWeights:
        """Read a state dict of the official code.

        Raises:
            SettingError: no path, as no hash was published to verify a download; a norm without running statistics.
            DetrkitError: weights that cannot be read.
        """
        if self.norm == "group":
            raise SettingError("ImageNet weights need backbone_norm='frozen' or 'batch': they hold batch statistics")
        if path is None:
            if self.name not in _FILES:
                raise SettingError(f"{self.name} has no ImageNet weights: use presnet18, 34, 50 or 101, or random ones")
            raise SettingError(
                f"{self.name}: its ImageNet weights are not downloaded, for want of a hash to verify them; get "
                f"{_IMAGENET.format(_FILES[self.name])} and give its path as --backbone-weights, or start from random "
                "ones or a trained model (--init-from)"
            )
        # without the stages that the network does not have
        beyond = tuple(f"res_layers.{i}." for i in range(len(self.body.res_layers), 4))
        return PretrainedWeights(str(path), {n: t for n, t in read(path).items() if not n.startswith(beyond)})
