"""Runs that are killed or stopped at random times, and started again until they finish.

Each must be bit-equal to an uninterrupted run. The normal test suite does a few of them, and
`make stress` the numbers below.
"""

import contextlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time

import pytest
from tqdm import tqdm

from tests.helpers import PROJECT
from tests.helpers.runs import STATE, TOOLBOX, assert_same, only_run, state_of

KILLS = 100
TERMS = 30
# The numbers in the normal test suite.
FEW_KILLS, FEW_TERMS = 2, 1

EPOCHS, STEPS = 6, 24
PRELOADED = [
    "train", "engine.training.build", "engine.data.dataset", "engine.training.loop",
    "engine.runs.run", "torch.utils.tensorboard", "torchvision.models",
]  # fmt: skip


def attempt(arguments, folder, slow):
    """Run train.py in this process, and log its steps and its saves.

    Args:
        arguments: train.py's arguments.
        folder: the working directory.
        slow: seconds added to each write of a checkpoint and to each rename.

    """
    import engine.system.files
    import engine.training.checkpoint
    import train
    from engine.cli import exit_status
    from schedulers import WarmupLR

    # By default tqdm creates a semaphore, which would outlive a killed process.
    tqdm.set_lock(threading.RLock())
    os.chdir(folder)
    out = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    steps = os.open("steps.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    step, write_checkpoint = WarmupLR.step, engine.training.checkpoint.write_checkpoint
    write, replace = engine.system.files.HashingWriter.write, os.replace

    def logged_step(self, *rest):
        step(self, *rest)
        os.write(steps, f"step {self.last_epoch}\n".encode())

    def logged_save(path, content):
        write_checkpoint(path, content)
        os.write(steps, f"saved {content['scheduler']['last_epoch']}\n".encode())

    def slow_write(self, data):
        time.sleep(slow)
        return write(self, data)

    def slow_replace(*paths):
        time.sleep(slow)
        replace(*paths)

    WarmupLR.step = logged_step
    engine.training.checkpoint.write_checkpoint = logged_save
    engine.system.files.HashingWriter.write = slow_write
    engine.system.files.os.replace = slow_replace
    sys.argv = ["train.py", *arguments]
    sys.exit(exit_status(train.main))


class Trial:
    """One run in a separate directory, which is started until it finishes."""

    def __init__(self, folder, overrides, slow):
        self.folder, self.overrides, self.slow = folder, overrides, slow
        folder.mkdir()

    def start(self):
        fork = multiprocessing.get_context("forkserver")
        # The modules are imported once for all attempts, so that a run takes a second.
        fork.set_forkserver_preload(["tests.commands.test_stress", *PRELOADED])
        process = fork.Process(target=attempt, args=(self.overrides, self.folder, self.slow))
        process.start()
        return process

    def log(self):
        with contextlib.suppress(FileNotFoundError):
            return [line.split() for line in (self.folder / "steps.txt").read_text().splitlines()]
        return []

    def steps(self):
        return [int(number) for kind, number in self.log() if kind == "step" and number != "0"]

    def outcome(self):
        directory = only_run(self.folder)
        summary = json.loads((directory / "summary.json").read_text())
        timed = {
            "images_per_second", "peak_memory_bytes", "shared_machine", "startup_seconds",
            "train_seconds", "wall_seconds",
        }  # fmt: skip
        saved, rows = state_of(directory)
        return (
            {key: saved[key] for key in STATE},
            rows,
            {key: value for key, value in summary.items() if key not in timed},
        )


@pytest.fixture(scope="module", params=["lars", "muon"])
def trials(request, drawn_tree, tmp_path_factory):
    """Yield an uninterrupted trial, and a function that makes further trials of the same run."""
    folder = tmp_path_factory.mktemp("trials")
    toolbox = [choice.replace("optimizer=lars", f"optimizer={request.param}") for choice in TOOLBOX]
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", os.pathsep.join([str(PROJECT), *filter(None, sys.path)]))
    overrides = [
        "data=image_folder", f"data.root={drawn_tree}", "model=resnet8", f"epochs={EPOCHS}",
        "batch=32", "threads=1", "deterministic=true", *toolbox, "log_layers_every=2",
    ]  # fmt: skip
    alone = Trial(folder / "alone", overrides, 0.0)
    process = alone.start()
    process.join(120)
    assert process.exitcode == 0, (alone.folder / "output.txt").read_text()
    assert alone.steps() == [*range(1, STEPS + 1)]
    yield alone, lambda name, slow=0.0: Trial(folder / name, overrides, slow)
    patch.undo()


def wait_until_it_trains(process, trial):
    """Wait until the process logs the scheduler's initial step, which is 0."""
    before = len(trial.log())
    while process.is_alive() and len(trial.log()) == before:
        time.sleep(0.002)


def check_losses(log):
    """Check that each attempt resumed at the last save or later."""
    saved = 0
    for (kind, number), (after, following) in itertools.pairwise(log):
        if kind == "saved":
            saved = int(number)
        if (kind, number) == ("step", "0") and after == "step" and following != "0":
            assert int(following) > saved, f"step {following} after {saved} were saved"


def kill(trials, kills):
    chance, (alone, make) = random.Random(kills), trials
    expected, done, in_a_save, ended = alone.outcome(), 0, 0, 0
    while done < kills:
        trial = make(f"killed-{done}", slow=0.0002)
        while True:
            process = trial.start()
            wait_until_it_trains(process, trial)
            if done < kills:
                process.join(chance.uniform(0, 1.2))
            else:
                process.join(120)
            if not process.is_alive():
                break
            process.kill()
            process.join(60)
            done += 1
            in_a_save += any(trial.folder.rglob(".checkpoint.pt.*"))
        assert process.exitcode == 0, (trial.folder / "output.txt").read_text()[-3000:]
        check_losses(trial.log())
        assert_same(trial.outcome(), expected)
        assert not [*trial.folder.rglob(".checkpoint*"), *trial.folder.rglob("*.prev.pt")]
        shutil.rmtree(trial.folder)
        ended += 1
    print(f"{done} kills, {in_a_save} of them in a save, over {ended} runs")
    return in_a_save


def stop(trials, terms):
    chance, (alone, make) = random.Random(terms), trials
    expected, done, ended = alone.outcome(), 0, 0
    while done < terms:
        trial = make(f"stopped-{done}")
        while True:
            process = trial.start()
            wait_until_it_trains(process, trial)
            if done < terms:
                process.join(chance.uniform(0, 0.5))
                if process.is_alive():
                    os.kill(process.pid, chance.choice([signal.SIGTERM, signal.SIGUSR1]))
            process.join(120)
            if process.exitcode == 0:
                break
            # The signal was handled, or arrived while no handler was installed.
            assert process.exitcode in (143, -signal.SIGTERM, -signal.SIGUSR1)
            done += process.exitcode == 143
        assert trial.steps() == [*range(1, STEPS + 1)], "each step once"
        assert_same(trial.outcome(), expected)
        shutil.rmtree(trial.folder)
        ended += 1
    print(f"{done} stops over {ended} runs")


def test_a_run_that_is_killed(trials):
    kill(trials, FEW_KILLS)


def test_a_run_that_is_stopped(trials):
    stop(trials, FEW_TERMS)


@pytest.mark.stress
def test_runs_killed_at_any_moment(trials):
    assert kill(trials, KILLS) > KILLS // 10


@pytest.mark.stress
def test_runs_stopped_at_any_moment(trials):
    stop(trials, TERMS)
