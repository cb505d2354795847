"""Two ranks as torchrun starts them, of which one is killed."""

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
    """Start two ranks by torchrun, wait, kill one of them; return what became of it.

    Returns the seconds until all had ended, torchrun's status and the standard error.
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
    """Find the process of a rank that torchrun's agent has started; None: there is none yet."""
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
    # Beside torchrun's own report: at most the one line of rank 0, and no traceback of a rank.
    assert "/gloo/" not in error and 'train.py", line' not in error
    told = [line for line in error.splitlines() if line.startswith(("interrupted", "error"))]
    assert told in ([], ["interrupted: another rank ended or is out of reach; the same command "
                         "goes on from the last checkpoint"])  # fmt: skip
    for summary in (folder / "results").glob("runs/default/*/summary.json"):
        assert json.loads(summary.read_text())["status"] == "interrupted"


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc")
def test_a_rank_that_is_killed_ends_all_and_leaves_a_run_that_goes_on(
    drawn_tree, workplace, command
):
    run = [*RANKED, f"data.root={drawn_tree}", "epochs=25"]
    runs = workplace / "results" / "runs" / "default"
    ended = kill_one(
        workplace, run, 1, lambda: wait_until(lambda: list(runs.glob("*/checkpoint.pt")))
    )
    assert_ended_resumably(workplace, *ended)
    (directory,) = (workplace / "results" / "runs" / "default").iterdir()
    outcome = command("train.py", *run)
    assert outcome.status == 0 and "going on after epoch" in outcome.out
    assert json.loads((directory / "summary.json").read_text())["status"] == "completed"
    assert len((directory / "metrics.jsonl").read_text().splitlines()) == 25


@pytest.mark.stress
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc")
def test_ranks_killed_at_random_leave_a_run_that_goes_on(drawn_tree, workplace):
    chance = random.Random(0)
    run = [*RANKED, f"data.root={drawn_tree}", "epochs=1000"]
    for _ in range(20):
        # From the imports on; a loaded machine takes some seconds to the first step.
        seconds = 15 * chance.random()
        ended = kill_one(workplace, run, chance.randrange(2), lambda s=seconds: time.sleep(s))
        assert_ended_resumably(workplace, *ended)
    (directory,) = (workplace / "results" / "runs" / "default").iterdir()
    saved = load_checkpoint(directory / "checkpoint.pt")
    assert 20 < saved.epoch < 1000 and math.isfinite(saved.history[-1]["train_loss"])
    assert [row["epoch"] for row in saved.history] == list(range(1, saved.epoch + 1))
