"""The number of threads of jobs that run at the same time."""

from types import SimpleNamespace

import pytest

import engine.sweeps.launch
from engine.sweeps.launch import threads_each


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


def test_jobs_without_a_number_of_threads_get_their_share(workplace, monkeypatch):
    launched = []

    class Recorder:
        def launch(self, overrides, initial_job_idx):
            launched.extend(overrides)

    def instantiate_launcher(self, context, task, config):
        return Recorder()

    monkeypatch.setattr(engine.sweeps.launch.Plugins, "instantiate_launcher", instantiate_launcher)
    monkeypatch.setattr(engine.sweeps.launch, "threads_each", lambda launcher, jobs: 3)
    jobs = [
        SimpleNamespace(config=SimpleNamespace(threads=given), overrides=[f"batch={batch}"])
        for given, batch in ((None, 32), (2, 64))
    ]
    engine.sweeps.launch.launch_jobs(lambda composed: None, jobs, [])
    assert launched == [["batch=32", "threads=3"], ["batch=64"]]
