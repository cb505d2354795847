"""Detects whether other processes took CPU time from a run, so that its times are not comparable.

There are two signs. Another process of this host holds the lock of a run that this sweep did not
start. Or, on the CPU, the process got less CPU time than its threads use if nothing disturbs them.
"""

import math
import os
import time
from collections.abc import Iterable
from pathlib import Path

from engine.system.lock import holders_here
from engine.system.resources import available_cpus, parent_of, runs_at_once
from engine.system.runtime import Runtime

# The locks of a large folder of runs take a while to read, so they are read this often at most.
LOOK_SECONDS = 10.0
# The least share of its CPUs that an undisturbed run uses during its steps. On two idle cores,
# `python -m scripts.bench.cpu_share` prints 0.974 or more for ResNet-8 at batch 128 and 8192 and
# for ResNet-18, on one thread and on two, and 0.928 for ResNet-8 at batch 64. On a virtual machine
# whose host was busy it was 0.80. Next to one busy process it is 0.53 to 0.56 on two threads.
LEAST_CPU_SHARE = 0.7
# More threads are idle for longer between parallel loops. No such machine has been measured yet.
LEAST_OF_MANY_THREADS = 0.5
# Steps that took less time than this are not judged. A short system task would distort them.
SHORTEST_SECONDS = 1.0


class Neighbors:
    """The processes of this host that train runs which this sweep did not start.

    Args:
        runs: the folder of all groups' runs; their locks are `<runs>/<group>/<run>/.lock`.

    """

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self.looked = -math.inf

    def seen(self) -> bool:
        """Return True if there is one now; False within `LOOK_SECONDS` of the last look."""
        now = time.monotonic()
        if now - self.looked < LOOK_SECONDS:
            return False
        self.looked = now
        return any(not of_this_sweep(pid) for pid in holders_here(self.runs))


def of_this_sweep(pid: int) -> bool:
    """Return True for this process and, inside a parallel sweep, for the sweep's other workers.

    A process whose parent is not known counts as a worker. A sweep of one run at once has no other
    workers, and two commands of one shell have the same parent too.
    """
    if pid == os.getpid():
        return True
    return runs_at_once() > 1 and parent_of(pid) in (os.getppid(), None)


def lacked_cpu(runtime: Runtime, cpu_seconds: float, seconds: float) -> bool:
    """Return True if training steps on the CPU got less CPU time than in an undisturbed run.

    Steps on other devices, and those of several ranks, which wait for each other, are not judged.

    Args:
        runtime: the runtime of the steps.
        cpu_seconds: CPU time of this process during the steps, in seconds.
        seconds: wall time of the steps, in seconds.

    """
    if runtime.device.type != "cpu" or runtime.world_size > 1 or seconds < SHORTEST_SECONDS:
        return False
    least = LEAST_CPU_SHARE if runtime.threads <= 2 else min(LEAST_CPU_SHARE, LEAST_OF_MANY_THREADS)
    return cpu_share(runtime.threads, cpu_seconds, seconds) < least


def combine(verdicts: Iterable[bool | None]) -> bool | None:
    """Return a run's verdict from its epochs'; None if it is not known of one, or there is none."""
    found = set(verdicts)
    if True in found:
        return True
    return False if found == {False} else None


def cpu_share(threads: int, cpu_seconds: float, seconds: float) -> float:
    """Return CPU time as a fraction of what the run's threads could use in `seconds` of wall time.

    The runs of one parallel sweep divide the CPUs, so each can use only its part of them.
    """
    return cpu_seconds / (seconds * min(threads, available_cpus() / runs_at_once()))
