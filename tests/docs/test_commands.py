"""The commands in README.md and docs/ work.

Those of train.py and torchrun print their plan, with generated images in place of others, so they
train, download and write nothing. val.py evaluates a small run. The scripts do all but what takes
long. Commands that install, serve, call make or need another machine are listed and checked.
"""

import functools
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from types import SimpleNamespace

import pytest
import torch.distributed.run

import engine.report.html
import engine.report.write
import engine.sweeps.sweep
import engine.training.memory
import engine.training.setup
import scripts.critical
import scripts.lr_range
import scripts.tune
import train
from engine.cli import exit_status
from engine.config.hydra_rules import LAUNCHERS
from engine.data.dataset import plan_data
from engine.runs.records import RESULTS
from tests.helpers import PROJECT
from tests.helpers.pages import SHOWING, commands, name
from tests.helpers.report import put

FOUND = list(dict.fromkeys(c for p in SHOWING for c in commands(p.read_text(encoding="utf-8"))))
# Not run here. The tests below check what each of them names.
ELSEWHERE = [
    "make demo",
    "source .venv/bin/activate",
    "tensorboard --logdir results/runs",
    "pip install -e '.[optuna]'",
    "pip install -e '.[submitit]'",
    "pip install -e '.[ray]'",
    "pip install -e '.[joblib]'",
    "pip install -e '.[report-html]'",
]
RUN = [command for command in FOUND if command not in ELSEWHERE]
# Dividing the images of a plan takes most of its time, so it is done once.
BLANK = functools.cache(plan_data)


@pytest.fixture(scope="module")
def named(tmp_path_factory, drawn_tree):
    """Return a folder with all that the commands name: runs, a recipe and a result of bench."""
    folder = tmp_path_factory.mktemp("named")
    keys = "model=resnet8 data=image_folder epochs=1 batch=32 threads=1 group=first"
    runs = folder / "results" / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["train.py", *keys.split(), f"data.root={drawn_tree}"])
        assert exit_status(train.main) == 0
    (run,) = (runs / "first").iterdir()
    run.rename(runs / "first" / "RUN")
    for group in ("ladder", "tuned", "critical-search"):
        put(folder)
        (runs / "g").rename(runs / group)
    recipe = folder / "DIR" / "experiment" / "NAME.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text("# @package _global_\nepochs: 3\n")
    shutil.copy(PROJECT / "results" / "bench" / "cpu.json", folder / "old.json")
    return folder


@pytest.fixture
def place(workplace, named, monkeypatch):
    """Return a working directory with all that the commands name, where nothing takes long."""
    shutil.copytree(named, workplace, dirs_exist_ok=True)

    def nothing(*_: object) -> list[object]:
        return []

    monkeypatch.setattr(engine.training.memory, "describe_memory", nothing)
    for module in (engine.training.setup, engine.sweeps.sweep):
        monkeypatch.setattr(module, "plan_data", BLANK)
    for part in ("write_plots", "write_noise_plot", "write_critical_plots"):
        monkeypatch.setattr(engine.report.write, part, nothing)
    # plotly may be missing.
    monkeypatch.setattr(engine.report.html, "has_plotly", lambda: True)
    monkeypatch.setattr(engine.report.html, "html_page", lambda title, data: title)
    monkeypatch.setattr(scripts.lr_range, "search", nothing)
    for part in ("search", "search_by_optuna", "write"):
        monkeypatch.setattr(scripts.tune, part, nothing)
    monkeypatch.setattr(scripts.critical, "measure_steps", nothing)
    monkeypatch.setattr(scripts.critical, "plan_data", BLANK)
    runner = SimpleNamespace(measure_parts=nothing)
    monkeypatch.setitem(sys.modules, "scripts.bench.runner", runner)
    return workplace


@pytest.fixture
def shell(place, monkeypatch, capfd):
    """Return a function that runs a command of a page; it fails if the command does."""

    def run(command: str) -> None:
        words = shlex.split(command)
        if words[0] == "srun":
            words = words[1:]
        if words[0] == "torchrun":
            options = torch.distributed.run.get_args_parser().parse_args(words[1:])
            words = ["python", options.training_script, *options.training_script_args]
        if words[0] == "scripts/sweep.sh":
            words = ["python", *printed_by_sweep_script(words[1:])]
        assert words[0] == "python", f"{command}: add it to ELSEWHERE, or to the programs here"
        if words[1] == "-m":
            module = importlib.import_module(words[2])
            module = getattr(module, "__main__", module)
            if hasattr(module, "__path__"):
                module = importlib.import_module(f"{words[2]}.__main__")
            arguments = words[3:]
        else:
            module = importlib.import_module(words[1].removesuffix(".py"))
            arguments = words[2:]
        capfd.readouterr()
        for part in as_plans(arguments) if words[1] == "train.py" else [arguments]:
            monkeypatch.setattr(sys, "argv", [words[1], *part])
            try:
                status = exit_status(module.main)
            except SystemExit as leave:
                status = int(leave.code or 0)
            assert status == 0, capfd.readouterr().err

    return run


def as_plans(words: list[str]) -> list[list[str]]:
    """Return arguments of train.py that print plans with generated images.

    A sweep becomes several of one run each, in which every value occurs, but not every combination.
    """
    if "--help" in words:
        return [words]
    # The launchers are not installed; ELSEWHERE has the commands that install them.
    left_out = ("data=", "data.root=", "plan=", "hydra")
    kept = [word for word in words if not word.startswith(left_out)]
    kept += ["data=synthetic", "plan=true"]
    if "-m" not in words:
        return [kept]
    values = [word.partition("=")[2].split(",") for word in kept]
    return [
        [
            f"{word.partition('=')[0]}={own[number % len(own)]}" if "=" in word else word
            for word, own in zip(kept, values, strict=True)
        ]
        for number in range(max(map(len, values)))
    ]


def printed_by_sweep_script(arguments: list[str]) -> list[str]:
    """Return the arguments with which scripts/sweep.sh starts Python."""
    script = PROJECT / "scripts" / "sweep.sh"
    made = subprocess.run(
        [script, *arguments], env=os.environ | {"PYTHON": "echo"}, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    path, *words = shlex.split(made.stdout)
    assert os.path.samefile(path, PROJECT / "train.py")
    return ["train.py", *words]


@pytest.mark.parametrize("command", RUN)
def test_a_command_works(shell, command):
    shell(command)


def test_most_commands_are_run():
    programs = [shlex.split(command)[:3] for command in RUN]
    assert len([words for words in programs if words[0] in ("python", "torchrun")]) >= 20
    scripts_run = {words[2] for words in programs if words[1] == "-m"}
    assert scripts_run >= {
        f"scripts.{part}" for part in "tables report status tune critical bench lr_range".split()
    }
    assert {"train.py", "val.py"} <= {words[1] for words in programs}


def test_every_listed_command_is_on_a_page():
    assert set(ELSEWHERE) <= set(FOUND)


def test_make_targets_exist():
    made = (PROJECT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", made, re.MULTILINE))
    named = [w for p in SHOWING for w in re.findall(r"\bmake ([a-z]+)[`\n]", p.read_text())]
    assert "demo" in named and set(named) <= targets
    assert "BIN := .venv/bin\n" in made


def test_extras_exist():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [e for command in ELSEWHERE for e in re.findall(r"'\.\[([\w-]+)\]'", command)]
    assert len(named) == 5 and set(named) <= set(project["optional-dependencies"])


def test_tensorboard_reads_the_runs():
    (command,) = (command for command in ELSEWHERE if command.startswith("tensorboard"))
    assert shlex.split(command)[1:] == ["--logdir", str(RESULTS / "runs")]


def test_launchers_and_their_options_exist():
    options = {"hydra/launcher", "hydra.launcher.partition", "hydra.launcher.n_jobs"}
    given = [w.partition("=") for c in RUN for w in shlex.split(c) if w.startswith("hydra")]
    assert {key for key, _, _ in given} == options
    assert {value for key, _, value in given if key == "hydra/launcher"} <= set(LAUNCHERS)


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("python train.py batch=4096 optimizer=lasr", "optimizer=lasr: must be one of"),
        ("python -m scripts.bench ladders", "ladders: must be one of"),
        ("python -m scripts.tune optimizer=sgd tune.pionts=3", "tune.pionts"),
        ("python -m scripts.critical batch=64 target_accuracy=70 trails=3", "trails"),
        ("python val.py checkpoint=results/runs/first/NONE", "checkpoint="),
        ("torchrun --nproc-per-node=2 train.py batchsize=4", "batchsize"),
        ("scripts/sweep.sh attempt9", "attempt9"),
    ],
)
def test_a_broken_command_is_found(shell, command, error):
    with pytest.raises(AssertionError, match=re.escape(error)):
        shell(command)


def test_every_value_of_a_sweep_is_used():
    made = as_plans(["-m", "batch=1,2,3", "optimizer=sgd,lars", "data=x"])
    assert [words[1:3] for words in made] == [
        ["batch=1", "optimizer=sgd"], ["batch=2", "optimizer=lars"], ["batch=3", "optimizer=sgd"],
    ]  # fmt: skip
    assert all(words[3:] == ["data=synthetic", "plan=true"] for words in made)


def test_output_is_no_command():
    text = (
        "Text\n\n    steps     195 = 15\n    python a.py \\\n        b=1   # why\n\n"
        "```python\nx = 1\n```\n\n```sh\nmake demo  # now\npyhton c.py\n```\n"
    )
    assert sorted(commands(text)) == ["make demo", "pyhton c.py", "python a.py b=1"]


def test_pages_have_names():
    assert {"README.md", "docs/study.md"} <= {name(page) for page in SHOWING}
