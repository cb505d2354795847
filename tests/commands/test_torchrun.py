"""Two ranks started by torchrun, one of which is killed."""

import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from engine.training.checkpoint import load_checkpoint
from tests.helpers import PROJECT
from tests.helpers.runs import RANKED

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch.distributed, gloo"
)


def kill_one(folder, run, victim, wait):
    """Start two ranks with torchrun, call `wait`, then kill the rank `victim`.

    Returns the seconds until all processes ended, torchrun's exit status and its stderr.
    """
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    torchrun = subprocess.Popen(
        [*program, str(PROJECT / "train.py"), *run], cwd=folder, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: process_of(torchrun.pid, victim))
    wait()
    os.kill(process_of(torchrun.pid, victim), signal.SIGKILL)
    started = time.monotonic()
    _, error = torchrun.communicate(timeout=60)
    return time.monotonic() - started, torchrun.returncode, error


def process_of(agent, rank):
    """Return the process id of a rank that torchrun's agent started, or None if not yet started."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == agent and f"RANK={rank}".encode() in (
                (place / "environ").read_bytes().split(b"\0")
            ):
                return int(place.name)
    return None


def wait_until(condition):
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def assert_ended_resumably(folder, seconds, status, error):
    assert seconds < 30 and status != 0
    # Besides torchrun's own report: at most one line from rank 0, and no traceback of a rank.
    assert "/gloo/" not in error and 'train.py", line' not in error
    printed = [line for line in error.splitlines() if line.startswith(("interrupted", "error"))]
    line = (
        "interrupted: another rank ended or cannot be reached; run the same command again to "
        "resume from the last checkpoint"
    )
    assert printed in ([], [line])
    for summary in (folder / "results").glob("runs/default/*/summary.json"):
        assert json.loads(summary.read_text())["status"] == "interrupted"


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc")
def test_a_killed_rank_ends_all_ranks_and_the_run_can_be_resumed(drawn_tree, workplace, command):
    run = [*RANKED, f"data.root={drawn_tree}", "epochs=25"]
    runs = workplace / "results" / "runs" / "default"
    ended = kill_one(
        workplace, run, 1, lambda: wait_until(lambda: list(runs.glob("*/checkpoint.pt")))
    )
    assert_ended_resumably(workplace, *ended)
    (directory,) = (workplace / "results" / "runs" / "default").iterdir()
    outcome = command("train.py", *run)
    assert outcome.status == 0 and "resuming  after epoch" in outcome.out
    assert json.loads((directory / "summary.json").read_text())["status"] == "completed"
    assert len((directory / "metrics.jsonl").read_text().splitlines()) == 25


@pytest.mark.stress
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc")
def test_a_run_can_be_resumed_after_ranks_are_killed_at_random_times(drawn_tree, workplace):
    chance = random.Random(0)
    run = [*RANKED, f"data.root={drawn_tree}", "epochs=1000"]
    for _ in range(20):
        # This covers the imports as well: a loaded machine takes seconds to the first step.
        seconds = 15 * chance.random()
        ended = kill_one(workplace, run, chance.randrange(2), lambda s=seconds: time.sleep(s))
        assert_ended_resumably(workplace, *ended)
    (directory,) = (workplace / "results" / "runs" / "default").iterdir()
    saved = load_checkpoint(directory / "checkpoint.pt")
    assert 20 < saved.epoch < 1000 and math.isfinite(saved.history[-1]["train_loss"])
    assert [row["epoch"] for row in saved.history] == list(range(1, saved.epoch + 1))
