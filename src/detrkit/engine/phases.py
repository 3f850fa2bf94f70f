"""The two phases of the published panoptic training, detector and masks: two configs from one (`optim.mask_epochs`)."""

from __future__ import annotations

from pathlib import Path

from detrkit.config import TrainConfig
from detrkit.data.memory import IN_MEMORY
from detrkit.data.readers import find_layout
from detrkit.engine.run_files import DETECTOR as DETECTOR
from detrkit.utils.names import full_path


def detector_phase(config: TrainConfig) -> TrainConfig:
    """Make the config of the first phase: the detector alone, on the boxes of the same objects.

    On panoptic data these are the boxes of things and stuff.

    Raises:
        DetrkitError: the dataset is missing or not recognized.
    """
    layout = config.data.layout
    if not config.data.path.startswith(IN_MEMORY):
        layout = find_layout(full_path(config.data.path), layout, masks=True)
    return config.changed(
        # a detector would read the instances of a folder that has both
        data={
            "layout": layout if layout == "coco-panoptic" else config.data.layout,
            "copy_paste": 0.0,  # which cuts objects out along the masks that this phase does not load
        },
        model={"masks": False},
        optim={"mask_epochs": 0, "mask_lr_drop": None},
        run={"out": str(Path(config.run.out) / DETECTOR)},
    )


def mask_phase(config: TrainConfig) -> TrainConfig:
    """Make the config of the second phase: masks for the best detector of the first phase, which is frozen."""
    optim = config.optim
    drop = optim.mask_lr_drop or max(1, round(optim.lr_drop * optim.mask_epochs / optim.epochs))
    return config.changed(
        model={"masks": True},
        optim={"epochs": optim.mask_epochs, "lr_drop": drop, "mask_epochs": 0, "mask_lr_drop": None},
        run={"freeze_detector": str(Path(config.run.out) / DETECTOR), "init_from": None},
    )
