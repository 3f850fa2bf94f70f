"""Launcher detection: environment variables of torchrun, Slurm's srun or a start by hand.

They are checked as any input: variables left over from another program, missing or not a number give one line, before
anything waits for processes that never start.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from detrkit.utils.errors import SettingError

_TORCHRUN = "TORCHELASTIC_RUN_ID"
# srun sets them for the tasks that it starts; the script of sbatch itself has only the job's variables
_OF_A_STEP = ("SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST")
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
_INTERACTIVE = ("bash", "interactive")  # names of interactive jobs
_PORT = 15000  # port of Slurm's tasks, if MASTER_PORT is not set: this plus the last digits of the job

# only rank 0 prints; torchrun, Slurm and Fabric's launcher set one of these
_rank_variables = next(
    (names for names in (("RANK",), ("SLURM_PROCID",), ("LOCAL_RANK", "NODE_RANK")) if os.environ.get(names[0])),
    ("NODE_RANK",),  # started by hand on every node, where the process starts the others
)
FIRST_PROCESS = all((os.environ.get(name) or "0") == "0" for name in _rank_variables)


class Launch(NamedTuple):
    """Position of this process among several that are started already.

    Attributes:
        by: "torchrun", "srun" or "hand".
        rank: of all processes.
        world: number of processes.
        local_rank: of the processes of this machine.
        local_world: processes of this machine.
        address, port: where the first process listens.
    """

    by: str
    rank: int
    world: int
    local_rank: int
    local_world: int
    address: str
    port: int

    @property
    def nodes(self) -> int:
        """Number of machines."""
        return self.world // self.local_world


def launched() -> Launch | None:
    """Read this process's launch from the environment; None for a process alone or one that starts the others.

    Raises:
        SettingError: a variable that is missing, no number or out of range; names it and the fix.
    """
    if os.environ.get(_TORCHRUN):
        _need(("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"), _TORCHRUN)
        return _from_variables("torchrun", local_world=_number("LOCAL_WORLD_SIZE", 1))
    if started_by_srun():
        return _from_slurm()
    world = _number("WORLD_SIZE", 1, default=1)
    if not os.environ.get("RANK") or world == 1:
        return None
    _need(("MASTER_ADDR", "MASTER_PORT"), f"WORLD_SIZE={world} and RANK")
    if os.environ.get("LOCAL_RANK"):
        _need(("LOCAL_WORLD_SIZE",), "LOCAL_RANK")
    return _from_variables("hand", local_world=_number("LOCAL_WORLD_SIZE", 1, default=1))


def check_ranks() -> None:
    """Check the variables that lightning_fabric parses as numbers when it is imported; unset empty ones.

    Raises:
        SettingError: one is not a number; names it.
    """
    for name in _RANKS:
        if not os.environ.get(name, "").strip():
            os.environ.pop(name, None)
        else:
            _number(name, 0)


def started_by_srun() -> bool:
    """Return whether this is one of several tasks that Slurm's srun has started."""
    return slurm_tasks() > 1 and any(name in os.environ for name in _OF_A_STEP)


def slurm_tasks() -> int:
    """Return Slurm's number of tasks; 1 outside of Slurm and in interactive jobs."""
    if os.environ.get("SLURM_JOB_NAME") in _INTERACTIVE:
        return 1
    return _number("SLURM_NTASKS", 1, default=1)


def launched_outside() -> bool:
    """Return whether the other processes of a run, if there are any, have been started already."""
    return launched() is not None or bool(os.environ.get("LOCAL_RANK"))


def several() -> bool:
    """Return whether this is one of several processes; False if the environment is invalid."""
    try:
        launch = launched()
    except SettingError:
        return False
    return launch is not None and launch.world > 1


def check_start(devices: int, nodes: int) -> None:
    """Check the environment of a process that starts others itself, or that runs alone.

    Args:
        devices: processes on this machine, as --devices has it.
        nodes: machines, as --nodes has it.

    Raises:
        SettingError: names the option or variable, and the fix.
    """
    tasks = slurm_tasks()
    if tasks > 1:
        raise SettingError(
            f"SLURM_NTASKS is {tasks}, but srun did not start this process: write `srun detrkit train ...` in the "
            "script, which starts one for each task; for one process alone unset SLURM_NTASKS"
        )
    if nodes > 1 and not (os.environ.get("NODE_RANK") and os.environ.get("MASTER_ADDR")):
        raise SettingError(
            f"--nodes {nodes}: nothing starts the processes of the other machines: use torchrun --nnodes {nodes} or "
            "srun, or start the command on each machine with NODE_RANK, MASTER_ADDR and MASTER_PORT set"
        )
    if devices * nodes == 1:
        return
    if _number("NODE_RANK", 0, default=0) >= nodes:
        raise SettingError(f"NODE_RANK is {os.environ['NODE_RANK']}, but --nodes is {nodes}: unset it")
    if os.environ.get("LOCAL_RANK"):  # one of those started by Fabric or by hand
        _need(("MASTER_ADDR", "MASTER_PORT"), "LOCAL_RANK")
        _below("LOCAL_RANK", devices, "--devices")
    port = _number("MASTER_PORT", 1, 65535, default=0)
    if nodes == 1:
        _check_own(os.environ.get("MASTER_ADDR") or "127.0.0.1")
    if port and not os.environ.get("LOCAL_RANK") and not _number("NODE_RANK", 0, default=0):
        check_port(port)


def check_interface() -> None:
    """Check the network interface that gloo is configured to use.

    Raises:
        SettingError: there is no interface of this name.
    """
    interfaces = [name for name in os.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if name]
    present = [name for _, name in socket.if_nameindex()]
    for name in interfaces:
        if name not in present:
            raise SettingError(
                f"GLOO_SOCKET_IFNAME is {name!r}: this machine has {', '.join(present)}: name one of them, or unset it"
            )


def check_port(port: int) -> None:
    """Check that the first process can listen at MASTER_PORT.

    Raises:
        SettingError: another program listens there, or it is not allowed.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("", port))
            one.listen(1)
        except OSError as error:
            reason = "is taken by another program" if error.errno == errno.EADDRINUSE else f"{error.strerror}".lower()
            raise SettingError(f"MASTER_PORT {port}: {reason}: set another number, or unset it") from error


def restarted_by() -> str | None:
    """Return the torchrun agent that started this process; the same for all of its attempts (--max-restarts)."""
    if not os.environ.get(_TORCHRUN):
        return None
    agent = os.getppid()
    try:
        began = Path(f"/proc/{agent}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        began = "?"
    return f"{os.environ[_TORCHRUN]} {agent} {began} {socket.gethostname()}"


def attempt() -> int:
    """Return how many times torchrun has started this process before."""
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return int(count) if count.isdecimal() else 0


def _from_slurm() -> Launch:
    _need(("SLURM_PROCID", "SLURM_LOCALID"), "SLURM_NTASKS")
    tasks, nodes = slurm_tasks(), _number("SLURM_NNODES", 1, default=1)
    if tasks % nodes:
        raise SettingError(
            f"Slurm has {tasks} tasks on {nodes} machines, which cannot have the same number each: use "
            "#SBATCH --ntasks-per-node instead of --ntasks"
        )
    if not os.environ.get("MASTER_ADDR"):
        os.environ["MASTER_ADDR"] = _first_host(os.environ.get("SLURM_NODELIST") or "127.0.0.1")
    if not os.environ.get("MASTER_PORT"):
        digits = re.sub(r"\D", "", os.environ.get("SLURM_JOB_ID", ""))[-4:]
        os.environ["MASTER_PORT"] = str(_PORT + int(digits or "0"))
    return Launch(
        "srun",
        _below("SLURM_PROCID", tasks, "SLURM_NTASKS"),
        tasks,
        _below("SLURM_LOCALID", tasks // nodes, f"SLURM_NTASKS / SLURM_NNODES ({tasks} / {nodes})"),
        tasks // nodes,
        os.environ["MASTER_ADDR"],
        _number("MASTER_PORT", 1, 65535),
    )


def _first_host(nodes: str) -> str:
    """Return the first host of a Slurm list: node3 of "node[3-5,7],other"."""
    return re.split(r"[ ,]", re.sub(r"\[([^,\]-]*)[^\]]*\]", r"\1", nodes))[0]


def _from_variables(by: str, *, local_world: int) -> Launch:
    world = _number("WORLD_SIZE", 1)
    if world % local_world:
        raise SettingError(
            f"WORLD_SIZE is {world}, which is no multiple of LOCAL_WORLD_SIZE, {local_world}: start the same number of "
            "processes on each machine"
        )
    rank = _below("RANK", world, "WORLD_SIZE")
    local_rank = _below("LOCAL_RANK", local_world, "LOCAL_WORLD_SIZE", default=0)
    return Launch(by, rank, world, local_rank, local_world, os.environ["MASTER_ADDR"], _number("MASTER_PORT", 1, 65535))


def _need(names: Iterable[str], because: str) -> None:
    """Check that none of some environment variables is missing."""
    for name in names:
        if not os.environ.get(name):
            raise SettingError(
                f"{name} is not set, but {because} is: unset what another program has left over, or start with torchrun"
            )


def _number(name: str, least: int, most: int | None = None, *, default: int | None = None) -> int:
    """Read a variable that is a whole number; an empty one counts as unset."""
    text = os.environ.get(name, "").strip()
    if not text and default is not None:
        return default
    bound = f"from {least} to {most}" if most is not None else f"of at least {least}"
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise SettingError(f"{name} is {text!r}: it is to be a number {bound}; correct or unset it")
    value = int(text)
    if value < least or (most is not None and value > most):
        raise SettingError(f"{name} is {text}: it is to be a number {bound}; correct or unset it")
    return value


def _below(name: str, bound: int, of: str, **options: Any) -> int:
    """Read a variable that counts from 0."""
    value = _number(name, 0, **options)
    if value >= bound:
        raise SettingError(f"{name} is {value}, but it counts from 0 and {of} is {bound}: correct or unset it")
    return value


def _check_own(address: str) -> None:
    """Check that the first process is on this machine if all processes are."""
    try:
        family, _, _, _, place = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as one:
            one.bind(place)
    except OSError as error:
        raise SettingError(
            f"MASTER_ADDR is {address!r}, which is not this machine, and all processes are on it: unset MASTER_ADDR"
        ) from error
