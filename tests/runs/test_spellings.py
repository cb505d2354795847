"""Every spelling of data.root gives the same run, and a run keeps the name it started with."""

import json
import os
import shutil

import pytest

from engine.config.schema import Config
from engine.report.rows import make_rows
from engine.runs.records import NEEDED, load_records
from engine.runs.run import Run
from tests.helpers.runs import config, only_run


@pytest.fixture
def near(tree, workplace):
    """Copy the image tree into the working directory; return overrides without data.root."""
    shutil.copytree(tree, workplace / "pics")
    return ["data=image_folder", "model=resnet8", "epochs=1", "batch=32", "threads=1"]


def spellings(workplace):
    return ["pics", "pics/", "./pics", "pics//", f"{workplace}/pics", f"{workplace}/./pics/",
            f"../{workplace.name}/pics"]  # fmt: skip


def test_every_spelling_is_the_same_run(near, workplace, command):
    first = command("train.py", *near, "data.root=pics/")
    assert first.status == 0
    directory = only_run(workplace)
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["command"].endswith("data.root=pics/")
    assert summary["choices"]["data.root"] == "pics"
    assert "root: pics/\n" in (directory / ".hydra" / "config.yaml").read_text()
    for root in spellings(workplace):
        again = command("train.py", *near, f"data.root={root}")
        assert again.status == 0 and again.out.startswith("finished already"), root
    assert only_run(workplace) == directory
    sweep = command("train.py", "-m", *near, "data.root=./pics", "seed=0,1")
    assert sweep.status == 0 and "2 runs, 1 finished already" in sweep.out
    assert len(make_rows(load_records("default"))) == 1


def test_two_spellings_in_one_sweep_are_an_error(near, workplace, command):
    outcome = command("train.py", "-m", *near, "data.root=pics,pics/")
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert "data.root=pics, data.root=pics/: give one of them; both name the run" in outcome.err


def earlier(root):
    return config("data=image_folder", f"data.root={root}").run_name(as_typed=True)


def made(root) -> Config:
    return config("data=image_folder", f"data.root={root}")


@pytest.mark.parametrize("found_as", ["directory", "link", "published"])
def test_a_run_named_by_its_text_as_typed_keeps_that_name(workplace, found_as):
    name = earlier("pics/")
    assert Run(made("pics/")).name == Run(made("pics")).name == earlier("pics") != name
    folder = workplace / "results" / "runs" / "default"
    if found_as == "directory":
        (folder / name).mkdir(parents=True)
    elif found_as == "link":
        folder.mkdir(parents=True)
        os.symlink(workplace, folder / name)
    else:
        published = workplace / "results" / "default"
        published.mkdir(parents=True)
        line = dict.fromkeys([*NEEDED, "history"]) | {
            "run": name, "status": "completed", "test_accuracy": 50.0, "train_seconds": 1.0,
        }  # fmt: skip
        (published / "runs.jsonl").write_text(json.dumps(line) + "\n")
        assert Run(made("pics/")).finished() and not Run(made("pics")).finished()
    assert Run(made("pics/")).name == name
    assert Run(made("pics/")).directory == folder.relative_to(workplace) / name
    # Other spellings had other names.
    assert Run(made("./pics")).name == Run(made("pics")).name == earlier("pics")


def test_an_interrupted_run_of_an_earlier_name_resumes(near, workplace, command, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr("engine.runs.records.name_of", lambda made: made.run_name(as_typed=True))
        assert command("train.py", *near, "data.root=pics/", "epochs=2").status == 0
    directory = only_run(workplace)
    (directory / "summary.json").unlink()
    outcome = command("train.py", *near, "data.root=pics/", "epochs=2")
    assert outcome.status == 0 and "resuming  after epoch 2 of 2" in outcome.out
    assert only_run(workplace) == directory
