"""Workers as processes, killed, two at once, as tasks of Slurm, on Ray, leave the files of one that ran alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.structures.classes import ClassList
from detrkit.weights.checkpoint import ModelSpec, save_model
from helpers.tiny import SMALLEST

SPEC = ModelSpec("detr-r50", SMALLEST, num_classes=2, classes=ClassList(("cat", "dog"), (1, 2)), size=32, max_size=64)
PAGE = Path(__file__).parents[2] / "docs" / "many-images.md"
IMAGES = 240
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Weights and images, one in twenty broken."""
    folder = tmp_path_factory.mktemp("many")
    torch.manual_seed(0)
    save_model(folder / "runs" / "first.safetensors", SPEC.build(), SPEC)
    (folder / "photos").mkdir()
    for seed in range(IMAGES):
        pixels = np.random.default_rng(seed).integers(0, 256, (32, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{seed:03} \u00e9.jpg")
        if seed % 20 == 7:
            file = folder / "photos" / f"{seed:03} \u00e9.jpg"
            file.write_bytes(file.read_bytes()[:300])
    return folder


@pytest.fixture
def photos(place, monkeypatch):
    monkeypatch.chdir(place)
    return place / "photos"


def words(out, *more) -> list[str]:
    fixed = "predict runs/first.safetensors photos --shards 12 --device cpu --threshold 0.1 --batch-size 2"
    return [*fixed.split(), "--out", str(out), *more]


def started(out, *more, **variables) -> subprocess.Popen:
    command = [sys.executable, "-m", "detrkit", *words(out, *more)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)


def shards(out) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(out, "shards").glob("*") if file.suffix == ".jsonl"}


@pytest.fixture(scope="module")
def alone(place):
    """The files of one worker that nothing disturbed."""
    before = Path.cwd()
    os.chdir(place)
    try:
        worker = started("alone", "--merge")  # a process as the others are: last bits depend on the number of threads
        assert (worker.wait(), worker.stdout.read())[0] == 0
    finally:
        os.chdir(before)
    rows = [json.loads(line) for line in (place / "alone" / "merged.jsonl").read_bytes().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows) == IMAGES
    assert [row["error"]["kind"] for row in rows if row["error"]] == ["damaged"] * (IMAGES // 20)
    return place / "alone"


def test_killed_at_any_moment_and_started_again(photos, alone):
    """A worker is killed whenever a few more shards are there, and sooner or later after that."""
    kills, target = 0, 1
    while kills < 20:
        worker = started("killed", "--merge")
        while worker.poll() is None and len(shards("killed")) < target:
            time.sleep(0.01)
        time.sleep(0.03 * (kills % 4))
        if worker.poll() is not None:
            break
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        kills += 1
        target = len(shards("killed")) + 3
    output = worker.stdout.read().decode()
    assert worker.returncode == 0, output
    assert kills >= 2 and "of 12 shards were done before" in output  # all of them, if it was killed while merging
    assert shards("killed") == shards(alone)
    assert Path("killed/merged.jsonl").read_bytes() == (alone / "merged.jsonl").read_bytes()
    left = {path.name for path in Path("killed").iterdir()}
    assert left == {"manifest.jsonl", "merged.jsonl", "plan.json", "reports", "shards", "summary.json"}


def test_two_workers_at_once_share_the_shards(photos, alone):
    workers = [started("two", "--merge") for _ in range(2)]
    outputs = [worker.communicate()[0].decode() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    assert shards("two") == shards(alone)
    assert Path("two/merged.jsonl").read_bytes() == (alone / "merged.jsonl").read_bytes()
    assert json.loads(Path("two/summary.json").read_text())["images"] == IMAGES


def test_the_shard_of_a_suspended_worker_is_taken_over_and_its_return_changes_nothing(photos, alone):
    """As a machine that hangs: its lock is held, and only its silence shows."""
    suspended = started("suspended", "--lease-seconds", "2")
    while not list(Path("suspended/leases").glob("000*")):
        time.sleep(0.005)
    suspended.send_signal(signal.SIGSTOP)
    try:
        other = started("suspended", "--lease-seconds", "2", "--merge")
        output = other.communicate(timeout=120)[0].decode()
        assert other.returncode == 0, output
        assert shards("suspended") == shards(alone)
    finally:
        suspended.send_signal(signal.SIGCONT)
    assert suspended.wait(timeout=120) == 0, suspended.stdout.read().decode()
    assert shards("suspended") == shards(alone)
    assert Path("suspended/merged.jsonl").read_bytes() == (alone / "merged.jsonl").read_bytes()


def test_a_signal_says_how_to_go_on_and_releases_the_lease(photos):
    worker = started("stopped")
    while not shards("stopped"):
        time.sleep(0.01)
    worker.send_signal(signal.SIGTERM)
    output = worker.communicate()[0].decode()
    assert worker.returncode == 128 + signal.SIGTERM, output
    assert re.search(r"[1-9]\d* of 12 shards are done: run the same command again to go on", output)
    assert list(Path("stopped/leases").iterdir()) == []
    assert not [path for path in Path("stopped").rglob("*.tmp")]


def ids(file: Path) -> list[str]:
    return [json.loads(line)["id"] for line in file.read_bytes().splitlines()]


def scripts() -> dict[str, str]:
    """The scripts of the page by name."""
    found = re.findall(r'^```bash title="([\w.]+)[^"]*"\n(.*?)^```$', PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return dict(found)


def test_the_slurm_scripts_of_the_page_work(photos, alone, tmp_path):
    """Each task of the array in turn, with the variables that Slurm sets, without Slurm."""
    (tmp_path / "detrkit").write_text(
        f'#!/bin/bash\nexec {sys.executable} -m detrkit "$@" --device cpu --threshold 0.1\n'
    )
    (tmp_path / "detrkit").chmod(0o755)
    found = scripts()
    assert set(found) == {"predict.sbatch", "shards.sbatch", "merge.sbatch"}

    def task(name: str, number: int | None) -> str:
        text = found[name].replace("runs/first ", "runs/first.safetensors ").replace(" 64", " 2").replace(" 512", " 2")
        (tmp_path / name).write_text(text)
        variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "1"}
        if number is not None:
            variables |= {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": "2"}
        done = subprocess.run(
            ["bash", str(tmp_path / name)], env={**os.environ, **variables}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "1 of 2 shards are done" in task("shards.sbatch", 1)
    assert set(shards("shards-found")) == {"00001.jsonl"}
    task("shards.sbatch", 0)
    assert f"{IMAGES} images" in task("merge.sbatch", None)
    assert ids(Path("shards-found/merged.jsonl")) == ids(alone / "merged.jsonl")
    assert f"{IMAGES} images" in task("predict.sbatch", 0)
    assert shards("found-by-slurm") == shards("shards-found")


def test_ray_runs_the_same_shards_and_goes_on(photos, alone):
    """Two of them are there already."""
    pytest.importorskip("ray.data", reason="needs the extra ray")
    shutil.copytree(alone, "ray")
    Path("ray/merged.jsonl").unlink()
    for name in sorted(shards("ray"))[:-2]:
        Path("ray/shards", name).unlink()
    variables = {"RAY_worker_niceness": "0"}  # Ray's workers would yield to whatever else runs here
    worker = started("ray", "--engine", "ray", "--ray-workers", "2", "--merge", **variables)
    output = worker.communicate(timeout=900)[0].decode()
    assert worker.returncode == 0 and "2 of 12 shards were done before: going on" in output, output
    assert shards("ray") == shards(alone)
    assert Path("ray/merged.jsonl").read_bytes() == (alone / "merged.jsonl").read_bytes()
