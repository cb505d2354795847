"""Sweeps whose runs train in separate processes, which a test changes and watches."""

import json
import threading
import time

from tests.helpers.runs import STATE, assert_same, state_of

# Code that the processes run before train.py's own; `batch` is the run's.
EACH_EPOCH = """
import os, signal, time
import engine.training.loop
train_epoch = engine.training.loop.train_epoch
batch = int(next(a for a in sys.argv if a.startswith("batch="))[6:])

def changed(step, scheduler, *rest):
    epoch = scheduler.last_epoch // step.plan.steps_per_epoch + 1
    {}
    return train_epoch(step, scheduler, *rest)

engine.training.loop.train_epoch = changed
"""


def directories(work, group="default"):
    """Return a group's run directories by batch."""
    found = {}
    for path in (work / "results" / "runs" / group).glob("*/.hydra"):
        found[int(path.parent.name.split("-b")[1].split("-")[0])] = path.parent
    return found


def summary_of(directory):
    return json.loads((directory / "summary.json").read_text())


def assert_same_run(left, right):
    (state, rows), (other_state, other_rows) = state_of(left), state_of(right)
    for key in STATE:
        assert_same(state[key], other_state[key])
    assert rows == other_rows


def when(condition, act):
    """Call `act` in another thread once the condition holds."""

    def watch():
        until = time.monotonic() + 120
        while time.monotonic() < until and not condition():
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def began(work, *batches):
    """Return True if the runs have each recorded an epoch."""
    found = directories(work)
    files = [found[b] / "metrics.jsonl" for b in batches if b in found]
    return len(files) == len(batches) and all(f.exists() and f.stat().st_size for f in files)
