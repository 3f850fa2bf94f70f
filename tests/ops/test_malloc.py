"""Freed memory is kept for the next tensors, unless the environment says otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# pages that the system had to fill for twenty tensors of 64 MiB, one after the other
SCRIPT = """
import resource, torch
from detrkit.ops.malloc import retain_freed_memory
print(retain_freed_memory())
for turn in range(40):
    if turn == 20:  # aligned blocks have to find their places
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
CLEAN = {
    k: v
    for k, v in os.environ.items()
    if not k.startswith(("MALLOC_", "GLIBC_", "DETRKIT_KEEP", "DETRKIT_RETAIN", "LD_PRELOAD"))
}

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


def run(**environment):
    answer = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=CLEAN | environment, capture_output=True, text=True, check=True
    )
    kept, faults = answer.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.slow
def test_pages_are_kept():
    kept, faults = run()
    assert kept
    assert faults < 2000  # one tensor has 16384


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, value",
    [("DETRKIT_RETAIN_FREED_MEMORY", "0"), ("DETRKIT_KEEP_PAGES", "0"), ("MALLOC_MMAP_THRESHOLD_", "131072")],
)
def test_the_environment_decides(name, value):
    kept, faults = run(**{name: value})
    assert not kept
    assert faults > 20_000
