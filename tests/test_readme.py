"""The README's promise: its first command, run as written but for the installation."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

README = Path(__file__).parent.parent / "README.md"


def _commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_two_commands_come_first():
    install_and_run, install_and_test = _commands()[:2]
    assert install_and_run.endswith("pip install . && detrkit quickstart")
    assert install_and_test.endswith('pip install -c constraints.txt -e ".[test]" && pytest')


def test_python_names_exist():
    import detrkit

    code = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL).group(1)
    compile(code, "README.md", "exec")
    names = set(re.findall(r"detrkit\.(\w+)", code))
    assert names == {"load", "explain", "build_model"}
    assert all(hasattr(detrkit, n) for n in names)


@pytest.mark.long
@pytest.mark.slow
def test_quickstart_trains_a_detector(tmp_path):
    """Random weights to AP50 of 70 and more on 200 images never trained on, on two processor cores."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "detrkit", "quickstart"], cwd=tmp_path, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "detrkit-quickstart" / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    print(f"quickstart: {time.monotonic() - began:.0f} s, AP {metrics['AP']:.3f}, AP50 {metrics['AP50']:.3f}")
    assert metrics["AP50"] >= 0.70
    for name in ("examples.png", "training.png", "precision_recall.png", "confusion.png"):
        assert Image.open(run / name).size[0] > 400
        assert name in (run / "report.md").read_text()
    for path in re.findall(r"\S+/(?:report\.md|examples\.png|best\.safetensors)", done.stdout):
        assert (tmp_path / path).is_file(), path
    again = subprocess.run(
        [sys.executable, "-m", "detrkit", "quickstart"], cwd=tmp_path, capture_output=True, text=True
    )
    assert again.returncode == 2 and "--force" in again.stderr
