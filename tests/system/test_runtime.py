"""Settings of the allocator, precision and torch.compile."""

import json
import os
import platform
import subprocess
import sys

import pytest
import torch

from engine.system.runtime import start_runtime

PAGES = """
import resource, sys, torch
from engine.system.runtime import start_runtime
if sys.argv[1] == "kept":
    start_runtime("cpu", "fp32", 1, False, 0)
torch.zeros(16 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.zeros(16 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is set up")
def test_the_memory_of_large_tensors_is_reused():
    def faults(mode):
        done = subprocess.run(
            [sys.executable, "-c", PAGES, mode], capture_output=True, text=True, check=True,
            env=os.environ | {"THP_MEM_ALLOC_ENABLE": "0"},
        )  # fmt: skip
        return int(done.stdout)

    # A busy system may reclaim idle pages, so some faults remain.
    assert faults("kept") < 0.5 * faults("default")


HUGE = """
import re, train
import torch
tensor = torch.zeros(16 << 20)
middle, inside = tensor.data_ptr() + tensor.nbytes // 2, False
for line in open("/proc/self/smaps"):
    if found := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
        inside = int(found[1], 16) <= middle < int(found[2], 16)
    elif inside and line.startswith("VmFlags:"):
        print("hg" in line.split())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are requested only on Linux")
def test_a_large_tensor_requests_huge_pages():
    def asked(environment):
        done = subprocess.run(
            [sys.executable, "-c", HUGE], capture_output=True, text=True, check=True,
            env=environment,
        )  # fmt: skip
        return done.stdout.strip()

    own = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
    assert asked(own) == "True"
    assert asked(own | {"THP_MEM_ALLOC_ENABLE": "0"}) == "False"


def test_fp32_is_not_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    start_runtime("cpu", "fp32", 1, False, 0)
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_every_run_of_a_sweep_is_compiled(small, workplace, command, monkeypatch):
    """The backend compiles nothing, to save time. torch still finds the input shapes."""
    compile_model, shapes = torch.compile, []

    def backend(module, inputs):
        shapes.append(module)
        return module.forward

    def compile_for_nothing(model, **options):
        return compile_model(model, backend=backend, **options)

    monkeypatch.setattr(torch, "compile", compile_for_nothing)
    sweep = ["-m", *small, "batch=16,28,32,36,44,50", "epochs=1"]
    assert command("train.py", *sweep, "compile=true", "group=compiled").status == 0
    # A full micro-batch and a short one for each run; torch stops at 8 shapes of one function.
    assert len(shapes) == 12
    assert command("train.py", *sweep, "group=plain").status == 0
    assert len(shapes) == 12
    runs = {}
    for group in ("compiled", "plain"):
        summaries = (workplace / "results" / "runs" / group).glob("*/summary.json")
        runs[group] = sorted(
            (made["batch"], made["test_accuracy"], made["train_loss"])
            for made in (json.loads(path.read_text()) for path in summaries)
        )
    assert runs["compiled"] == [pytest.approx(row) for row in runs["plain"]]
    assert len(runs["plain"]) == 6
