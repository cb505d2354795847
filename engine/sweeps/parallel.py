"""Decides how many runs of a sweep train at once on this machine, and with how many threads each.

One run seldom uses all cores well: small batches and the parts between steps leave some idle. The
decision rests on cores, memory, device and a short measurement (speeds.py). If the
command gives `parallel=N` or chooses one of Hydra's launchers, that decides instead.
"""

import heapq
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.config.compose import Job
from engine.config.hydra_rules import is_launchers
from engine.config.wrapped import stepper
from engine.data.dataset import load_data
from engine.errors import key_error
from engine.runs.claims import claimed_threads
from engine.runs.run import Run
from engine.sweeps.launch import launcher_threads
from engine.sweeps.speeds import (
    BUDGET_SECONDS,
    load_speeds,
    measure_speeds,
    store_speeds,
    training_flops,
)
from engine.system.resources import available_bytes, available_cpus
from engine.system.runtime import choose_device, choose_precision, device_name
from engine.training.memory import largest_pass, needed_bytes
from engine.training.plan import Plan

# Memory that a process takes besides a run's estimate: libraries, workspaces, a CUDA context.
PROCESS_BYTES = 1.5 * 2**30
# In a shorter sweep, measuring and starting processes may take longer than they save.
LONG_SECONDS = 120.0
# More runs at once must be faster by this fraction, since every process adds overhead.
LEAST_GAIN = 0.03
# Rates that no run exceeds by much, in FLOP/s: of a CPU core, and of a GPU at small networks.
CORE_FLOPS, GPU_FLOPS = 1e11, 2e13
# At most this many numbers of runs at once can be measured within the time limit.
MOST_CANDIDATES = 7
ONE = "parallel  1 run at a time (parallel=2 for two): "


@dataclass(frozen=True)
class Way:
    """How a sweep trains its runs.

    Attributes:
        at_once: how many runs train at once, each in a process; None: Hydra's launcher trains them,
            by default one at a time in this process.
        threads: CPU threads of a run that has none yet; None: its own machine decides.
        replaces: True if these threads replace those of an earlier sweep, for runs that have not
            begun.
        line: what to print about it; "" for nothing.

    """

    at_once: int | None
    threads: int | None
    replaces: bool = False
    line: str = ""


def choose_way(
    jobs: Sequence[Job], plans: Sequence[Plan], hydra_overrides: Sequence[str], total: int
) -> Way:
    """Decide how the jobs are trained; raise UserError if `parallel` of them do not fit in memory.

    Args:
        jobs: the runs that are not finished.
        plans: their plans.
        hydra_overrides: overrides of Hydra's own keys.
        total: the number of the sweep's runs, finished ones included.

    """
    if any(map(is_launchers, hydra_overrides)):
        return Way(None, launcher_threads(hydra_overrides, len(jobs)), replaces=True)
    wanted, cpus = jobs[0].config.parallel if jobs else 1, available_cpus()
    if wanted == 1 or (wanted == "auto" and len(jobs) == 1):
        return Way(None, cpus, replaces=wanted == 1)
    if wanted == "auto":
        kept = kept_threads(jobs)
        if kept is None:
            return choose_fastest(jobs, plans, cpus)
        return resume(jobs, plans, cpus, kept)
    at_once, fits = min(wanted, len(jobs)), count_fitting(jobs, plans)
    if at_once > fits:
        allowed = f"at most {fits} of these runs fit{'s' * (fits == 1)} into memory at once"
        raise key_error("parallel", wanted, allowed)
    # Not divided by the number of pending jobs, so that a restarted sweep decides the same.
    threads = max(1, cpus // min(wanted, total))
    line = describe(at_once, jobs[0].config.threads or threads, device_of(jobs[0]).type)
    return Way(at_once, threads, replaces=True, line=line)


def kept_threads(jobs: Sequence[Job]) -> int | None:
    """Return the most threads of the runs, if an earlier sweep claimed them all; otherwise None."""
    kept = [
        claimed_threads(Run(job.config).directory)
        for job in jobs
        if job.config.resume and job.config.threads is None
    ]
    threads = [number for number in kept if number is not None]
    return max(threads) if len(threads) == len(jobs) else None


def resume(jobs: Sequence[Job], plans: Sequence[Plan], cpus: int, threads: int) -> Way:
    """Decide how many runs train at once that keep the threads of an earlier sweep."""
    at_once = min(len(jobs), cpus // threads)
    at_once = min(at_once, count_fitting(jobs, plans)) if at_once > 1 else 1
    if at_once == 1:
        return Way(None, cpus, line=ONE + "the runs keep their threads")
    return Way(at_once, threads, line=describe(at_once, threads, device_of(jobs[0]).type))


def choose_fastest(jobs: Sequence[Job], plans: Sequence[Plan], cpus: int) -> Way:
    """Decide how many of several runs train at once, after a measurement if they take long."""
    flops = [training_flops(job.config.model) for job in jobs]
    work = [f * plan.train_examples * plan.epochs for f, plan in zip(flops, plans, strict=True)]
    # The run with the most work is measured. The others count as images of its model.
    place = work.index(max(work))
    job, plan, images = jobs[place], plans[place], [w / flops[place] for w in work]
    device = device_of(job)
    key = calibration_key(job, device, cpus)
    speeds = load_speeds(key)
    guessed = GPU_FLOPS if device.type == "cuda" else CORE_FLOPS * cpus
    rate = (speeds and speeds.rates.get(1)) or guessed / flops[place]
    if sum(images) / rate <= LONG_SECONDS:
        return Way(None, cpus, line=ONE + "a short sweep gains nothing from more")
    numbers = candidates(cpus, min(len(jobs), count_fitting(jobs, plans)))
    if len(numbers) == 1:
        return Way(None, cpus, line=ONE + "no more fit into memory, or there is one CPU")
    threads = {number: job.config.threads or cpus // number for number in numbers}
    if speeds is None or not threads.keys() <= speeds.rates.keys():
        seconds = f"{BUDGET_SECONDS:.0f} s"
        print(f"parallel  measuring how many runs to train at once, at most {seconds}", flush=True)
        classes = len(load_data(job.config.data).classes)
        speeds = measure_speeds(job.config, classes, plan.train_examples, threads, flops[place])
        # On a machine that was busy for the moment too little is known to keep it.
        if len(speeds.measured()) > 1:
            store_speeds(key, speeds)
    rates = {number: rate for number, rate in speeds.measured().items() if number in threads}
    at_once, gain = fastest(images, rates, speeds.startup_seconds)
    if at_once == 1:
        return Way(None, cpus, line=ONE + "more at once are not faster here")
    line = describe(at_once, threads[at_once], device.type, gain)
    return Way(at_once, cpus // at_once, line=line)


def candidates(cpus: int, most: int) -> list[int]:
    """Return the numbers of runs at once to measure, ascending: powers of two and divisors.

    Args:
        cpus: available CPUs.
        most: the largest number to consider; at least 1.

    >>> candidates(12, 12), candidates(96, 40)
    ([1, 2, 3, 4, 6, 8, 12], [1, 2, 4, 8, 16, 32])
    """
    numbers = range(1, min(cpus, most) + 1)
    powers = [n for n in numbers if n & (n - 1) == 0]
    both = [n for n in numbers if n in powers or cpus % n == 0]
    return both if len(both) <= MOST_CANDIDATES else powers


def fastest(
    images: Sequence[float], rates: Mapping[int, float], startup_seconds: float
) -> tuple[int, float]:
    """Return the number of runs at once that finishes soonest, and its speed over one at a time.

    Returns 1 unless more are faster by `LEAST_GAIN`.

    Args:
        images: images that each run trains on, in the order in which runs start.
        rates: images per second of all runs together, by the number of runs at once.
        startup_seconds: time until a process begins to train.

    """
    if 1 not in rates:
        return 1, 1.0
    seconds = {n: makespan(images, n, rate, startup_seconds) for n, rate in rates.items()}
    best = min(seconds, key=lambda n: seconds[n])
    gain = seconds[1] / seconds[best]
    return (best, gain) if seconds[best] <= (1 - LEAST_GAIN) * seconds[1] else (1, 1.0)


def makespan(images: Sequence[float], at_once: int, rate: float, startup_seconds: float) -> float:
    """Return the seconds from the start of the first run to the end of the last.

    A run starts as soon as fewer than `at_once` runs are training. With `at_once` 1, the runs train
    in this process, so `startup_seconds` is not added.

    Args:
        images: images that each run trains on, in the order in which runs start.
        at_once: number of runs that train at once.
        rate: images per second of all runs together.
        startup_seconds: time until a process begins to train.

    """
    ends = [0.0] * at_once
    for count in images:
        startup = startup_seconds if at_once > 1 else 0.0
        heapq.heapreplace(ends, ends[0] + startup + count * at_once / rate)
    return max(ends)


def count_fitting(jobs: Sequence[Job], plans: Sequence[Plan]) -> int:
    """Return how many of the runs fit into memory at once, each counted as the largest; at least 1.

    A run's estimate is a lower bound, so `PROCESS_BYTES` are added for each.
    """
    distinct = {}
    for job, plan in zip(jobs, plans, strict=True):
        c = job.config
        # LARSWrapper adds a copy of the gradients, and Muon's weights have less state than others.
        state = c.optimizer.label, stepper(c.optimizer).state_tensors
        requirements = (c.model, c.data, state, c.ema, c.precision, c.device, largest_pass(plan))
        distinct[requirements] = (c, plan)
    needed = max(needed_bytes(c, load_data(c.data), plan) for c, plan in distinct.values())
    device, host = device_of(jobs[0]), available_bytes()
    on_host = PROCESS_BYTES if device.type == "cuda" else PROCESS_BYTES + needed
    found = [len(jobs)] if host is None else [int(host // on_host)]
    if device.type == "cuda":
        found.append(int(free_device_bytes(device) // (PROCESS_BYTES + needed)))
    return max(1, min(found))


def free_device_bytes(device: torch.device) -> int:
    """Return the free memory of a CUDA device in bytes."""
    return torch.cuda.mem_get_info(device)[0]


def device_of(job: Job) -> torch.device:
    """Return the device that a run trains on; raise UserError if this machine lacks it."""
    return choose_device(job.config.device)


def calibration_key(job: Job, device: torch.device, cpus: int) -> str:
    """Return what measured speeds depend on, as text."""
    config = job.config
    precision = choose_precision(config.precision, device)
    threads = "" if config.threads is None else f", {config.threads} threads each"
    return (
        f"{device_name(device)}, torch {torch.__version__}, {cpus} CPUs{threads}, "
        f"{config.model.name}, {precision}"
    )


def describe(at_once: int, threads: int, device: str, gain: float | None = None) -> str:
    """Return the line that says how many runs train at once.

    >>> describe(2, 1, "cpu", 1.219)
    'parallel  2 runs at once, 1 thread each: 1.22 times one at a time; parallel=1 for one'
    """
    text = f"parallel  {at_once} run{'s' * (at_once > 1)} at once, "
    text += f"{threads} thread{'s' * (threads > 1)} each"
    if device == "cuda" and shares_gpu():
        text += ", on one GPU by NVIDIA's Multi-Process Service"
    if gain is not None:
        text += f": {gain:.2f} times one at a time; parallel=1 for one"
    return text


def shares_gpu() -> bool:
    """Return True if NVIDIA's Multi-Process Service runs, so that processes compute side by side.

    Without it a GPU takes turns between processes.
    """
    folder = os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")
    return (Path(folder) / "control").exists()
