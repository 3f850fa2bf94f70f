"""Cluster environment of a run's processes for Fabric, and checks of it."""

from __future__ import annotations

import os

import torch

from detrkit.config import TrainConfig
from detrkit.engine.fabric import ClusterEnvironment, LightningEnvironment
from detrkit.utils.devices import AUTO, as_device, default_device
from detrkit.utils.errors import SettingError
from detrkit.utils.launch import Launch, check_interface, check_port, check_start, launched

_TRAINS = ("cpu", "cuda", "mps")  # kinds of devices that Fabric has


class LaunchEnvironment(LightningEnvironment):
    """Cluster environment that describes a launch to Fabric.

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
        """True: Fabric starts no processes."""
        return True

    @property
    def main_address(self) -> str:
        """Address of the first process."""
        return self._launch.address

    def set_world_size(self, size: int) -> None:
        """Ignore the size: the launch has it."""

    def set_global_rank(self, rank: int) -> None:
        """Ignore the rank: the launch has it."""

    def local_rank(self) -> int:
        """Return the rank among the processes of this machine."""
        return self._launch.local_rank

    def node_rank(self) -> int:
        """Return the index of this machine."""
        return self._launch.rank // self._launch.local_world

    def teardown(self) -> None:
        """Do nothing: the environment belongs to whoever started the process."""


def check_processes(config: TrainConfig) -> tuple[int, int]:
    """Check that the processes of a run can find each other.

    Args:
        config: of the run.

    Returns:
        Number of processes per machine, and number of machines.

    Raises:
        SettingError: an option or environment variable has an impossible value; names it and the fix.
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
    if training_device(run.device, several=devices * nodes > 1).type == "cuda":
        check_gpus(devices)
    elif devices * nodes > 1:
        check_interface()
    return devices, nodes


def training_device(name: str, *, several: bool = False, precision: str = "fp32") -> torch.device:
    """Return the device that a run trains on; with an index only where one was asked for.

    Args:
        name: `run.device`.
        several: whether several processes train.
        precision: `run.precision`.

    Raises:
        SettingError: the device is not there, or detrkit does not train on it like this; says what would be right.
    """
    device = default_device() if name == AUTO else as_device(name)
    if name == AUTO and (device.type not in _TRAINS or (device.type == "mps" and (several or precision != "fp32"))):
        return torch.device("cpu")
    if device.type not in _TRAINS:
        others = "predict, eval, compare and bench take it"
        raise SettingError(f"device {name}: detrkit trains on {', '.join(_TRAINS)} ({others})")
    if device.type == "mps" and precision != "fp32":
        raise SettingError(f"device {name} and precision {precision}: on MPS detrkit computes in fp32: leave it out")
    if several and device.type == "mps":
        raise SettingError(f"device {name}: MPS is one device for one process: leave out --devices, or use cpu")
    if several and device.index is not None:
        raise SettingError(f"device {name}: several processes take a GPU each: write {device.type} without a number")
    return device


def check_gpus(processes: int) -> None:
    """Check that each process of this machine has its GPU.

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
    """Return the environment for Fabric, or None to let Fabric detect it."""
    launch = launched()
    if launch is not None:
        return LaunchEnvironment(launch)
    # with one Slurm task Fabric would assume one process, whatever --devices says
    return LightningEnvironment() if "SLURM_NTASKS" in os.environ else None
