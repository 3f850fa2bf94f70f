"""What the environment says of the processes of a run: all of it, or one line."""

from __future__ import annotations

import os
import socket

import pytest

from detrkit.cli import main
from detrkit.config import RunConfig, TrainConfig
from detrkit.engine.environment import check_processes
from detrkit.engine.processes import join_processes
from detrkit.engine.setup import make_fabric
from detrkit.utils.errors import SettingError
from detrkit.utils.launch import Launch, launched, launched_outside, restarted_by, several

PLACE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29411"}
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    **PLACE,
}
SLURM = {
    "SLURM_JOB_NAME": "detr",
    "SLURM_JOB_ID": "1234567",
    "SLURM_NODELIST": "node[07-09],other",
    "SLURM_NTASKS": "6",
    "SLURM_NNODES": "3",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_ID": "0",
}
HAND = {"RANK": "1", "WORLD_SIZE": "2", **PLACE}


@pytest.fixture
def environment(monkeypatch):
    """Sets an environment that has no other variables of a launcher."""
    for name in os.environ:
        if name.startswith(("SLURM_", "TORCHELASTIC_", "MASTER_", "GLOO_")) or name.endswith(("RANK", "WORLD_SIZE")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MASTER_ADDR", "")  # so that what is set on the way goes at the end
    monkeypatch.setenv("MASTER_PORT", "")

    def put(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize(
    ("variables", "launch"),
    [
        ({}, None),
        (TORCHRUN, Launch("torchrun", 5, 8, 1, 4, "127.0.0.1", 29411)),
        ({**TORCHRUN, **SLURM}, Launch("torchrun", 5, 8, 1, 4, "127.0.0.1", 29411)),
        (SLURM, Launch("srun", 3, 6, 1, 2, "node07", 19567)),
        ({**SLURM, **PLACE}, Launch("srun", 3, 6, 1, 2, "127.0.0.1", 29411)),
        ({**SLURM, "SLURM_NTASKS": "1"}, None),
        ({**SLURM, "SLURM_JOB_NAME": "interactive"}, None),
        (HAND, Launch("hand", 1, 2, 0, 1, "127.0.0.1", 29411)),
        ({**HAND, "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Launch("hand", 1, 2, 1, 2, "127.0.0.1", 29411)),
        ({"WORLD_SIZE": "1", "RANK": "0"}, None),
        ({"WORLD_SIZE": "", "RANK": ""}, None),
        ({"WORLD_SIZE": "2"}, None),
    ],
)
def test_what_started_a_process(environment, variables, launch):
    environment(variables)
    assert launched() == launch
    assert several() is launched_outside() is (launch is not None)
    assert launch is None or launch.nodes == launch.world // launch.local_world


@pytest.mark.parametrize(
    ("variables", "error"),
    [
        ({"TORCHELASTIC_RUN_ID": "x"}, "RANK is not set, but TORCHELASTIC_RUN_ID is: unset what another program"),
        ({**TORCHRUN, "LOCAL_RANK": ""}, "LOCAL_RANK is not set, but TORCHELASTIC_RUN_ID is"),
        ({**TORCHRUN, "RANK": "8"}, "RANK is 8, but it counts from 0 and WORLD_SIZE is 8: correct or unset it"),
        ({**TORCHRUN, "LOCAL_RANK": "4"}, "LOCAL_RANK is 4, but it counts from 0 and LOCAL_WORLD_SIZE is 4"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "3"}, "WORLD_SIZE is 8, which is no multiple of LOCAL_WORLD_SIZE, 3: start"),
        ({"WORLD_SIZE": "abc", "RANK": "0"}, "WORLD_SIZE is 'abc': it is to be a number of at least 1; correct"),
        ({"WORLD_SIZE": "-2", "RANK": "0"}, "WORLD_SIZE is '-2': it is to be a number of at least 1"),
        ({"WORLD_SIZE": "0", "RANK": "0"}, "WORLD_SIZE is 0: it is to be a number of at least 1"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR is not set, but WORLD_SIZE=2 and RANK is"),
        ({**HAND, "MASTER_PORT": "x"}, "MASTER_PORT is 'x': it is to be a number from 1 to 65535"),
        ({**HAND, "MASTER_PORT": "65536"}, "MASTER_PORT is 65536: it is to be a number from 1 to 65535"),
        ({**HAND, "RANK": "9"}, "RANK is 9, but it counts from 0 and WORLD_SIZE is 2"),
        ({**HAND, "LOCAL_RANK": "0"}, "LOCAL_WORLD_SIZE is not set, but LOCAL_RANK is"),
        ({**SLURM, "SLURM_NTASKS": "x"}, "SLURM_NTASKS is 'x': it is to be a number"),
        ({**SLURM, "SLURM_NTASKS": "7"}, "Slurm has 7 tasks on 3 machines, .* use #SBATCH --ntasks-per-node instead"),
        ({**SLURM, "SLURM_PROCID": ""}, "SLURM_PROCID is not set, but SLURM_NTASKS is"),
        ({**SLURM, "SLURM_PROCID": "6"}, "SLURM_PROCID is 6, but it counts from 0 and SLURM_NTASKS is 6"),
    ],
)  # fmt: skip
def test_an_environment_that_cannot_be(environment, variables, error):
    environment(variables)
    for look in (launched, launched_outside, join_processes, lambda: make_fabric(TrainConfig())):
        with pytest.raises(SettingError, match=f"^{error}"):
            look()
    assert not several()


@pytest.mark.parametrize(
    ("variables", "run", "error"),
    [
        ({**SLURM, "SLURM_STEP_ID": None}, {}, "SLURM_NTASKS is 6, but srun did not start this process: write"),
        ({}, {"nodes": 2}, "--nodes 2: nothing starts the processes of the other machines: use torchrun --nnodes 2"),
        ({"NODE_RANK": "2", **PLACE}, {"nodes": 2}, "NODE_RANK is 2, but --nodes is 2: unset it"),
        ({"NODE_RANK": "x", **PLACE}, {"nodes": 2}, "NODE_RANK is 'x': it is to be a number"),
        ({"LOCAL_RANK": "0"}, {"devices": 2}, "MASTER_ADDR is not set, but LOCAL_RANK is"),
        ({"LOCAL_RANK": "2", **PLACE}, {"devices": 2}, "LOCAL_RANK is 2, but it counts from 0 and --devices is 2"),
        ({"MASTER_ADDR": "192.0.2.1"}, {"devices": 2}, "MASTER_ADDR is '192.0.2.1', which is not this machine"),
        ({"GLOO_SOCKET_IFNAME": "no0"}, {"devices": 2}, "GLOO_SOCKET_IFNAME is 'no0': this machine has .*: name"),
        ({"GLOO_SOCKET_IFNAME": "no0", **HAND}, {}, "GLOO_SOCKET_IFNAME is 'no0'"),
    ],
)  # fmt: skip
def test_processes_that_cannot_find_each_other(environment, variables, run, error):
    environment({name: value for name, value in variables.items() if value is not None})
    with pytest.raises(SettingError, match=f"^{error}"):
        check_processes(TrainConfig(run=RunConfig(device="cpu", **run)))


def test_a_port_that_is_taken(environment):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        taken = f"^MASTER_PORT {port}: is taken by another program: set another number, or unset it$"
        environment({"MASTER_PORT": port})
        with pytest.raises(SettingError, match=taken):
            check_processes(TrainConfig(run=RunConfig(device="cpu", devices=2)))
        assert check_processes(TrainConfig(run=RunConfig(device="cpu"))) == (1, 1)
        environment({**HAND, "RANK": "0", "MASTER_PORT": port})
        with pytest.raises(SettingError, match=taken):
            join_processes()
    assert check_processes(TrainConfig(run=RunConfig(device="cpu"))) == (1, 2)


def test_one_task_of_slurm_starts_processes_itself(environment):
    environment({**SLURM, "SLURM_NTASKS": "1", "SLURM_NNODES": "1"})
    assert check_processes(TrainConfig(run=RunConfig(device="cpu", devices=3))) == (3, 1)


@pytest.mark.slow
def test_ranks_that_are_no_numbers(environment, capsys):
    """lightning_fabric takes them for numbers when it is imported, which is before any command has looked."""
    environment({"RANK": "", "SLURM_PROCID": " "})
    assert main(["models"]) == 0
    assert not {"RANK", "SLURM_PROCID"} & set(os.environ)
    environment({"LOCAL_RANK": "x"})
    assert main(["models"]) == 2
    assert "LOCAL_RANK is 'x': it is to be a number of at least 0; correct or unset it" in capsys.readouterr().err


def test_attempts_of_one_agent_have_one_name(environment):
    assert restarted_by() is None
    environment(TORCHRUN)
    assert restarted_by() == restarted_by() and restarted_by().startswith(f"none {os.getppid()} ")
