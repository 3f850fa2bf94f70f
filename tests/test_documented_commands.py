"""The commands of the pages are run, in their order, on the run that README's own command has made.

The data are tiny and trainings are short: options behind a training command make the model small and end it after an
epoch. What is not run is listed with the reason; `tests/test_docs.py` parses all commands, these as well.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from PIL import Image

from detrkit.cli import main
from detrkit.data.tools.shapes import write_shapes
from test_docs import DOCS, ROOT, blocks, commands

# part of a command -> why it is not run here
NOT_RUN = {
    r"recipe realtime": "needs published weights: tests/cli/test_realtime.py",
    r"\b(facebook|SenseTime)/": "the Hugging Face Hub: tests/weights/test_hub_names.py has a server like it",
    r"\bdata download\b": "the network: tests/data/test_coco_download.py and test_cppe5.py",
    r"\bcppe5": "needs a download of 240 MB",
    r"^quickstart|detrkit-quickstart/": "three minutes: tests/test_readme.py runs it",
    r"^serve": "runs until a signal: tests/serve/test_serve_command.py",
    r"--engine ray": "the extra ray: tests/batch/test_shard_workers.py",
    r"^study": "hours: tests/study runs a small one",
    r"^reproduce": "needs COCO: tests/reproduction runs it on a few images",
    r"\bcoco\b|instances_val2017": "needs COCO",
    r"\bbccd\b": "needs a dataset that is not shipped",
    r"\bmy_shapes\b|recipe shapes-panoptic|runs/shapes": "ten minutes: tests/engine/test_masks.py",
    r"timm:": "tests/engine/test_timm_backbone.py",
    r"query-detr|runs/detrkit|--backbone patches": "the page's code: tests/test_extending.py",
    r"--loggers": "the page's code, or a library and its service: tests/engine",
    r"HOST|srun": "needs several machines",
    r"--precision bf16": "minutes on a CPU without bfloat16",
    r"^bench( detr-r50| deformable| *$)": "minutes of a model of full size: tests/cli/test_bench.py",
    r"detr-r50:0": "a model of full size: tests/comparison",
    r"\b(detr|deformable-detr)-r50\b|rtdetrv2-r18 crowd": "needs published weights",
    r"street\.mp4": "a video: tests/video runs such commands",
    r"(official.pth mine|\b(checkpoint|theirs|mine)\.(pth|npz|safetensors))": "a file of yours",
    r"runs/tuned|runs/dense|my-dataset|mine\.yaml": "starts from published weights, or is a file of yours",
    r"^export .*(--int8|--half)": "minutes of exports: tests/exporting/test_int8.py, test_half.py",
    r"--overfit 8 --out": "as --overfit 8 without --out, which is run",
    r"--masks": "the shapes of this test have no minutes for masks: tests/engine/test_masks.py",
}
SMALL = [
    "--hidden-dim",
    "32",
    "--nheads",
    "2",
    "--dim-feedforward",
    "32",
    "--num-queries",
    "8",
    "--size",
    "64",
    "--epochs",
    "1",
    "--workers",
    "0",
]
CONTINUED = ["--size", "64", "--epochs", "1", "--workers", "0"]
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


def reason(words: list[str]) -> str | None:
    """Why a command is not run, or None."""
    line = " ".join(words)
    return next((why for part, why in NOT_RUN.items() if re.search(part, line)), None)


def shortened(words: list[str]) -> list[str]:
    """A command with the options that make it short."""
    if words[:2] == ["data", "shapes"]:
        return [*words, "--train", "4", "--val", "2", "--force"]
    if words[0] != "train" or "--resume" in words:
        return words
    if "--minutes" in words:  # 9 seconds, and no number of epochs beside it
        at = words.index("--minutes") + 1
        words = [*words[:at], "0.15", *words[at + 1 :]]
        return [*words, *(word for word in SMALL if word not in ("--epochs", "1"))]
    more = CONTINUED if "--init-from" in words or "runs/first/config.yaml" in words else SMALL
    return [*words, *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as the pages take it for granted: my_data, photos, and the run that the page trains."""
    place = tmp_path_factory.mktemp("user")
    write_shapes(place / "my_data", images={"train": 8, "val": 4, "test": 4}, sides=(48, 64), classes=3)
    for name in ("a", "b"):
        write_shapes(place / name, images={"train": 8, "val": 2}, sides=(48, 64), classes=3, empty=0.5)
    write_shapes(place / "camera", images={"train": 4, "val": 2}, sides=(48, 64), classes=3, empty=0.5)
    (place / "photos").mkdir()
    (place / "more" / "deep").mkdir(parents=True)
    pictures = sorted((place / "my_data" / "test2017").iterdir())
    for name in ("photos/a.jpg", "photos/b.jpg", "one.jpg", "photo.jpg", "more/deep/c.png"):
        Image.open(pictures.pop(0) if len(pictures) > 1 else pictures[0]).save(place / name)
    before = Path.cwd()
    os.chdir(place)
    try:
        named = [words for words in page_commands(ROOT / "README.md") if words[-1] == "runs/first"]
        (train,) = [words for words in named if words[0] == "train" and "--resume" not in words]
        assert main(shortened(train)) == 0
        shutil.copytree("runs/first", "runs/second")
    finally:
        os.chdir(before)
    return place


def page_commands(page: Path) -> list[list[str]]:
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines if not line.startswith("torchrun ") for words in commands(line)]


def torchrun_commands() -> list:
    """The lines of the pages that begin with torchrun, as written, of those whose command is run."""
    lines = {}
    for page in PAGES:
        for line in "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines():
            if line.startswith("torchrun ") and all(reason(words) is None for words in commands(line)):
                lines[line] = pytest.param(line, id=f"{page.stem}: {line}")
    return list(lines.values())


def to_run() -> list:
    """Each command once, in the order of the pages."""
    found = {}
    for page in PAGES:
        for words in page_commands(page):
            if reason(words) is None and words[-1] != "runs/first" and tuple(words) not in found:
                found[tuple(words)] = pytest.param(words, id=f"{page.stem}: {' '.join(words)}")
    return list(found.values())


RUN = to_run()


def test_much_is_run():
    """The first commands of a newcomer are, each of them."""
    lines = {" ".join(param.values[0]) for param in RUN}
    assert {
        "data check my_data",
        "eval runs/first my_data --split test",
        "predict runs/first photos/",
        "convert runs/first official.pth",
        "bench runs/first --images photos",
    } <= lines
    assert len(lines) >= 12


def link_web_runtime(place: Path) -> bool:
    """Puts the unpacked onnxruntime-web that `.ci/run` has fetched where the page has the user unpack it."""
    package = os.environ.get("DETRKIT_ORT_WEB")
    if package is not None and not place.exists():
        place.symlink_to(Path(package).resolve(), target_is_directory=True)
    return package is not None


@pytest.mark.slow
@pytest.mark.parametrize("line", torchrun_commands())
def test_a_documented_torchrun_command_works(line, folder, monkeypatch):
    """As written, but for the number of processes: 8 are for 8 GPUs."""
    monkeypatch.chdir(folder)
    assert " --nproc-per-node 8 -m detrkit predict " in line
    words = shlex.split(line.replace("--nproc-per-node 8", "--nproc-per-node 2"))
    words[0] = str(Path(sysconfig.get_path("scripts")) / words[0])
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    photos = {file.name for file in Path("photos").iterdir()}
    if "--shards" in words:
        rows = Path(words[words.index("--out") + 1], "merged.jsonl").read_bytes().splitlines()
        assert [json.loads(row)["id"] for row in rows] == sorted(photos)
    else:
        assert {Path(name).name for name in json.loads(Path("predictions/predictions.json").read_text())} == photos


@pytest.mark.slow
@pytest.mark.parametrize("words", RUN)
def test_a_documented_command_works(words, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    out = words[words.index("--out") + 1] if "--out" in words else None
    if words[0] == "train" and out is not None:
        shutil.rmtree(out, ignore_errors=True)  # of another page
    if words[0] == "export" and out is not None:
        for left in (out, str(Path(out).with_suffix(".bin")), f"{out}.report.md", f"{out}.report.json"):
            Path(left).unlink(missing_ok=True)
    if "--web-runtime" in words and not link_web_runtime(Path(words[words.index("--web-runtime") + 1])):
        pytest.skip("DETRKIT_ORT_WEB names no unpacked onnxruntime-web")
    # an epoch is too short to learn 8 images, which the status of --overfit says
    statuses = {0, 1} if "--overfit" in words else {0}
    assert main(shortened(words)) in statuses, capsys.readouterr().err
