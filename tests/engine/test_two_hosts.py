"""Training under torchrun on two hosts, which are network namespaces of this machine with addresses of their own.

Needs root, and Linux's `ip`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from detrkit.engine import train
from helpers.tiny import losses, tiny_config

ADDRESSES = ("10.213.7.1", "10.213.7.2")
PORT = 29_517
pytestmark = pytest.mark.slow


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[str]]:
    """Two namespaces, joined by a pair of virtual interfaces; nothing else can be reached from them."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2")
    names = [f"detrkit-{os.getpid()}-{number}" for number in (0, 1)]
    links = [f"dtk{os.getpid() % 100_000}{side}" for side in "ab"]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", links[0], "netns", names[0], "type", "veth", "peer", links[1], "netns", names[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        for name, link, address in zip(names, links, ADDRESSES, strict=True):
            ip("-n", name, "link", "set", link, "name", "eth0")
            ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def start(host: str, rank: int, log: Path, *words: str) -> subprocess.Popen:
    """torchrun on one host, with one process, in a group of its own that can be killed as a host is."""
    command = ["ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
    command += ["--node-rank", str(rank), "--nproc-per-node", "1", "--master-addr", ADDRESSES[0]]
    command += ["--master-port", str(PORT), "-m", "detrkit", "train", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0"}
    with log.open("ab") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)


def on_both(hosts: list[str], folder: Path, *words: str) -> list[subprocess.Popen]:
    return [start(host, rank, folder / f"host{rank}.log", *words) for rank, host in enumerate(hosts)]


def wait(processes: list[subprocess.Popen], folder: Path) -> list[int]:
    try:
        return [process.wait(timeout=280) for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            kill(process)
        pytest.fail("".join((folder / f"host{rank}.log").read_text() for rank in (0, 1)))


def kill(process: subprocess.Popen) -> None:
    """Everything that runs on a host, at once."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def state(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "last.pt", weights_only=True)["model"]


def test_two_hosts_train_as_one_process_and_resume_exactly_after_one_was_killed(hosts, shapes, tmp_path):
    more = {"eval_every": 3, "save_every": 2}
    one = tiny_config(shapes, tmp_path / "one", optim={"accumulate": 2, "epochs": 3}, run=more)
    train(one)
    two = one.changed(optim={"accumulate": 1}, run={"out": str(tmp_path / "two")})
    (tmp_path / "two.yaml").write_text(two.to_yaml())
    words = [str(shapes), "--recipe", str(tmp_path / "two.yaml"), "--out"]

    done = wait(on_both(hosts, tmp_path, *words, str(tmp_path / "two")), tmp_path)
    assert done == [0, 0], (tmp_path / "host0.log").read_text() + (tmp_path / "host1.log").read_text()
    expected, found = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert [step for step, _ in found] == [step for step, _ in expected] and len(found) >= 9
    assert found[0][1] == pytest.approx(expected[0][1], rel=1e-5)
    torch.testing.assert_close([v for _, v in found], [v for _, v in expected], rtol=2e-3, atol=0)

    run = tmp_path / "killed"
    processes = on_both(hosts, tmp_path, *words, str(run))
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not (run / "last.pt").exists():
        time.sleep(0.005)
    kill(processes[1])
    assert processes[0].wait(timeout=120) != 0  # it does not wait for a host that is gone
    log = (tmp_path / "host0.log").read_text()
    before = losses(run)
    assert (run / "last.pt").exists() and len(before) < len(found), log

    done = wait(on_both(hosts, tmp_path, "--resume", str(run)), tmp_path)
    assert done == [0, 0], (tmp_path / "host0.log").read_text() + (tmp_path / "host1.log").read_text()
    assert losses(run) == found
    resumed, whole = state(run), state(tmp_path / "two")
    assert resumed.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name
