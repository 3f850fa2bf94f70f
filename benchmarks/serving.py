"""Load on `detrkit serve`: every answer beside the offline result, times, rate, memory; then ten times the load.

    python benchmarks/serving.py --minutes 10 --clients 50        what docs/serving.md has to show
    python benchmarks/serving.py CHECKPOINT --minutes 2

Without a checkpoint a tiny DETR with random weights is served. The server is a process of its own, the clients are
coroutines of this one, which takes its share of the cores. Images of 12 sizes are sent as JPEG; an answer is right if
it has the labels and queries of `Detector.predict` on the same bytes, its scores within 1e-5 and its boxes within 0.01
pixels (the rounding of another batch). The loop of single predictions runs before, in this process, on the same bytes.
With --json NAME.json the memory of every minute of the first load goes to NAME-memory.json.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from detrkit.detector import Detector, load
from detrkit.structures.classes import ClassList
from detrkit.weights.checkpoint import ModelSpec, save_model
from side_by_side import Report

SIZES = [(320, 240), (240, 320), (400, 300), (300, 300), (640, 200), (200, 500), (500, 375), (375, 500), (256, 256)]
SIZES += [(600, 450), (150, 100), (800, 600)]  # width, height
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
THRESHOLD = 0.3
LOOP_SECONDS = 10.0
OVERLOAD_SECONDS = 20.0


def tiny() -> Detector:
    torch.manual_seed(0)
    spec = ModelSpec("detr-r50", TINY, num_classes=2, classes=ClassList(("a", "b"), (1, 2)), size=128, max_size=512)
    return Detector(spec.build(), spec, device="cpu")


def jpegs() -> list[bytes]:
    files = []
    for seed, (width, height) in enumerate(SIZES):
        noise = np.random.default_rng(seed).integers(0, 256, (height // 16, width // 16, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def is_right(answer: dict[str, Any], want: Any) -> bool:
    """Whether an answer is the offline result, up to the rounding of another batch."""
    (image,) = answer["images"]
    found = image["detections"]
    if (image["width"], image["height"]) != want.image.size or len(found) != len(want):
        return False
    by_query = {(entry["query"], entry["label"]): entry for entry in found}  # of equal scores the order may differ
    for query, label, score, box in zip(
        want.queries.tolist(), want.labels.tolist(), want.scores.tolist(), want.boxes.tolist(), strict=True
    ):
        entry = by_query.get((query, label))
        if entry is None or abs(entry["score"] - score) > 1e-5 or np.abs(np.subtract(entry["box"], box)).max() > 0.01:
            return False
    return True


def status(process: subprocess.Popen[str], name: str) -> int:
    """A number that the system states of the server."""
    return int(re.search(rf"{name}:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1])


def memory(process: subprocess.Popen[str]) -> float:
    """MiB that the server holds."""
    return status(process, "VmRSS") / 1024


class Load:
    """Clients that ask without a pause, and what they saw."""

    def __init__(self, address: str, files: list[bytes], wants: list[Any]) -> None:
        self.address, self.files, self.wants = address, files, wants
        self.seconds: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.wrong = 0

    async def client(self, http: httpx.AsyncClient, number: int, until: float) -> None:
        """Ask for one image after the other, and check the answers."""
        k = number
        while time.monotonic() < until:
            k = (k + 5) % len(self.files)  # every image in turn, large and small mixed
            started = time.monotonic()
            try:
                response = await http.post(f"{self.address}/predict?threshold={THRESHOLD}", content=self.files[k])
            except httpx.TransportError as error:
                self.statuses[type(error).__name__] += 1
                continue
            self.statuses[str(response.status_code)] += 1
            if response.status_code == 200:
                self.seconds.append(time.monotonic() - started)
                self.wrong += not is_right(response.json(), self.wants[k])
            else:
                await asyncio.sleep(0.2)

    async def run(self, clients: int, seconds: float) -> None:
        """Let so many clients ask for some seconds."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        # one client of httpx for all: each reads the system's certificates, which takes longer than an answer
        async with httpx.AsyncClient(timeout=120, limits=limits) as http:
            until = time.monotonic() + seconds
            await asyncio.gather(*(self.client(http, number, until) for number in range(clients)))


async def watch(process: subprocess.Popen[str], load_: Load, rows: list[dict[str, Any]]) -> None:
    """Add the memory of the server to the rows, every minute."""
    while True:
        rows.append(
            {
                "minute": len(rows),
                "answers": load_.statuses["200"],
                "MiB": round(memory(process)),
                "threads": status(process, "Threads"),
            }
        )
        await asyncio.sleep(60)


def single_rate(detector: Detector, files: list[bytes]) -> float:
    """Images a second of a loop of single predictions."""
    count, started = 0, time.monotonic()
    while time.monotonic() - started < LOOP_SECONDS:
        detector.predict(files[count % len(files)], threshold=THRESHOLD)
        count += 1
    return count / (time.monotonic() - started)


def start(words: list[str]) -> tuple[subprocess.Popen[str], str]:
    """The server and its address, once it is ready."""
    command = [sys.executable, "-m", "detrkit", "serve", *words, "--device", "cpu", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = re.search(r"http://\S+", process.stdout.readline())[0]
    while True:
        try:
            if httpx.get(f"{address}/ready", timeout=5).status_code == 200:
                return process, address
        except httpx.TransportError:
            pass
        time.sleep(0.2)


async def watched(load_: Load, process: subprocess.Popen[str], clients: int, seconds: float, rows: list[Any]) -> float:
    """Run a load, and return the MiB halfway; the rows get the memory of every minute."""
    watching = asyncio.create_task(watch(process, load_, rows))
    await load_.run(clients, seconds / 2)
    middle = memory(process)
    await load_.run(clients, seconds / 2)
    watching.cancel()
    return middle


def measure(
    report: Report, name: str, load_: Load, process: subprocess.Popen[str], clients: int, seconds: float
) -> list[dict[str, Any]]:
    """Run a load, and add its row; return the memory of every minute."""
    before, started, minutes = memory(process), time.monotonic(), []
    middle = asyncio.run(watched(load_, process, clients, seconds, minutes))
    took = time.monotonic() - started
    times = sorted(load_.seconds) or [0.0]
    report.add(
        load=name,
        answers=load_.statuses["200"],
        wrong=load_.wrong,
        **{"429": load_.statuses["429"], "503": load_.statuses["503"]},
        other=sum(count for status, count in load_.statuses.items() if status not in ("200", "429", "503")),
        **{
            "images/s": load_.statuses["200"] / took,
            "p50, s": statistics.median(times),
            "p99, s": times[min(len(times) - 1, int(0.99 * len(times)))],
            "MiB before": round(before),
            "MiB halfway": round(middle),
            "MiB after": round(memory(process)),
        },
    )
    return minutes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", help="by default a tiny model with random weights")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--json", type=Path, help="also write the rows there, for docs/serving.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = arguments.checkpoint
        if source is None:
            detector, source = tiny(), str(Path(folder) / "tiny.safetensors")
            save_model(source, detector.model, detector.spec)
        detector = load(source, device="cpu")
        files = jpegs()
        wants = [detector.predict(file, threshold=THRESHOLD) for file in files]
        report = Report(f"{detector.spec.name}, {len(files)} sizes of images, {arguments.minutes:g} minutes")
        rate = single_rate(detector, files)
        blank = dict.fromkeys(("429", "503"), "-")
        cells = {"p50, s": 1 / rate, "p99, s": "-", "MiB before": "-", "MiB halfway": "-", "MiB after": "-"}
        cells = {"images/s": rate, **cells}
        answers = round(rate * LOOP_SECONDS)
        report.add(load="a loop of single predictions", answers=answers, wrong="-", **blank, other="-", **cells)
        process, address = start([source, "--max-connections", str(4 * arguments.clients)])
        series = []
        try:
            for name, clients, seconds in (
                (f"{arguments.clients} clients", arguments.clients, 60 * arguments.minutes),
                (f"{10 * arguments.clients} clients", 10 * arguments.clients, OVERLOAD_SECONDS),
                ("1 client, after that", 1, 5.0),
            ):
                series.append(measure(report, name, Load(address, files, wants), process, clients, seconds))
            assert process.poll() is None
            process.terminate()
            print("status after SIGTERM:", process.wait(60))
        finally:
            process.kill()
    report.write(arguments.json)
    minutes = Report(f"memory of the server, {arguments.clients} clients")
    for row in series[0]:
        minutes.add(**row)
    minutes.write(arguments.json and arguments.json.with_name(f"{arguments.json.stem}-memory.json"))


if __name__ == "__main__":
    main()
