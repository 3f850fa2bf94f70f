"""The folder of a run, with files that describe the run."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

from detrkit.config import TrainConfig
from detrkit.data import Dataset
from detrkit.engine.run_files import MARK, sweep_old
from detrkit.utils.atomic import make_folder, sweep, write_atomic, write_errors
from detrkit.utils.errors import IN_PYTHON
from detrkit.utils.launch import restarted_by
from detrkit.utils.machine import cpu_name
from detrkit.weights.checkpoint import ModelSpec

ENVIRONMENT = "environment.txt"
CHOICE = "choice.txt"
STARTED_BY = "started by torchrun: "  # a line of it
_README = """# {name}

{mark} {command} continues it exactly where it stopped.

| file | what it is |
|---|---|
| report.md | result: metrics, per-class table, score thresholds, curves, examples (written when the run ends) |
| best.safetensors | weights of the best evaluation with class list and input settings: for predict, eval, --init-from |
| labels.png | objects of each class, sizes, places and shapes of the boxes to learn |
| first_batch.png | the first batch as the model gets it: augmented, with its boxes |
| training.png, examples.png | curves and predictions of the latest evaluation drawn; at the end, of the best one |
| last.pt | the whole training state: weights, average, optimizer, generators, position in the data |
| config.yaml | every setting; `detrkit train --recipe config.yaml` repeats the run |
| classes.txt | label, dataset id and name of every class |
| environment.txt | command, versions, machine, git state |
| epochs.csv | losses, metrics, rates, times and peak memory of every epoch |
| steps.csv | losses and rates of logged steps |
| choice.txt | the settings that detrkit chose for the data and the machine, with the reasons |
| init.txt | what was kept of the weights that the run started from |
| detector/ | of a run in two steps: the first one, the detector that the masks belong to |
| tensorboard/ | the same for TensorBoard |
"""


def prepare(config: TrainConfig) -> Path:
    """Create the folder of a run if it does not exist, and remove temporary files from it.

    Raises:
        DetrkitError: it cannot be written.
    """
    folder = make_folder(config.run.out)
    sweep(folder)
    sweep_old(folder)
    return folder


def write_config(config: TrainConfig) -> None:
    """Write config.yaml, which --resume and --recipe read."""
    write_atomic(Path(config.run.out) / "config.yaml", config.to_yaml())


def describe(folder: Path, spec: ModelSpec, train: Dataset, *, in_memory: bool = False) -> None:
    """Write the files that describe the run, except for its settings.

    Args:
        folder: of the run.
        spec: of the model.
        train: the training split.
        in_memory: the data are objects of a program, which no command finds.
    """
    command = f"`{IN_PYTHON}` in Python" if in_memory else f"`detrkit train --resume {shlex.quote(str(folder))}`"
    write_atomic(folder / "README.md", _README.format(mark=MARK, name=folder.name, command=command))
    classes = enumerate(zip(train.classes.ids, train.classes.names, strict=True))
    write_atomic(folder / "classes.txt", "".join(f"{i}\t{c}\t{n}\n" for i, (c, n) in classes))
    write_atomic(folder / ENVIRONMENT, _environment(spec))
    for log in ("steps.csv", "epochs.csv", "init.txt", CHOICE):  # of a run that ended before it saved a state
        with write_errors(folder / log):
            (folder / log).unlink(missing_ok=True)


def _environment(spec: ModelSpec) -> str:
    packages = ("detrkit", "torch", "torchvision", "lightning-fabric", "hotcoco", "numpy")
    lines = ["command: " + " ".join(sys.argv), f"python: {platform.python_version()} on {platform.platform()}"]
    lines += [f"{name}: {metadata.version(name)}" for name in packages if _installed(name)]
    lines.append(f"cpu: {cpu_name()}, {os.cpu_count()} cores, torch threads: {torch.get_num_threads()}")
    if torch.cuda.is_available():
        lines.append(f"gpu: {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    lines.append(f"git: {_git_state()}")
    agent = restarted_by()
    if agent is not None:
        lines.append(f"{STARTED_BY}{agent}")
    lines.append(f"model: {spec.to_json()}")
    return "\n".join(lines) + "\n"


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _git_state() -> str:
    """Return commit and number of changed files of the git checkout in the working directory (the user's project)."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain"], capture_output=True, text=True, timeout=5, check=True
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return "not in a git checkout"
    return f"{commit}, {len(changed)} changed file(s)" if changed else f"{commit}, clean"
