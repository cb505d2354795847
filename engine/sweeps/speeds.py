"""How fast a machine trains with several runs at once: measured briefly, and kept for later sweeps.

The measurements are in results/runs/.calibration.json. A damaged or removed file only means that
the next long sweep measures again.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from engine.config.schema import Config, ModelConfig
from engine.data import SIDE
from engine.runs.records import RESULTS
from engine.sweeps.calibrate import SECONDS
from engine.sweeps.launch import python_path
from engine.system.files import write_text_atomically
from engine.training.build import build_model

BUDGET_SECONDS = 15.0
LARGEST_BATCH, SMALLEST_BATCH = 512, 16
# FLOPs of a step at the largest batch, so that one core takes a step in about half a second.
STEP_FLOPS = 5e10


@dataclass(frozen=True)
class Speeds:
    """What was measured.

    Attributes:
        rates: images per second of all runs together, by the number of runs at once; None if that
            number could not be measured in time.
        startup_seconds: time until a process begins to train.

    """

    rates: Mapping[int, float | None]
    startup_seconds: float

    def measured(self) -> dict[int, float]:
        """Return the rates that were measured."""
        return {number: rate for number, rate in self.rates.items() if rate}


@functools.cache
def training_flops(config: ModelConfig) -> float:
    """Return the FLOPs per image of a training step; the backward pass has twice the forward's."""
    with FakeTensorMode(), FlopCounterMode(display=False) as counter, torch.no_grad():
        build_model(config, num_classes=10).eval()(torch.empty(1, 3, SIDE, SIDE))
    return 3.0 * counter.get_total_flops()


def load_speeds(key: str) -> Speeds | None:
    """Return what was measured under a key, or None."""
    try:
        entry = _read()[key]
        rates = {int(n): None if r is None else float(r) for n, r in entry["rates"].items()}
        speeds = Speeds(rates, float(entry["startup_seconds"]))
    except (AttributeError, LookupError, TypeError, ValueError):
        return None
    numbers = [speeds.startup_seconds, *(rate or 0.0 for rate in rates.values())]
    return speeds if all(math.isfinite(n) and n >= 0 for n in numbers) else None


def store_speeds(key: str, speeds: Speeds) -> None:
    """Keep what was measured for later sweeps, if the disk allows it."""
    entry = {"rates": dict(speeds.rates), "startup_seconds": speeds.startup_seconds}
    with contextlib.suppress(OSError):
        (RESULTS / "runs").mkdir(parents=True, exist_ok=True)
        text = json.dumps(_read() | {key: entry}, indent=2, allow_nan=False)
        write_text_atomically(RESULTS / "runs" / ".calibration.json", text + "\n")


def _read() -> dict[str, Any]:
    try:
        found = json.loads((RESULTS / "runs" / ".calibration.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def measure_speeds(
    config: Config,
    classes: int,
    train_examples: int,
    threads: Mapping[int, int],
    flops: float,
) -> Speeds:
    """Train copies of a run at once for a moment, in processes that end before this returns.

    Takes at most `BUDGET_SECONDS`. What does not fit into that time is not measured.

    Args:
        config: the run's configuration.
        classes: number of classes.
        train_examples: size of the training split.
        threads: the numbers of runs at once to measure, in ascending order, with the threads of
            each run.
        flops: FLOPs per image of a training step.

    """
    started = time.monotonic()
    deadline = started + BUDGET_SECONDS
    batch = max(SMALLEST_BATCH, min(LARGEST_BATCH, int(STEP_FLOPS / flops)))
    small = shortened(config, min(config.batch, batch))
    asked = {
        "config": small.to_dict(),
        "classes": classes,
        # Whole batches only, so that no last batch is too small for batch norm.
        "train_examples": train_examples // small.batch * small.batch,
    }
    rates: dict[int, float | None] = dict.fromkeys(threads)
    with started_workers(max(threads)) as workers:
        # The rest of the time is for one run alone and two at once.
        answers = ask(workers, json.dumps(asked), deadline - 3 * SECONDS)
        ready = [w for w, answer in zip(workers, answers, strict=True) if answer == "ready"]
        startup = time.monotonic() - started
        for number, each in threads.items():
            if number > len(ready) or time.monotonic() + 1.5 * SECONDS > deadline:
                continue
            answers = ask(ready[:number], str(each), deadline)
            with contextlib.suppress(ValueError):
                rates[number] = sum(map(float, answers))
    return Speeds(rates, startup)


def shortened(config: Config, batch: int) -> Config:
    """Return a run's configuration with a smaller batch, and without what costs time to start."""
    ghost = config.model.ghost_batch
    micro_batch = min(config.micro_batch, batch)
    model = dataclasses.replace(
        config.model, ghost_batch=None if ghost is None else min(ghost, micro_batch)
    )
    return dataclasses.replace(
        config, batch=batch, micro_batch=micro_batch, model=model, compile=False, noise_scale=False
    )


@contextlib.contextmanager
def started_workers(number: int) -> Iterator[list["subprocess.Popen[str]"]]:
    """Yield `number` processes of calibrate.py, which are killed at the end of the block."""
    workers: list[subprocess.Popen[str]] = []
    try:
        for _ in range(number):
            worker = subprocess.Popen(
                [sys.executable, "-m", "engine.sweeps.calibrate"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": python_path()},
            )
            workers.append(worker)
        yield workers
    finally:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.communicate()


def ask(workers: Sequence["subprocess.Popen[str]"], line: str, deadline: float) -> list[str]:
    """Write a line to each process, and return their answers; an empty text if none came in time.

    Args:
        workers: the processes.
        line: the line, without its end.
        deadline: when to stop waiting, by time.monotonic.

    """
    answers = []
    for worker in workers:
        assert worker.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            worker.stdin.write(f"{line}\n")
            worker.stdin.flush()
    for worker in workers:
        assert worker.stdout is not None
        remaining = max(0.0, deadline - time.monotonic())
        answered = select.select([worker.stdout], [], [], remaining)[0]
        answers.append(worker.stdout.readline().strip() if answered else "")
    return answers
