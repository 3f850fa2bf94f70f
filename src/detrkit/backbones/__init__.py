"""Backbones: images to feature maps, through one small interface, `Backbone`."""

from detrkit.backbones.base import (
    BACKBONES,
    Backbone,
    PretrainedWeights,
    backbone_class,
    build_backbone,
    check_backbone,
    register_backbone,
)
from detrkit.backbones.presnet import PResNetBackbone
from detrkit.backbones.resnet import RESNETS, ResNetBackbone
from detrkit.backbones.timm import TimmBackbone

__all__ = [
    "BACKBONES",
    "RESNETS",
    "Backbone",
    "PResNetBackbone",
    "PretrainedWeights",
    "ResNetBackbone",
    "TimmBackbone",
    "backbone_class",
    "build_backbone",
    "check_backbone",
    "register_backbone",
]
