"""Sweeps with each launcher."""

import contextlib
import importlib
import json

import pytest

PLUGINS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", ["hydra.launcher.n_jobs=2"]),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", []),
    "ray": ("hydra_plugins.hydra_ray_launcher", ["+hydra.launcher.ray.init.num_cpus=2"]),
}


def accuracies(work, group):
    """Return each run's status, test accuracy and test loss, by name."""
    found = {}
    for path in sorted((work / "results" / "runs" / group).glob("*/summary.json")):
        summary = json.loads(path.read_text())
        found[summary["run"]] = [summary[key] for key in ("status", "test_accuracy", "test_loss")]
    return found


@pytest.mark.parametrize("launcher", PLUGINS)
def test_every_launcher_gives_exactly_the_same_accuracies(small, workplace, command, launcher):
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


@pytest.mark.parametrize("launcher", PLUGINS)
def test_a_launcher_that_is_not_installed_is_reported(small, workplace, command, launcher):
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
