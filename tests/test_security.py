"""What comes from elsewhere, a configuration, a file, an archive, a text, is data and stays it."""

import pytest

from tests.conftest import files_below

LAUNCHER = "hydra/launcher=NAME and hydra.launcher.KEY=VALUE are"
REFUSED = [
    ("hydra.launcher._target_=os.getcwd", "no key may name code"),
    ("++hydra.launcher._target_=os.getcwd", "no key may name code"),
    ("+hydra.launcher.x={_target_: os.getcwd}", "no key may name code"),
    ("+hydra.callbacks.x._target_=os.getcwd", LAUNCHER),
    ("+hydra.callbacks={x: {_target_: os.getcwd}}", LAUNCHER),
    ("hydra={launcher: {_target_: os.getcwd}}", LAUNCHER),
    ("+hydra.job_logging.handlers={x: {'()': os.getcwd}}", LAUNCHER),
    ("hydra/job_logging=default", LAUNCHER),
    ("+hydra/job_logging@foo=default", LAUNCHER),
    ("hydra.searchpath=[pkg://os]", "--config-dir=DIR adds configurations"),
    ("hydra.run.dir=/elsewhere", LAUNCHER),
    ("hydra.sweep.dir=/elsewhere", LAUNCHER),
    ("hydra.output_subdir=.hydra", LAUNCHER),
    ("+hydra.job.env_set={PATH: x}", LAUNCHER),
    ("hydra.job.chdir=true", LAUNCHER),
    ("hydra.mode=MULTIRUN", LAUNCHER),
    ("+model@hydra.callbacks.x=resnet8", "hydra.callbacks={'x': "),
    ("+model._target_=os.getcwd", "model._target_=os.getcwd: unknown key"),
    ("+hydra.launcher.foo=1", "got an unexpected keyword argument 'foo'"),
]


@pytest.fixture
def uncalled(monkeypatch):
    """Fail where the harmless stand-in for hostile code is called by anything but the code here."""
    import os

    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("code was run"))


@pytest.mark.parametrize("flags", [[], ["-m"]])
@pytest.mark.parametrize(("argument", "told"), REFUSED, ids=[a for a, _ in REFUSED])
def test_hydras_own_keys_name_no_code(small, workplace, command, argument, told, flags):
    if not flags and argument == "+hydra.launcher.foo=1":
        pytest.skip("a run alone has no launcher")
    outcome = command("train.py", *flags, *small, argument)
    assert outcome.status == 2, outcome
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    assert told in outcome.err and not files_below(workplace)


HOSTILE = {
    "callbacks": "hydra:\n  callbacks:\n    x:\n      _target_: os.system\n      command: exit\n",
    "launcher": "hydra:\n  launcher:\n    x:\n      _target_: os.system\n      command: exit\n",
    "job_logging": "hydra:\n  job_logging:\n    handlers:\n      x:\n        (): os.system\n",
    "job": "hydra:\n  job:\n    env_set:\n      PATH: nowhere\n",
    "run": "hydra:\n  run:\n    dir: elsewhere\n",
}


@pytest.mark.parametrize("key", HOSTILE)
@pytest.mark.parametrize("flags", [[], ["-m"], ["--cfg", "job"]])
def test_an_experiment_from_elsewhere_brings_no_code(
    small, workplace, command, tmp_path, uncalled, key, flags
):
    folder = tmp_path / "shared"
    (folder / "experiment").mkdir(parents=True)
    text = f"# @package _global_\n{HOSTILE[key]}"
    (folder / "experiment" / "shared.yaml").write_text(text)
    outcome = command("train.py", *flags, f"--config-dir={folder}", *small, "+experiment=shared")
    assert outcome.status == 2, outcome
    told = "'x' not in 'BasicLauncherConf'" if key == "launcher" else f"error: hydra.{key}="
    assert told in outcome.err and outcome.err.count("\n") == 1, outcome.err
    assert not files_below(workplace)


def test_a_launchers_own_file_names_its_class_and_no_more(small, workplace, command, tmp_path):
    folder = tmp_path / "shared" / "hydra" / "launcher"
    folder.mkdir(parents=True)
    (folder / "shared.yaml").write_text("_target_: os.system\ncommand: exit\n")
    outcome = command(
        "train.py", "-m", f"--config-dir={tmp_path / 'shared'}", *small, "hydra/launcher=shared"
    )
    assert outcome.status == 2 and outcome.err.count("\n") == 1, outcome
    assert "Invalid plugin 'os.system'" in outcome.err and not files_below(workplace)


def test_the_projects_own_files_compose(small, workplace, command):
    assert command("train.py", "-m", *small, "plan=true", "hydra/launcher=basic").status == 0
