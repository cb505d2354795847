"""The machine and the software versions recorded with each benchmark result."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

from engine.system.runtime import commit, device_name

# The instruction sets that decide the speed of training, by the kernel's name for them.
INSTRUCTION_SETS = {
    "amx_bf16": "AMX",
    "avx512_bf16": "AVX-512 bf16",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
    "svebf16": "SVE bf16",
    "sve": "SVE",
    "asimd": "NEON",
}
PACKAGES = ("torch", "torchvision", "timm", "pytorch_optimizer")


def environment(device: torch.device) -> dict[str, Any]:
    """Return the facts recorded with a benchmark result: date, machine, versions, commit, load."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device.type,
        "device_name": device_name(device),
        "instruction_sets": instruction_sets() if device.type == "cpu" else [],
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {package: version_of(package) for package in PACKAGES},
        "commit": commit(),
        "load_average": os.getloadavg()[0],
    }


def instruction_sets(path: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Return the CPU's instruction sets of `INSTRUCTION_SETS`; none if the file cannot be read."""
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8").splitlines():
            name, _, flags = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return [title for flag, title in INSTRUCTION_SETS.items() if flag in flags.split()]
    return []


def version_of(package: str) -> str | None:
    """Return the version of an installed package, None if it is not installed."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None
