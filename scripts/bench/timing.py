"""Timing by interleaving, so that whatever else the machine does falls on every candidate."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Candidate:
    """A step to be timed, and what is to be done, untimed, before each."""

    step: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


def interleave(
    candidates: dict[str, Candidate], rounds: int, device: torch.device, warmup: int = 3
) -> dict[str, list[float]]:
    """Return each candidate's seconds, one for each round; the order rotates between rounds."""
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
    """Return median, fastest, and the quartiles that bound the middle half, in milliseconds."""
    low, median, high = (1000 * s for s in statistics.quantiles(seconds, n=4, method="inclusive"))
    return {"median_ms": median, "min_ms": 1000 * min(seconds), "q1_ms": low, "q3_ms": high}


def copy_bandwidth(device: torch.device, megabytes: int = 256, rounds: int = 15) -> float:
    """Return the bytes a second of a large copy, read and write counted; the fastest round's."""
    source = torch.ones(megabytes * 2**20 // 4, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    return moved / fastest(lambda: target.copy_(source), device, rounds)


def fastest(step: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Return the seconds of the fastest of several rounds: what a ceiling is worked out from."""
    return min(_time(step, device) for _ in range(rounds))


def _time(step: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
