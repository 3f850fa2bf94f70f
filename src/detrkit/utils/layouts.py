"""`Layout`: names of dataset formats in settings, in one place."""

from __future__ import annotations

from typing import Literal

BuiltinLayout = Literal["coco", "coco-panoptic", "voc", "yolo", "parquet", "csv"]
TargetLayout = Literal["coco", "voc", "yolo", "parquet", "csv"]  # those that `convert` writes
# Readers of other packages have other names, which only the registry (`detrkit.data.readers.READERS`) can check.
Layout = BuiltinLayout | str
