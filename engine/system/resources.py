"""How much memory this process may still come to have, by the machine and by its container.

Linux ends a process that takes more, without a word. Every figure here errs on the high side.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path


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
        for line in (root / "proc/self/cgroup").read_text().splitlines():
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
            most = int((folder / limit).read_text())
            # What it holds beyond this, such as the system's copies of files, can be dropped.
            yield most - _figures(folder / "memory.stat").get(used, 0)


def _figures(path: Path) -> dict[str, int]:
    """Read lines of a name and a number."""
    figures = {}
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            name, *rest = line.replace(":", " ").split() or [""]
            if rest and rest[0].isdigit():
                figures[name] = int(rest[0])
    return figures
