"""The CPUs and memory that this process may use, and its peak memory.

Linux kills a process that exceeds its memory, without an error message. Every estimate of available
memory here is an upper bound.
"""

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

# Set by a sweep that trains several runs at once, for the processes that it starts.
RUNS_AT_ONCE = "LARS_BENCH_RUNS_AT_ONCE"


def in_sweep() -> bool:
    """Return True if a sweep started this run."""
    return RUNS_AT_ONCE in os.environ


def runs_at_once() -> int:
    """Return how many runs the sweep trains at once, this one included; 1 outside of a sweep."""
    given = os.environ.get(RUNS_AT_ONCE, "")
    return max(1, int(given)) if given.isdecimal() else 1


def parent_of(pid: int) -> int | None:
    """Return the process ID of a process's parent; None if it has ended or is not known."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        # The second field is the command in parentheses, which may contain anything.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(fields.rpartition(")")[2].split()[1])
    return None


def available_cpus() -> int:
    """Return the number of CPUs this process may use, by its affinity and its container's quota."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        cpus = min(cpus, max(1, int(quota) // int(period)))
    return cpus


def reset_peak_memory(device: torch.device) -> None:
    """Reset the recorded peak of memory use, if the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_memory_bytes(device: torch.device) -> int | None:
    """Return the peak memory in bytes since the reset, or None if unknown.

    On a CUDA device this is the allocated memory, otherwise the process's resident memory.
    """
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
    """Return True if an exception means that host or device memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch's CPU allocator raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def available_bytes(root: Path = Path("/")) -> int | None:
    """Return the most bytes this process may hold, including what it holds now; None if unknown.

    Free swap and memory that the system can reclaim count as available.

    Args:
        root: the directory that contains `proc` and `sys`.

    """
    found = [*_machine(root), *_containers(root)]
    held = _figures(root / "proc/self/status").get("RssAnon", 0) * 1024
    return min(found) + held if found else None


def _machine(root: Path) -> Iterator[int]:
    memory = _figures(root / "proc/meminfo")
    if "MemAvailable" in memory:
        yield (memory["MemAvailable"] + memory.get("SwapFree", 0)) * 1024


def _containers(root: Path) -> Iterator[int]:
    """Yield the unused bytes of each cgroup limit on this process, for cgroup versions 1 and 2."""
    top = root / "sys/fs/cgroup"
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            controllers, _, path = line.partition(":")[2].partition(":")
            if "memory" in controllers.split(","):
                yield from _unused(top / "memory", path, "memory.limit_in_bytes", "total_rss")
            elif not controllers:
                yield from _unused(top, path, "memory.max", "anon")


def _unused(top: Path, path: str, limit: str, used: str) -> Iterator[int]:
    # Inside a container the path may be the host's. Then only `top` exists.
    own = top / path.lstrip("/")
    for folder in [own, *own.parents][: len(own.relative_to(top).parts) + 1]:
        with contextlib.suppress(OSError, ValueError):
            most = int((folder / limit).read_text(encoding="utf-8"))
            # The group's other memory, such as the page cache, can be reclaimed.
            yield most - _figures(folder / "memory.stat").get(used, 0)


def _figures(path: Path) -> dict[str, int]:
    """Read the lines `name number` of a file; return an empty dictionary if it cannot be read."""
    figures = {}
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8").splitlines():
            name, *rest = line.replace(":", " ").split() or [""]
            if rest and rest[0].isdigit():
                figures[name] = int(rest[0])
    return figures
