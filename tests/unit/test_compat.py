"""What medplib tells the C library at import, and what it leaves for later."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, statistics
import medplib
import torch

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**21)  # 8 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(statistics.median([faults() for _ in range(33)]))  # the first few and now and then one: a new place
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
@pytest.mark.parametrize(("setting", "kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_freed_memory_is_used_again(setting: dict[str, str], kept: bool) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_") and name != "GLIBC_TUNABLES"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env={**clean, **setting}, capture_output=True, text=True, check=True)
    assert (float(done.stdout) < 50) is kept, done.stdout  # fresh pages per tensor; 2,048 of 4 KiB make one


@pytest.mark.parametrize("module", ["medplib", "medplib.errors", "medplib.evaluate", "medplib.fit", "medplib.lineage", "medplib.prepare"])
def test_what_starts_or_shows_does_without_torch(module: str) -> None:
    """Importing torch takes a second, which a command that only starts processes, draws pictures or reads JSON need not wait for."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; print('torch' in sys.modules)"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
