"""torchvision is imported without torch's compiler, and is the same torchvision once something is compiled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from detrkit.utils import vision
from detrkit.weights.checkpoint import ModelSpec, save_model
from helpers.tiny import SMALLEST

SOURCE = Path(vision.__file__).parents[1]
SCRIPT = """
import sys
from detrkit.cli import main

status = main(["predict", "a.safetensors", "a.png", "--size", "64", "--device", "cpu"])
assert status == 0 and not {"torch._dynamo", "sympy"} & set(sys.modules), "the compiler was imported"

import torch
import torchvision
from torch._dynamo.utils import is_compile_supported
from torchvision import tv_tensors

assert torch.compiler.disable.__module__ == "torch.compiler" and torch._dynamo.utils.__file__
asked = torchvision.ops.roi_align.__globals__["is_compile_supported"]
assert all(asked(device) == is_compile_supported(device) for device in ("cpu", "meta"))

def wrapped(x):
    return tv_tensors.wrap(x + 1, like=tv_tensors.Image(x))

image = torch.ones(3, 4, 4)
compiled = torch.compile(wrapped, backend="eager")
assert type(compiled(image)) is tv_tensors.Image and torch.equal(compiled(image), wrapped(image))
print("the same")
"""


@pytest.mark.slow
def test_a_prediction_does_not_import_the_compiler_and_compiling_works_after_it(tmp_path):
    spec = ModelSpec("detr-r50", SMALLEST, num_classes=2)
    save_model(tmp_path / "a.safetensors", spec.build(), spec)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("the same\n"), done.stderr


def test_torchvision_is_imported_in_one_place():
    files = [file for file in SOURCE.rglob("*.py") if file != Path(vision.__file__)]
    lines = [line for file in files for line in file.read_text().splitlines()]
    assert not [line for line in lines if line.strip().startswith(("import torchvision", "from torchvision"))]


def test_stand_ins_are_gone_after_the_import_and_what_they_lack_is_an_error():
    names = ("torch._dynamo", "torch._dynamo.utils")
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    disable = torch.compiler.disable
    try:
        with pytest.raises(ImportError), vision._stand_ins():
            assert torch.compiler.disable is not disable
            from torch._dynamo.utils import something_else  # noqa: F401
        assert torch.compiler.disable is disable and not set(names) & set(sys.modules)
    finally:
        sys.modules.update(before)


def test_a_function_is_disabled_with_and_without_arguments():
    calls = []

    @vision._disabled_for_compiler
    def one(x):
        """Doc."""
        calls.append(x)
        return x

    @vision._disabled_for_compiler(recursive=False)
    def two(x):
        return x + 1

    assert (one(1), two(1), one.__doc__, calls) == (1, 2, "Doc.", [1])
