"""What the machine and its container let this process have: CPUs and memory, and memory's peak.

Linux ends a process that takes more memory, without a word. Every figure of what is available errs
on the high side.
"""

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import torch


def available_cpus() -> int:
    """Count the CPUs this process may use: its affinity, and the container's quota."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        cpus = min(cpus, max(1, int(quota) // int(period)))
    return cpus


def reset_peak_memory(device: torch.device) -> None:
    """Start the peak of memory use afresh, where the system lets it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_memory_bytes(device: torch.device) -> int | None:
    """Return the peak since the reset: allocated on a CUDA device, else resident in the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception says that host or device memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The CPU's allocator raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def available_bytes(root: Path = Path("/")) -> int | None:
    """Return the most that this process may have, what it holds by now included; None: unknown.

    Free swap and whatever the system could drop count as available. root: above /proc and /sys.
    """
    found = [*_machine(root), *_containers(root)]
    held = _figures(root / "proc/self/status").get("RssAnon", 0) * 1024
    return min(found) + held if found else None


def _machine(root: Path) -> Iterator[int]:
    memory = _figures(root / "proc/meminfo")
    if "MemAvailable" in memory:
        yield (memory["MemAvailable"] + memory.get("SwapFree", 0)) * 1024


def _containers(root: Path) -> Iterator[int]:
    """Give what is left of each limit above this process: control groups of version 1 and 2."""
    top = root / "sys/fs/cgroup"
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            kinds, _, path = line.partition(":")[2].partition(":")
            if "memory" in kinds.split(","):
                yield from _left(top / "memory", path, "memory.limit_in_bytes", "total_rss")
            elif not kinds:
                yield from _left(top, path, "memory.max", "anon")


def _left(top: Path, path: str, limit: str, used: str) -> Iterator[int]:
    # Inside a container the path may be the host's, and then only the top is there.
    own = top / path.lstrip("/")
    for folder in [own, *own.parents][: len(own.relative_to(top).parts) + 1]:
        with contextlib.suppress(OSError, ValueError):
            most = int((folder / limit).read_text(encoding="utf-8"))
            # What it holds beyond this, such as the system's copies of files, can be dropped.
            yield most - _figures(folder / "memory.stat").get(used, 0)


def _figures(path: Path) -> dict[str, int]:
    """Read lines of a name and a number."""
    figures = {}
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8").splitlines():
            name, *rest = line.replace(":", " ").split() or [""]
            if rest and rest[0].isdigit():
                figures[name] = int(rest[0])
    return figures
