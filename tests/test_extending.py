"""docs/extending.md: its files, installed as a package of somebody else's, do what the page says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from detrkit.data import open_dataset
from detrkit.data.tools.shapes import write_shapes

PAGE = Path(__file__).parent.parent / "docs" / "extending.md"
FILES = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
pytestmark = pytest.mark.slow  # each test starts processes
SMALL = (
    *("--hidden-dim", "32", "--nheads", "2", "--dim-feedforward", "32", "--dec-layers", "2", "--num-queries", "8"),
    *("--backbone-weights", "random", "--size", "64", "--epochs", "2", "--device", "cpu", "--workers", "0"),
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """A folder with `site`, where the page's files are installed with their entry points, and `lines`, a dataset."""
    folder = tmp_path_factory.mktemp("shop")
    site = folder / "site"
    info = site / "shop-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n")
    points = [f"{Path(name).stem} = {Path(name).stem}" for name in FILES]
    (info / "entry_points.txt").write_text("[detrkit.plugins]\n" + "\n".join(points) + "\n")
    for name, text in FILES.items():
        (site / name).write_text(text, encoding="utf-8")
    shapes = write_shapes(folder / "shapes", images={"train": 12, "val": 4}, sides=(48, 64), classes=2, seed=1)
    (folder / "lines" / "images").mkdir(parents=True)
    for split in ("train", "val"):
        dataset = open_dataset(shapes, split=split)
        with (folder / "lines" / f"{split}.jsonl").open("w") as file:
            for record in dataset.records:
                name = f"{split}-{record.file.name}"
                (folder / "lines" / "images" / name).write_bytes(Path(record.file).read_bytes())
                names = [dataset.class_names[label] for label in record.labels]
                file.write(json.dumps({"image": name, "boxes": record.boxes.tolist(), "names": names}) + "\n")
    return folder


def run(folder: Path, *words: str) -> str:
    """Run Python in the folder with the package installed; return what it printed."""
    paths = [str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    environment.pop("DETRKIT_PLUGINS", None)
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_has_a_file_of_each_kind():
    assert list(FILES) == ["shop_detectors.py", "shop_backbones.py", "shop_format.py", "shop_logger.py"]
    lines = {name: sum(1 for line in text.splitlines() if line.strip()) for name, text in FILES.items()}
    assert all(count < 65 for count in lines.values()), lines  # an extension is one short file


def test_the_reader_reads_what_coco_has(shop):
    program = (
        "import json, sys, detrkit\n"
        "dataset = detrkit.open_dataset('lines', split='val')\n"
        "print(json.dumps([[r.boxes.tolist(), r.labels.tolist(), r.areas.tolist()] for r in dataset.records]))\n"
        "print(dataset.layout, dataset.class_names)\n"
    )
    records, names = run(shop, "-c", program).splitlines()[-2:]
    coco = open_dataset(shop / "shapes", split="val")
    assert names == f"lines {coco.class_names}"
    for (boxes, labels, areas), record in zip(json.loads(records), coco.records, strict=True):
        assert boxes == record.boxes.tolist() and labels == record.labels.tolist()
        assert areas == [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes]


def test_a_model_on_a_backbone_learns_evaluates_and_loads(shop):
    words = ("--model", "query-detr", "--backbone", "patches", "--options", "tokens_dropout=0.1", "--loggers", "lines")
    run(shop, "-m", "detrkit", "train", "lines", "--out", "run", *words, *SMALL)
    log = [json.loads(line) for line in (shop / "run" / "log.jsonl").read_text().splitlines()]
    assert log[0] == {"step": None, "lr": 1e-4, "epochs": 2}
    assert [line["epoch"] for line in log if "val/AP" in line] == [1, 2]
    assert "AP" in run(shop, "-m", "detrkit", "eval", "run", "lines", "--device", "cpu")
    program = (
        "import detrkit, torch\n"
        "detector = detrkit.load('run', device='cpu')\n"
        "model = detector.model\n"
        "print(type(model).__name__, type(model.backbone).__name__, model.drop.p, detector.spec.options['backbone'])\n"
        "torch.manual_seed(0)\n"
        "model = model.double()\n"
        "images = [torch.rand(3, 40, 52, dtype=torch.double), torch.rand(3, 64, 37, dtype=torch.double)]\n"
        "alone, together = model(images[:1]), model(images)\n"
        "print((alone.boxes[0] - together.boxes[0]).abs().max().item() < 1e-9)\n"
        "image = 'lines/images/' + __import__('os').listdir('lines/images')[0]\n"
        "print(len(detector.predict(image, threshold=0)))\n"
        "explanation = detrkit.explain(detector, image, threshold=0)\n"
        "maps = [explanation.cross_attention(i, layer) for i in range(16) for layer in range(2)]\n"
        "print(len(explanation), explanation.grid, max(abs(m.sum().item() - 1) for m in maps) < 1e-5)\n"
    )
    want = ["QueryDETR Patches 0.1 patches", "True", "16", "16 (2, 2) True"]
    assert run(shop, "-c", program).splitlines() == want


def test_without_the_package_its_checkpoint_is_one_line(shop):
    done = subprocess.run(
        [sys.executable, "-m", "detrkit", "eval", "run", "lines", "--device", "cpu"],
        cwd=shop,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "unknown model 'query-detr'" in done.stderr and len(done.stderr.strip().splitlines()) == 1
