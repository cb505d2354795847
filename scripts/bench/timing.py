"""Interleaved timing, so that other load on the machine affects every candidate equally."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Candidate:
    """A step to time.

    Attributes:
        step: the timed function.
        prepare: called before each step, not timed.

    """

    step: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


def interleave(
    candidates: dict[str, Candidate], rounds: int, device: torch.device, warmup: int = 3
) -> dict[str, list[float]]:
    """Time each candidate once per round, in an order that rotates between rounds.

    Returns the seconds of each round, by candidate.

    Args:
        candidates: the candidates, by name.
        rounds: number of timings of each.
        device: synchronized before and after each step.
        warmup: number of earlier rounds, which are not returned.

    """
    names = list(candidates)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warmup, rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            candidate = candidates[name]
            candidate.prepare()
            elapsed = _time(candidate.step, device)
            if turn >= 0:
                seconds[name].append(elapsed)
    return seconds


def summarise(seconds: list[float]) -> dict[str, float]:
    """Return the median, the minimum and both quartiles of some seconds, in milliseconds."""
    low, median, high = (1000 * s for s in statistics.quantiles(seconds, n=4, method="inclusive"))
    return {"median_ms": median, "min_ms": 1000 * min(seconds), "q1_ms": low, "q3_ms": high}


def copy_bandwidth(device: torch.device, megabytes: int = 256, rounds: int = 15) -> float:
    """Return the bytes per second of a large copy, reads and writes counted, in the fastest round.

    Args:
        device: where to copy.
        megabytes: size of the copy in MiB.
        rounds: number of timings.

    """
    source = torch.ones(megabytes * 2**20 // 4, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    return moved / fastest(lambda: target.copy_(source), device, rounds)


def fastest(step: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Return the seconds of the fastest of several rounds."""
    return min(_time(step, device) for _ in range(rounds))


def _time(step: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
