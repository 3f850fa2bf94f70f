"""Check that all processes have the same settings and data, before the first step: else they would wait forever."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from detrkit.config import TrainConfig
from detrkit.engine.fingerprint import Fingerprint, differing_data
from detrkit.engine.resuming import differing_setting
from detrkit.utils.errors import DetrkitError

# settings that may differ between the processes of a run, which may be on several machines
_OWN = {
    "data": {"path", "more_paths", "val_data", "workers", "cache", "eval_batch_size"},
    "run": {"out", "device", "devices", "nodes", "timeout", "log_every", "tensorboard", "init_from", "freeze_detector"},
}


def check_agreement(data: Fingerprint, path: str, config: TrainConfig | None = None) -> None:
    """Check that all processes of a command have the same settings and data; each process must call it.

    Args:
        data: of this process.
        path: of the dataset, for the message.
        config: of the run, if it is one.

    Raises:
        DetrkitError: a process differs from process 0; names the first one and the difference. Raised in all processes.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    everything: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everything, (config, data))
    first_config, first_data = everything[0]
    for rank, (other_config, other_data) in enumerate(everything):
        who = f"process {rank} of {len(everything)}"
        if config is not None:
            setting = differing_setting(first_config, other_config, free=_OWN)
            if setting is not None:
                name, first, other = setting
                raise DetrkitError(
                    f"{name} is {other!r} in {who}, {first!r} in process 0: start all with the same command"
                )
        difference = differing_data(first_data, other_data)
        if difference is not None:
            split, first, other = difference
            raise DetrkitError(
                f"{path}: the split {split} has {other} in {who}, {first} in process 0: each needs the same dataset"
            )
