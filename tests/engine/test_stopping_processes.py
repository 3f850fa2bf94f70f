"""Two processes: what the first one refuses ends both, and a signal to one of them stops both, in an evaluation too."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from detrkit.utils.lock import FolderLock
from helpers.tiny import losses, tiny_config

# one rank after the other writes "status, forward passes of the evaluation" into a file of its own
_SCRIPT = """
import os, signal, sys
import torch
from detrkit.cli import main
from detrkit.models.detr import DETR

torch.set_num_threads(1)
rank, (locked, recipe, out) = int(os.environ["RANK"]), sys.argv[1:]
words = ["train", "--recipe", recipe, "--out"]
statuses = [main([*words, locked])]

forward, passes = DETR.forward, []

def signal_at(self, images, *args, **kwargs):
    if not self.training:
        passes.append(1)
        if rank == 1 and len(passes) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
    return forward(self, images, *args, **kwargs)

DETR.forward = signal_at
statuses.append(main([*words, out]))
with open(f"{out}.rank{rank}", "w") as file:
    print(*statuses, len(passes), file=file)
sys.stdout.flush()
os._exit(0)  # as the program ends: gloo's threads now and then abort a process that tidies up (pytorch/pytorch#190489)
"""


@pytest.mark.slow
def test_two_processes_are_refused_and_stopped_together(shapes, tmp_path):
    """5 images are three batches of one process and two of the other; the second one's second batch stops them."""
    config = tiny_config(shapes, tmp_path / "run", data={"batch_size": 1}, optim={"epochs": 1})
    (tmp_path / "recipe.yaml").write_text(config.to_yaml())
    (tmp_path / "script.py").write_text(_SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    places = [tmp_path / "script.py", tmp_path / "locked", tmp_path / "recipe.yaml", tmp_path / "run"]
    with FolderLock(tmp_path / "locked"):
        done = subprocess.run(
            [*command, *map(str, places)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=280,
        )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert said.count("is being written by process") == 1
    assert said.count("stopped by SIGTERM in an evaluation; go on with") == 1
    ranks = [(tmp_path / f"run.rank{rank}").read_text().split() for rank in (0, 1)]
    assert [r[:2] for r in ranks] == [["2", "143"]] * 2
    assert ranks[1][2] == "2"
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert (state["progress"]["epoch"], state["progress"]["batch"]) == (0, 6) and len(losses(tmp_path / "run")) == 6
    assert not (tmp_path / "run" / "epochs.csv").exists()
