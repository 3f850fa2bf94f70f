"""Many images in shards: killed at random and shared by two machines, beside one run that nothing disturbed.

    python benchmarks/shards.py                      20,000 images, 64 shards, 10 kills, for docs/many-images.md
    python benchmarks/shards.py --images 1000 --shards 8 --kills 3
    python benchmarks/shards.py --ray                the same images under Ray as well

Images of 64 x 64 pixels are generated into a folder, one in a hundred broken: cut off, text, empty, a header of
50,000 x 50,000 pixels, a link to nowhere. A tiny DETR with random weights predicts them. The first run is one process.
Then two processes predict into another folder; as root each has a host name of its own (`unshare --uts`), so that to
the other it is another machine, whose shard is taken over after 5 seconds of silence. At random moments one of the two
is killed with SIGKILL and started again: at random numbers of shards that are done, and up to two seconds later. In the
end every image must have one row, and each file of results must have the bytes of the first run's. Memory is the
resident set, read every half second.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from detrkit.structures.classes import ClassList
from detrkit.weights.checkpoint import ModelSpec, save_model
from side_by_side import Report

TINY = {
    "backbone": "resnet10",
    "backbone_width": 8,
    "backbone_norm": "group",
    "hidden_dim": 32,
    "nheads": 4,
    "dim_feedforward": 32,
    "enc_layers": 1,
    "dec_layers": 1,
    "num_queries": 20,
}
LEASE_SECONDS = 5
LONGEST_DELAY = 2.0  # seconds from a shard that is done to a kill
MACHINES = ("machine-a", "machine-b")


def write_model(file: Path) -> None:
    torch.manual_seed(0)
    spec = ModelSpec("detr-r50", TINY, num_classes=2, classes=ClassList(("a", "b"), (1, 2)), size=64, max_size=128)
    save_model(file, spec.build(), spec)


def write_images(folder: Path, count: int, broken: int) -> None:
    """`count` images, each `broken`-th broken, a thousand in a folder."""
    generator = np.random.default_rng(0)
    bad = 0
    for number in range(count):
        file = folder / f"{number // 1000:03}" / f"{number:06}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(buffer, "JPEG")
        content = buffer.getvalue()
        if number % broken == broken // 2:
            kind, bad = bad % 5, bad + 1
            if kind == 4:
                file.symlink_to(folder / "nowhere.jpg")
                continue
            content = (content[: len(content) // 2], b"no image", b"", bomb())[kind]
        file.write_bytes(content)


def bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (8, 8)).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[16:24] = struct.pack(">II", 50_000, 50_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


class Process:
    """A worker; its memory is watched.

    Args:
        out: the folder for the results.
        machine: its host name, where that can be set.
        more: words of the command.
    """

    def __init__(self, place: Path, out: str, shards: int, machine: str | None = None, *more: str) -> None:
        command = [sys.executable, "-m", "detrkit", "predict", "model.safetensors", "photos", "--out", out]
        command += ["--shards", str(shards), "--device", "cpu", "--threshold", "0.1", "--merge", *more]
        if machine is not None and os.geteuid() == 0 and shutil.which("unshare"):
            command = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', machine, *command]
        with (place / f"{out}-{machine}.log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=place, stdout=log, stderr=log)
        self.memory: list[tuple[int, float]] = []  # shards that were done, MiB
        self._results = place / out / "shards"
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while self.process.poll() is None:
            try:
                lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
                (kib,) = [int(line.split()[1]) for line in lines if line.startswith("VmRSS:")]
            except (OSError, ValueError):
                return
            self.memory.append((len(list(self._results.glob("*.jsonl"))), kib / 1024))
            time.sleep(0.5)

    def peak(self, shards: int | None = None) -> int:
        """Most MiB, until so many shards were done."""
        return round(max((mib for at, mib in self.memory if shards is None or at <= shards), default=0))


def done(place: Path, out: str) -> int:
    return len(list((place / out / "shards").glob("*.jsonl")))


def disturbed(place: Path, out: str, shards: int, kills: int, seed: int) -> tuple[int, int]:
    """Two machines, of which now and then one is killed; return the number of kills and the peak in MiB."""
    dice = random.Random(seed)
    moments = sorted(dice.randrange(shards - 2) for _ in range(kills))
    workers = {name: Process(place, out, shards, name, "--lease-seconds", str(LEASE_SECONDS)) for name in MACHINES}
    killed, peak = 0, 0
    for moment in moments:
        while done(place, out) < moment and any(worker.process.poll() is None for worker in workers.values()):
            time.sleep(0.02)
        time.sleep(dice.uniform(0, LONGEST_DELAY))
        name = dice.choice(MACHINES)
        worker = workers[name]
        if worker.process.poll() is not None:
            break
        worker.process.send_signal(signal.SIGKILL)
        worker.process.wait()
        killed, peak = killed + 1, max(peak, worker.peak())
        print(f"  killed {name} with {done(place, out)} of {shards} shards done", flush=True)
        workers[name] = Process(place, out, shards, name, "--lease-seconds", str(LEASE_SECONDS))
    for name, worker in workers.items():
        if worker.process.wait() != 0:
            raise SystemExit((place / f"{out}-{name}.log").read_text())
        peak = max(peak, worker.peak())
    return killed, peak


def check(place: Path, out: str, count: int, broken: int) -> Counter[str]:
    """Check that every image has one row, and that all files are those of the first run; return the errors by kind."""
    ids, errors = set(), Counter[str]()
    rows = 0
    with (place / out / "merged.jsonl").open("rb") as lines:
        for line in lines:
            row = json.loads(line)
            ids.add(row["id"])
            rows += 1
            if row["error"]:
                errors[row["error"]["kind"]] += 1
    assert rows == len(ids) == count, (rows, len(ids))
    assert sum(errors.values()) == len(range(broken // 2, count, broken)), errors
    files = {file.name: file.read_bytes() for file in (place / out / "shards").iterdir()}
    first = {file.name: file.read_bytes() for file in (place / "alone" / "shards").iterdir()}
    assert files == first
    assert (place / out / "merged.jsonl").read_bytes() == (place / "alone" / "merged.jsonl").read_bytes()
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--broken", type=int, default=100, help="one image in so many (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--ray", action="store_true", help="also under Ray")
    parser.add_argument("--json", type=Path, help="also write the rows there, for docs/many-images.md")
    options = parser.parse_args()
    # as Ray's actors have here: of batches of an odd size the last bits depend on the number of threads
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's workers would yield to whatever else runs here
    report = Report("many images in shards, killed at random")
    with tempfile.TemporaryDirectory(prefix="detrkit-shards-") as folder:
        place = Path(folder)
        write_model(place / "model.safetensors")
        write_images(place / "photos", options.images, options.broken)

        def add(run: str, out: str, began: float, **more: str | int | float) -> None:
            seconds = time.perf_counter() - began
            errors = check(place, out, options.images, options.broken)
            shown = ", ".join(f"{count} {kind}" for kind, count in sorted(errors.items()))
            counts = {"images": options.images, "shards": options.shards}
            report.add(run=run, **counts, **more, errors=shown, seconds=round(seconds))
            report.write(options.json)

        began = time.perf_counter()
        alone = Process(place, "alone", options.shards)
        if alone.process.wait() != 0:
            raise SystemExit((place / "alone-None.log").read_text())
        memory: dict[str, str | int | float] = {"MiB after a quarter": alone.peak(options.shards // 4)}
        memory["MiB, peak"] = alone.peak()
        add("one process", "alone", began, kills=0, **memory)

        began = time.perf_counter()
        killed, peak = disturbed(place, "disturbed", options.shards, options.kills, options.seed)
        if killed < options.kills:
            print(f"the work was done after {killed} kills", flush=True)
        add("two machines, killed", "disturbed", began, kills=killed, **{"MiB after a quarter": "", "MiB, peak": peak})

        if options.ray and importlib.util.find_spec("ray") is not None:
            began = time.perf_counter()
            ray = Process(place, "ray", options.shards, None, "--engine", "ray", "--ray-workers", "2")
            if ray.process.wait() != 0:
                raise SystemExit((place / "ray-None.log").read_text())
            add("Ray, two workers", "ray", began, kills=0, **{"MiB after a quarter": "", "MiB, peak": ""})


if __name__ == "__main__":
    main()
