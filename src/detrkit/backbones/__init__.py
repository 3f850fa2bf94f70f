"""Backbones: images to feature maps, through one small interface."""

from detrkit.backbones.resnet import RESNETS, ResNetBackbone, build_backbone

__all__ = ["RESNETS", "ResNetBackbone", "build_backbone"]
