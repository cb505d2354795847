import contextlib
import importlib
import json
from types import SimpleNamespace

import pytest

import engine.sweeps.launch
from engine.sweeps.launch import threads_each

PLUGINS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", ["hydra.launcher.n_jobs=2"]),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", []),
    "ray": ("hydra_plugins.hydra_ray_launcher", ["+hydra.launcher.ray.init.num_cpus=2"]),
}


def accuracies(work, group):
    """Return each run's status, accuracy and threads by its name."""
    found = {}
    for path in sorted((work / "results" / "runs" / group).glob("*/summary.json")):
        summary = json.loads(path.read_text())
        found[summary["run"]] = [summary[key] for key in ("status", "test_accuracy", "test_loss")]
    return found


@pytest.mark.parametrize("launcher", PLUGINS)
def test_every_launcher_gives_the_same_accuracies_to_the_digit(small, workplace, command, launcher):
    module, extra = PLUGINS[launcher]
    for needed in (module, launcher.partition("_")[0]):
        pytest.importorskip(needed)
    sweep = ["-m", *small, "epochs=1", "batch=32,64", "optimizer=sgd,lars"]
    assert command("train.py", *sweep, "group=basic").status == 0
    outcome = command("train.py", *sweep, "group=other", f"hydra/launcher={launcher}", *extra)
    assert outcome.status == 0, outcome.err
    expected = accuracies(workplace, "basic")
    assert len(expected) == 4 and accuracies(workplace, "other") == expected
    again = command("train.py", *sweep, "group=other", f"hydra/launcher={launcher}", *extra)
    assert "4 runs, 4 finished already" in again.out
    kept = {path.name for path in workplace.iterdir()}
    assert kept == {"results"}, kept


@pytest.mark.parametrize(
    ("target", "settings", "jobs", "expected"),
    [
        ("BasicLauncher", {}, 4, None),
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
def test_threads_are_divided_among_jobs_at_once(monkeypatch, target, settings, jobs, expected):
    monkeypatch.setattr(engine.sweeps.launch, "available_cpus", lambda: 16)
    assert threads_each({"_target_": f"some.module.{target}"} | settings, jobs) == expected


def test_divided_threads_reach_the_jobs_that_leave_them_open(workplace, monkeypatch):
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


@pytest.mark.parametrize("launcher", PLUGINS)
def test_a_launcher_that_is_not_installed_is_told(small, workplace, command, launcher):
    with contextlib.suppress(ImportError):
        importlib.import_module(PLUGINS[launcher][0])
        pytest.skip("it is installed")
    outcome = command("train.py", "-m", *small, "batch=32,64", f"hydra/launcher={launcher}")
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    extra = launcher.partition("_")[0]
    assert f"{launcher}: not installed; try pip install -e '.[{extra}]'" in outcome.err


def test_sweepers_of_hydra_are_refused(small, workplace, command):
    outcome = command("train.py", "-m", *small, "batch=32,64", "hydra.sweeper.max_batch_size=1")
    assert outcome.status == 2 and "hydra.sweeper.max_batch_size=1: not used" in outcome.err
