import platform
import resource

import pytest
import torch

from fpsde.memory import kept_memory


def faults_of_a_step():
    """Page faults of making and dropping tensors of 64 MB, above the largest threshold that glibc comes to by itself."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2**24) for _ in range(2)]
    del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_memory_is_kept_while_asked_and_given_back(monkeypatch):
    for name in ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    with kept_memory(), kept_memory():
        kept = min(faults_of_a_step() for _ in range(4))
    returned = faults_of_a_step()
    assert 10 * kept < returned


def test_what_the_environment_says_stands(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    monkeypatch.setattr("fpsde.memory.ctypes.CDLL", None)
    with kept_memory():
        pass
