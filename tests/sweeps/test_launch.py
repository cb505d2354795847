"""How many jobs a launcher runs at the same time, and with how many threads each."""

import os
from types import SimpleNamespace

import pytest

import engine.sweeps.launch
import engine.sweeps.parallel
from engine.sweeps.launch import launched_at_once, threads_each
from engine.sweeps.parallel import choose_way
from engine.system.resources import RUNS_AT_ONCE


@pytest.mark.parametrize(
    ("target", "settings", "jobs", "expected"),
    [
        ("BasicLauncher", {}, 4, 16),
        ("SlurmLauncher", {}, 4, None),
        ("LocalLauncher", {}, 4, 4),
        ("LocalLauncher", {}, 100, 1),
        ("JoblibLauncher", {"n_jobs": 4}, 14, 4),
        ("JoblibLauncher", {"n_jobs": 4}, 2, 8),
        ("JoblibLauncher", {"n_jobs": -1}, 100, 1),
        ("JoblibLauncher", {"n_jobs": -9}, 100, 2),
        ("RayLauncher", {"ray": {"remote": {}}}, 14, 1),
        ("RayLauncher", {"ray": {"remote": {"num_cpus": 3}}}, 14, 3),
    ],
)
def test_threads_are_divided_among_parallel_jobs(monkeypatch, target, settings, jobs, expected):
    monkeypatch.setattr(engine.sweeps.launch, "available_cpus", lambda: 16)
    assert threads_each({"_target_": f"some.module.{target}"} | settings, jobs) == expected


@pytest.mark.parametrize(
    ("target", "settings", "jobs", "expected"),
    [
        ("BasicLauncher", {}, 4, 1),
        ("SlurmLauncher", {}, 4, None),
        ("LocalLauncher", {}, 100, 100),
        ("JoblibLauncher", {"n_jobs": 4}, 14, 4),
        ("JoblibLauncher", {"n_jobs": 4}, 2, 2),
        ("RayLauncher", {"ray": {"init": {}, "remote": {}}}, 14, 14),
        ("RayLauncher", {"ray": {"init": {}, "remote": {"num_cpus": 3}}}, 14, 5),
        ("RayLauncher", {"ray": {"init": {"num_cpus": 2}, "remote": {}}}, 14, 2),
    ],
)
def test_the_number_of_jobs_at_once(monkeypatch, target, settings, jobs, expected):
    monkeypatch.setattr(engine.sweeps.launch, "available_cpus", lambda: 16)
    assert launched_at_once({"_target_": f"some.module.{target}"} | settings, jobs) == expected


@pytest.mark.parametrize("at_once", [3, None])
def test_a_launchers_workers_know_how_many_jobs_run_at_once(workplace, monkeypatch, at_once):
    launched = []

    class Recorder:
        def launch(self, overrides, initial_job_idx):
            launched.append((overrides, os.environ.get(RUNS_AT_ONCE)))

    def instantiate_launcher(self, context, task, config):
        return Recorder()

    monkeypatch.setenv(RUNS_AT_ONCE, "7")
    monkeypatch.setattr(engine.sweeps.launch.Plugins, "instantiate_launcher", instantiate_launcher)
    monkeypatch.setattr(engine.sweeps.launch, "launched_at_once", lambda launcher, jobs: at_once)
    jobs = [SimpleNamespace(overrides=[f"batch={batch}"]) for batch in (32, 64)]
    ended = []
    engine.sweeps.launch.launch_jobs(lambda composed: None, jobs, [], lambda: ended.append(1))
    # The threads are in each run's claim, so that its command is the same under every launcher.
    number = at_once and "3"
    assert launched == [([["batch=32"]], number), ([["batch=64"]], number)] and ended == [1, 1]
    assert os.environ[RUNS_AT_ONCE] == "7"


def test_a_launcher_decides_the_threads_of_its_jobs(workplace, monkeypatch):
    monkeypatch.setattr(engine.sweeps.parallel, "available_cpus", lambda: 16)
    monkeypatch.setattr(engine.sweeps.launch, "available_cpus", lambda: 16)
    way = choose_way([SimpleNamespace()] * 4, [], ["hydra/launcher=basic"], 4)
    assert (way.at_once, way.threads, way.replaces) == (None, 16, True)
    monkeypatch.setattr(engine.sweeps.launch, "launched_at_once", lambda launcher, jobs: jobs)
    way = choose_way([SimpleNamespace()] * 4, [], ["hydra/launcher=basic"], 4)
    assert (way.at_once, way.threads, way.replaces) == (None, 4, True)
