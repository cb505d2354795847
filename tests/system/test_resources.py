"""The memory that the machine and its container have available."""

import pytest

from engine.system.resources import available_bytes

MIB = 2**20


def machine(root, files):
    """Write these files, and those of a machine with 8000 MiB available and 100 MiB of swap."""
    meminfo = "MemTotal: 9999 kB\nMemAvailable: {} kB\nSwapFree: {} kB\n"
    files = {"proc/meminfo": meminfo.format(8000 * 1024, 100 * 1024)} | files
    files |= {"proc/self/status": f"Name: python\nRssAnon:\t{300 * 1024} kB\n"}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8100),
        # Version 2: the smallest unused amount over all parent groups. "max" is no limit.
        (
            {
                "proc/self/cgroup": "0::/job/step\n",
                "sys/fs/cgroup/job/step/memory.max": "max\n",
                "sys/fs/cgroup/job/step/memory.stat": "anon 1\nfile 2\n",
                "sys/fs/cgroup/job/memory.max": f"{4000 * MIB}\n",
                "sys/fs/cgroup/job/memory.stat": f"anon {500 * MIB}\nfile {3000 * MIB}\n",
            },
            3500,
        ),
        # Inside a container the path is the host's, and the container's group is the root.
        (
            {
                "proc/self/cgroup": "0::/docker/abc\n",
                "sys/fs/cgroup/memory.max": f"{2000 * MIB}\n",
                "sys/fs/cgroup/memory.stat": f"anon {400 * MIB}\n",
            },
            1600,
        ),
        # Version 1, next to version 2, which has no limits.
        (
            {
                "proc/self/cgroup": "9:pids:/x\n4:cpu,memory:/job\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.stat": "total_rss 1\n",
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{1000 * MIB}\n",
                "sys/fs/cgroup/memory/job/memory.stat": f"cache 7\ntotal_rss {900 * MIB}\n",
            },
            100,
        ),
        ({"proc/self/cgroup": "something else\n"}, 8100),
    ],
    ids=["machine", "version 2", "container", "version 1", "unknown"],
)
def test_available_memory_is_read_from_machine_and_container(tmp_path, files, expected):
    assert available_bytes(machine(tmp_path, files)) == (expected + 300) * MIB


def test_available_memory_is_none_if_unknown(tmp_path):
    assert available_bytes(tmp_path) is None
