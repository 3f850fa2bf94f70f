"""`Augment`: names of the augmentations in settings, in one place."""

from __future__ import annotations

from typing import Literal

Augment = Literal["detr", "flip", "none", "lsj"]
