"""The processes of a run, as Fabric is told of them."""

from __future__ import annotations

import os

import torch
from lightning_fabric.plugins.environments import ClusterEnvironment, LightningEnvironment

from detrkit.config import TrainConfig
from detrkit.utils.errors import SettingError
from detrkit.utils.launch import Launch, check_interface, check_port, check_start, launched


class LaunchEnvironment(LightningEnvironment):
    """Tells Fabric of a launch.

    Args:
        launch: of this process.
    """

    def __init__(self, launch: Launch) -> None:
        super().__init__()
        self._launch = launch
        self._main_port = launch.port
        self._world_size, self._global_rank = launch.world, launch.rank

    @property
    def creates_processes_externally(self) -> bool:
        """They run already."""
        return True

    @property
    def main_address(self) -> str:
        """Where the first process listens."""
        return self._launch.address

    def set_world_size(self, size: int) -> None:
        """It is known."""

    def set_global_rank(self, rank: int) -> None:
        """It is known."""

    def local_rank(self) -> int:
        """Of the processes of this machine."""
        return self._launch.local_rank

    def node_rank(self) -> int:
        """Of the machines."""
        return self._launch.rank // self._launch.local_world

    def teardown(self) -> None:
        """The environment is that of whoever started the process."""


def check_processes(config: TrainConfig) -> tuple[int, int]:
    """Checks whether the processes of a run can find each other.

    Args:
        config: of the run.

    Returns:
        How many processes each machine has, and how many machines there are.

    Raises:
        SettingError: an option or a variable of the environment that cannot be; names it and the fix.
    """
    run = config.run
    launch = launched()
    if launch is None:
        check_start(run.devices, run.nodes)
        devices, nodes = run.devices, run.nodes
    else:
        devices, nodes = launch.local_world, launch.nodes
        if launch.by != "torchrun" and launch.rank == 0 and launch.world > 1:  # torchrun listens itself
            check_port(launch.port)
    if torch.cuda.is_available() and run.device != "cpu":
        check_gpus(devices)
    elif devices * nodes > 1:
        check_interface()
    return devices, nodes


def check_gpus(processes: int) -> None:
    """Checks that each process of this machine has a GPU of its own.

    Raises:
        SettingError: there are more processes.
    """
    count = torch.cuda.device_count()
    if processes > count:
        raise SettingError(
            f"{processes} processes on a machine of which torch sees {count} GPUs: --devices {count} (torchrun: "
            f"--nproc-per-node {count}; Slurm: --ntasks-per-node {count}), or --device cpu"
        )


def cluster_environment() -> ClusterEnvironment | None:
    """What Fabric is to take for its processes; None: it looks for itself."""
    launch = launched()
    if launch is not None:
        return LaunchEnvironment(launch)
    # of one task Fabric would take Slurm's word for it that there is one process, whatever --devices says
    return LightningEnvironment() if "SLURM_NTASKS" in os.environ else None
