import os
import platform
import subprocess
import sys

import pytest

from fpsde.memory import kept_memory

FAULTS = """
import resource
import torch
from fpsde.memory import kept_memory

def faults_of_a_step():
    # Page faults of making and dropping tensors of 64 MB, above the largest threshold that glibc comes to by itself.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2**24) for _ in range(2)]
    del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with kept_memory(), kept_memory():
    kept = min(faults_of_a_step() for _ in range(4))
print(kept, faults_of_a_step())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_memory_is_kept_while_asked_and_given_back():
    """In a process of its own: how far a heap can grow depends on what has run before."""
    free = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, env=free)
    kept, returned = map(int, run.stdout.split())
    assert 10 * kept < returned


def test_what_the_environment_says_stands(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    monkeypatch.setattr("fpsde.memory.ctypes.CDLL", None)
    with kept_memory():
        pass
