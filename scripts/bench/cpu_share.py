"""Print the CPU share of training epochs, from which `LEAST_CPU_SHARE` is chosen.

    python -m scripts.bench.cpu_share --model resnet8 --batch 128
    taskset -c 0 python -m scripts.bench.cpu_share      # with one thread

Run it on an idle machine. The share is a run's CPU time as a part of what its threads could use
(engine/system/sharing.py). A run whose share falls below the threshold is marked as sharing the
machine.
"""

import argparse
import sys
import time

import torch

from engine.cli import FlagParser, check_ranks, exit_status
from engine.system.sharing import LEAST_CPU_SHARE, SHORTEST_SECONDS, cpu_share
from engine.training.build import MODELS
from engine.training.loop import train_epoch
from scripts.bench.harness import Harness


def main() -> int:
    """Measure as the command line says, and print a line for each epoch and the least share."""
    check_ranks(False)
    parser = FlagParser(
        prog="python -m scripts.bench.cpu_share",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="resnet8", choices=sorted(MODELS))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", type=int, default=10_000, help="images per epoch")
    parser.add_argument("--epochs", type=int, default=5, help="epochs after one to warm up")
    given = parser.parse_args()
    harness = Harness(MODELS[given.model](), given.images, torch.device("cpu"), batch=given.batch)
    threads = harness.setup.runtime.threads
    print(f"{given.model}, batch {given.batch}, {threads} thread{'s' * (threads > 1)}")
    shares = [share_of_epoch(harness) for _ in range(given.epochs + 1)][1:]
    print(f"least {min(shares):.3f}; LEAST_CPU_SHARE is {LEAST_CPU_SHARE}")
    return 0


def share_of_epoch(harness: Harness) -> float:
    """Train an epoch; print and return its CPU share."""
    draws = harness.images.draw_epoch(0, 0)
    cpu_started = time.process_time()
    trained = train_epoch(harness.step, harness.state.scheduler, draws)
    cpu_seconds = time.process_time() - cpu_started
    share = cpu_share(harness.setup.runtime.threads, cpu_seconds, trained.seconds)
    note = "" if trained.seconds >= SHORTEST_SECONDS else "; too short: give more --images"
    print(f"{share:.3f} of the CPUs in {trained.seconds:.1f} s{note}", flush=True)
    return share


if __name__ == "__main__":
    sys.exit(exit_status(main, resumes=False))
