"""torchvision's ResNets as backbones: frozen or trainable norm, DC5, and batches that do not leak padding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.backbones.base import WIDTH, Backbone, Norm, Padding, PretrainedWeights, register_backbone
from detrkit.layers.checkpointing import checkpointed
from detrkit.layers.folding import fold
from detrkit.layers.norms import GROUPS, FrozenBatchNorm2d, GroupNorm, groups_divide
from detrkit.ops.dense import convolve
from detrkit.ops.malloc import retain_freed_memory
from detrkit.structures.batch import Batch
from detrkit.utils.download import download
from detrkit.utils.errors import SettingError
from detrkit.utils.ranges import multiples_near
from detrkit.utils.vision import BasicBlock, Bottleneck, ResNet, torchvision

RESNETS = ("resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
SHALLOW = RESNETS[:3]  # made of basic blocks, which torchvision does not dilate
EARLY_LAYERS = ("conv1", "bn1", "layer1")  # never trained with pretrained weights (published: lr 0)


def group_norm(channels: int) -> GroupNorm:
    """Build a group norm of at most 32 groups of 4 channels or more; a named function, as pickled models need it."""
    return GroupNorm(min(GROUPS, channels // 4), channels)


# "frozen": constants, for pretrained weights (published). "group": trains from random weights, and treats every image
# by itself, so that results do not depend on the batch (GroupNorm, Wu & He 2018; He et al. 2019 train detectors from
# scratch with it). "batch": torchvision's own, as the colab demo has it.
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "frozen": FrozenBatchNorm2d,
    "group": group_norm,
    "batch": nn.BatchNorm2d,
}


@register_backbone(*RESNETS)
class ResNetBackbone(Backbone):
    """A torchvision ResNet that returns the maps of chosen stages.

    With `padding="exact"` padded positions are zero before every layer that reads neighboring pixels, so the whole
    batch runs at once.

    Args:
        name: one of RESNETS; resnet10 has one basic block per stage, for small work from random weights.
        dilation: DC5: stage 5 keeps the resolution of stage 4. As in the published code only the later blocks of the
            stage are dilated; its first block keeps dilation 1. Bottleneck depths (50 and more) only.
        norm: "frozen", "group" or "batch" (see NORMS).
        width: channels of the stem and of stage 2's 3x3 convolutions, doubled at each stage; torchvision's 64, or
            fewer for small work from random weights.
        stages: which stages to return: 2, 3, 4, 5 have strides 4, 8, 16, 32 (5: 16 with dilation).
        padding: see `Backbone`; "official": padding leaks as in the published code.

    Raises:
        SettingError: see `check`.
    """

    body: ResNet
    scratch_norm = "group"

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
        expansion = 1 if name in SHALLOW else 4
        super().__init__(
            name,
            stages=stages,
            channels={s: width * 2 ** (s - 2) * expansion for s in range(2, 6)},
            strides={s: 16 if dilation and s == 5 else 2**s for s in range(2, 6)},
            padding=padding,
            norm=norm,
        )
        body = _resnet(name, NORMS[norm], dilation=dilation, width=width)
        del body.fc, body.avgpool
        for stage in range(max(stages) + 1, 6):
            delattr(body, f"layer{stage - 1}")
        self.body = body

    @classmethod
    def check(cls, name: str, *, dilation: bool, norm: str, width: int) -> None:
        """Check the name and the options; see `Backbone.check`.

        Raises:
            SettingError: an unknown name or norm, dilation of a depth that torchvision cannot dilate, a width whose
                group norms would have groups of several sizes.
        """
        if name not in RESNETS:
            raise SettingError(f"unknown backbone {name!r}: choose one of {', '.join(RESNETS)}")
        if norm not in NORMS:
            raise SettingError(f"unknown backbone norm {norm!r}: choose one of {', '.join(NORMS)}")
        doubled = 4 if name in SHALLOW else 6  # from the stem to the last stage's output
        if norm == "group" and not all(groups_divide(width * 2**i) for i in range(doubled)):
            raise SettingError(
                f"backbone_width={width!r} and backbone_norm={norm!r}: the group norm of the backbone needs a width "
                f"that 32 divides, or 4, 8, 16: {multiples_near(width, GROUPS)}"
            )
        if dilation and name in SHALLOW:
            raise SettingError(
                f"dilation=True and backbone={name!r}: torchvision dilates resnet50 and deeper alone, so that there is "
                f"no dilated (DC5) {name}: leave out dilation"
            )

    def forward(self, batch: Batch, *, every_stage: bool = False) -> list[tuple[Tensor, Tensor]]:
        """Compute the features of a batch.

        Args:
            batch: normalized images.
            every_stage: return the maps of all stages from 2 to the last chosen one, not of the chosen alone.

        Returns:
            Per stage the (B, C, h, w) map, h = ceil(H / stride), and its (B, h, w) bool padding mask, True = padded.
        """
        body = self.body
        masks = _PaddingMasks(batch, exact=self.padding == "exact" and batch.padded, in_place=not self.checkpointing)
        x = batch.images
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            if not self.checkpointing:  # checkpointing needs little memory, but kept blocks do not fit the next tensors
                retain_freed_memory()
            # an image of 800 x 1199 takes 520 ms in this memory format, 890 ms in the other (R50, two cores)
            x = x.contiguous(memory_format=torch.channels_last)
        x = _step(body.conv1, body.bn1, x, masks.valid(2), relu=True)  # (B, 64, H/2, W/2)
        x = body.maxpool(masks.zero_padding(x, 2))  # values are >= 0: zeros at padded positions never exceed them
        maps = []
        stride = 4
        for stage in range(2, max(self.stages) + 1):
            blocks = getattr(body, f"layer{stage - 1}")
            x = checkpointed(_stage, blocks, x, masks, stride, on=self.checkpointing)
            for block in blocks:
                stride *= block.stride
            if every_stage or stage in self.stages:
                x = masks.zero_padding(x, stride)
                maps.append((x, self.padding_mask(batch, stride)))
        return maps

    def freeze_early_layers(self) -> None:
        """Freeze stem and layer1 (published), unless they would stay random: other norms are for random weights."""
        if self.norm == "frozen":
            for layer in EARLY_LAYERS:
                getattr(self.body, layer).requires_grad_(False)

    def pretrained_weights(self, path: Path | None, read: Callable[[Path], dict[str, Tensor]]) -> PretrainedWeights:
        """Read a torchvision state dict; without a path torchvision's ImageNet V1 weights, downloaded once, verified.

        Raises:
            SettingError: a norm without running statistics, or a depth that torchvision has no weights for.
            DetrkitError: weights that cannot be downloaded or read.
        """
        if self.norm == "group":
            raise SettingError("ImageNet weights need backbone_norm='frozen' or 'batch': they hold batch statistics")
        if path is None:
            if not hasattr(torchvision.models, self.name):
                raise SettingError(f"{self.name} has no ImageNet weights: use resnet18, 34, 50, 101 or 152")
            url = torchvision.models.get_model_weights(self.name)["IMAGENET1K_V1"].url
            path = download(url, sha256_prefix=url.rsplit("-", 1)[1].removesuffix(".pth"))
        parts = {name.split(".")[0] for name in self.body.state_dict()}
        # without the classifier, and the stages that the model does not have
        return PretrainedWeights(str(path), {n: t for n, t in read(path).items() if n.split(".")[0] in parts})


def _resnet(name: str, norm: Callable[[int], nn.Module], *, dilation: bool, width: int) -> ResNet:
    """Build a torchvision ResNet; resnet10 has one basic block per stage; `width` may differ from torchvision's 64."""
    dilate = [False, False, dilation]
    if name == "resnet10":
        body = ResNet(BasicBlock, [1, 1, 1, 1], norm_layer=norm, replace_stride_with_dilation=dilate)
    else:
        body = getattr(torchvision.models, name)(norm_layer=norm, replace_stride_with_dilation=dilate)
    if width != body.conv1.out_channels:
        body.inplanes, body.dilation = width, 1
        body.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        body.bn1 = norm(width)
        for i, dilated in enumerate([False, *dilate], start=1):
            layer = getattr(body, f"layer{i}")
            new = body._make_layer(type(layer[0]), width * 2 ** (i - 1), len(layer), 1 if i == 1 else 2, dilated)
            setattr(body, f"layer{i}", new)
        for module in body.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")  # torchvision's rule
    return body


class _PaddingMasks:
    """Padding masks of the feature maps, cached by stride.

    Args:
        batch: the images.
        exact: whether padding must not change the features; otherwise masks are None and maps stay unchanged.
        in_place: whether a map may be changed in place; not under gradient checkpointing, where it is a stored input.
    """

    def __init__(self, batch: Batch, *, exact: bool, in_place: bool) -> None:
        self.batch, self.exact, self.in_place = batch, exact, in_place
        self._valid: dict[int, Tensor] = {}

    def valid(self, stride: int) -> Tensor | None:
        """Return the (B, 1, h, w) bool mask of a map at `stride`, False where padded; None if padding may leak."""
        if not self.exact:
            return None
        if stride not in self._valid:
            self._valid[stride] = ~self.batch.padding_mask(stride)[:, None]  # the strided layers give ceil(size / 2)
        return self._valid[stride]

    def zero_padding(self, x: Tensor, stride: int) -> Tensor:
        """Set padded positions of a map to zero, in place where that is cheaper.

        Args:
            x: (B, C, h, w), whose padded values are not needed.
            stride: of the map.
        """
        valid = self.valid(stride)
        if valid is None:
            return x
        if x.device.type != "cpu" or x.requires_grad or torch.compiler.is_compiling():
            return x.masked_fill(~valid, 0.0)
        x = x if self.in_place else x.clone()
        for image, (h, w) in zip(x, self.batch.cells(stride), strict=True):  # only the padding is written
            image[:, h:] = 0.0
            image[:, :, w:] = 0.0
        return x


def _step(
    convolution: nn.Module,
    norm: nn.Module,
    x: Tensor,
    valid: Tensor | None,
    *,
    relu: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """Apply a convolution, its norm, the residual and, with `relu`, a ReLU; only group norm uses `valid`."""
    assert isinstance(convolution, nn.Conv2d)
    if isinstance(norm, FrozenBatchNorm2d):
        weight, bias = fold([(convolution, norm)], x)
        stride, dilation, padding = convolution.stride, convolution.dilation, convolution.padding
        assert not isinstance(padding, str)
        return convolve(
            x, weight, bias, stride=stride, padding=padding, dilation=dilation, residual=residual, relu=relu
        )
    y = convolution(x)
    y = norm(y, valid) if isinstance(norm, GroupNorm) else norm(y)
    y = y if residual is None else y + residual
    return F.relu(y) if relu else y


def _stage(blocks: nn.Sequential, x: Tensor, masks: _PaddingMasks, stride: int) -> Tensor:
    """Apply the blocks of a stage, whose input has this stride."""
    for block in cast("Iterable[BasicBlock | Bottleneck]", blocks):
        in_stride, stride = stride, stride * block.stride
        x = _block(block, x, masks, in_stride, stride)
    return x


def _block(block: BasicBlock | Bottleneck, x: Tensor, masks: _PaddingMasks, in_stride: int, out_stride: int) -> Tensor:
    """Apply a residual block, with zeros at padded positions before each 3x3 convolution.

    Args:
        block: torchvision BasicBlock or Bottleneck.
        x: (B, C, h, w) input; its memory may be used for the result.
        masks: padding masks of the batch.
        in_stride: stride of the input.
        out_stride: stride of the output.
    """
    first, last = masks.valid(in_stride), masks.valid(out_stride)
    end: tuple[nn.Module, nn.Module]
    if isinstance(block, Bottleneck):
        y = _step(block.conv1, block.bn1, x, first, relu=True)
        y = _step(block.conv2, block.bn2, masks.zero_padding(y, in_stride), last, relu=True)
        end = (block.conv3, block.bn3)
    else:
        x = masks.zero_padding(x, in_stride)
        y = _step(block.conv1, block.bn1, x, last, relu=True)
        y = masks.zero_padding(y, out_stride)
        end = (block.conv2, block.bn2)
    shortcut = x
    if block.downsample is not None:
        convolution, norm = cast("nn.Sequential", block.downsample)
        shortcut = _step(convolution, norm, x, last)
    return _step(*end, y, last, residual=shortcut, relu=True)
