"""The kernels compile for the GPUs in use; that needs none of them, as Triton brings its assembler."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

# In a process of its own: this one may have Triton's interpreter, which accepts more than its compiler.
SCRIPT = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import torch
from detrkit.ops import ms_deform_triton as ops

capability = int({capability!r})
pointers = ("value", "grad", "out", "levels", "locations", "weights", "grad_value", "grad_locations", "grad_weights")
for kernel in (ops._forward_kernel, ops._backward_kernel):
    for dtype, name in ((torch.float32, "*fp32"), (torch.bfloat16, "*bf16"), (torch.float16, "*fp16")):
        for warps in (1, 4):
            value, locations = torch.empty(1, 1, 8, 32, dtype=dtype), torch.empty(1, 1, 8, 4, 4, 2)
            constants = ops._constants(value, locations, warps)
            constants.pop("num_warps")
            kinds = dict.fromkeys(pointers, "*fp32") | dict(value=name, grad=name, out=name, levels="*i32")
            names = kernel.arg_names
            signature = {{n: "constexpr" if n in constants else kinds.get(n, "i32") for n in names}}
            source = ASTSource(
                kernel, signature=signature, constexprs={{(names.index(n),): c for n, c in constants.items()}}
            )
            built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(num_warps=warps))
            assert len(built.asm["cubin"]) > 1000
print("compiled")
"""


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_compiles(capability, tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(capability=capability)], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip().endswith("compiled"), done.stderr[-3000:]
