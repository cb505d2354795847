"""The machine's settings that a run depends on."""

import platform
import subprocess
import sys

import pytest

PAGES = """
import resource, sys, torch
from engine.runtime import start_runtime
if sys.argv[1] == "kept":
    start_runtime("cpu", "fp32", 1, False, 0)
torch.zeros(16 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.zeros(16 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left alone")
def test_a_large_tensors_memory_is_used_again():
    def faults(mode):
        done = subprocess.run(
            [sys.executable, "-c", PAGES, mode], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    # A busy system may take idle pages back, so not none.
    assert faults("kept") < 0.5 * faults("default")
