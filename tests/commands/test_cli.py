"""What train.py and val.py do, print and write."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import engine.cli
import scripts.status
import scripts.tables
import train
from engine.cli import exit_status
from tests.helpers import PROJECT, files_below
from tests.helpers.runs import rows_of


@pytest.mark.parametrize("script", ["train.py", "val.py"])
def test_help_answers_without_torch(script, tmp_path):
    code = (
        "import runpy, sys; sys.argv = [sys.argv[1], '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as error: assert not error.code\n"
        "assert 'torch' not in sys.modules"
    )
    made = subprocess.run(
        [sys.executable, "-c", code, PROJECT / script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
    )
    assert made.returncode == 0, made.stderr
    assert script in made.stdout and list(tmp_path.iterdir()) == []


def test_flags_may_stand_anywhere(small, workplace, command):
    outcome = command("train.py", *small, "-m", "batch=16,32", "plan=true")
    assert outcome.status == 0 and "b16" in outcome.out and "b32" in outcome.out
    outcome = command("train.py", "batch=16", "--cfg", "job", "seed=7")
    assert outcome.status == 0 and "batch: 16" in outcome.out and "seed: 7" in outcome.out


def test_a_plan_trains_and_writes_nothing(small, workplace, command):
    before = files_below(workplace)
    outcome = command("train.py", *small, "plan=true")
    assert outcome.status == 0
    assert "8 = 2 epochs x 4" in outcome.out and "memory    about" in outcome.out
    assert files_below(workplace) == before
    outcome = command("train.py", "-m", *small, "batch=16,32", "plan=true")
    assert outcome.status == 0
    assert "16 = 2 epochs x 8" in outcome.out
    assert files_below(workplace) == before
    assert not list(Path(small[1].partition("=")[2]).glob(".decoded*")), "no cache either"


@pytest.mark.parametrize("source", ["cifar10", "cifar100", "synthetic"])
def test_a_plan_neither_downloads_nor_generates_images(workplace, command, source):
    outcome = command("train.py", f"data={source}", "model=resnet8", "plan=true", "data.holdout=80")
    assert outcome.status == 0, outcome.err
    assert "49920 training images" in outcome.out and "memory    about" in outcome.out
    assert not files_below(workplace)


def test_a_sweep_its_tables_and_the_evaluation_of_its_runs(small, workplace, command):
    sweep = ["-m", *small, "batch=32,64", "optimizer=sgd,lars", "group=pair"]
    outcome = command("train.py", *sweep)
    assert outcome.status == 0, outcome.err
    group = workplace / "results" / "pair"
    assert re.search(r"^batch +optimizer +base LR +accuracy, % +time to train$", outcome.out, re.M)
    for name in ("table.md", "table.csv", "accuracy.png", "time.png", "curves.png"):
        assert f" {name}" in outcome.out
        assert (group / name).stat().st_size > 0
    rows = rows_of(group / "table.csv")
    assert [(row["optimizer"], row["batch"]) for row in rows] == [
        ("sgd", "32"), ("sgd", "64"), ("lars", "32"), ("lars", "64"),
    ]  # fmt: skip
    assert {(row["runs"], row["failed"], row["missing"]) for row in rows} == {("1", "0", "0")}
    directories = list((workplace / "results" / "runs" / "pair").iterdir())
    assert len(directories) == 4
    for directory in directories:
        names = {path.name.partition(".tfevents")[0] for path in directory.iterdir()}
        assert names == {
            ".hydra", ".lock", "checkpoint.pt", "metrics.jsonl", "summary.json", "events.out",
        }  # fmt: skip
        summary = json.loads((directory / "summary.json").read_text())
        before = files_below(workplace)
        evaluated = command("val.py", f"checkpoint={directory}", "json=true")
        assert evaluated.status == 0
        assert files_below(workplace) == before
        result = json.loads(evaluated.out)
        assert result["test_accuracy"] == summary["test_accuracy"]
        assert result["test_loss"] == summary["test_loss"]
        assert set(result["per_class_accuracy"]) == {"cat", "dog", "ship"}
        assert result["history"][-1]["epoch"] == summary["best_epoch"]
        shown = command("val.py", f"checkpoint={directory / 'checkpoint.pt'}")
        assert f"test accuracy  {summary['test_accuracy']:.2f} %" in shown.out
        assert result["precision"] == summary["precision"]
        assert f"precision      {summary['precision']}" in shown.out
    again = command("train.py", *sweep)
    assert again.status == 0 and "4 runs, 4 finished already" in again.out


def test_a_failed_job_affects_neither_other_jobs_nor_the_table(
    small, workplace, command, monkeypatch
):
    import engine.training.loop

    train_epoch = engine.training.loop.train_epoch

    def fail_at_64(step, *rest):
        if step.plan.batch == 64:
            raise RuntimeError("the device\nfell off")
        return train_epoch(step, *rest)

    monkeypatch.setattr(engine.training.loop, "train_epoch", fail_at_64)
    outcome = command("train.py", "-m", *small, "batch=32,64,128", "data.train_size=null")
    assert outcome.status == 2  # The split has less than 128 images, so nothing is trained.
    outcome = command("train.py", "-m", *small, "batch=64,32")
    assert outcome.status == 1
    assert outcome.err.rstrip().splitlines()[-1].startswith("failed: results/runs/default/")
    assert "RuntimeError: the device fell off" in outcome.err.splitlines()[-1]
    table = (workplace / "results" / "default" / "table.md").read_text()
    assert "| 64 | 0.07071 | failed | - |" in table
    assert "(base line)" in table
    monkeypatch.setattr(engine.training.loop, "train_epoch", train_epoch)
    assert command("train.py", "-m", *small, "batch=64,32").status == 0


def test_a_diverged_run_is_a_result(small, workplace, command):
    wild = ["optimizer.lr_scaling=none", "optimizer.base_lr=1e30", "scheduler=constant"]
    outcome = command("train.py", *small, *wild)
    assert outcome.status == 0, outcome.err
    assert "diverged after" in outcome.out
    (directory,) = (workplace / "results" / "runs" / "default").iterdir()
    text = (directory / "summary.json").read_text()
    summary = json.loads(text)
    assert summary["status"] == "diverged"
    assert summary["test_accuracy"] == pytest.approx(100 / 3)
    for content in (text, (directory / "metrics.jsonl").read_text()):
        assert "NaN" not in content and "Infinity" not in content
    evaluated = command("val.py", f"checkpoint={directory}")
    assert "diverged: its accuracy counts as chance level, 33.33 %" in evaluated.out
    assert command("val.py", f"checkpoint={directory}", "json=true").status == 0
    assert "finished already" in command("train.py", *small, *wild).out


def test_a_summary_has_the_documented_fields(small, workplace, command):
    assert command("train.py", *small, "data.holdout=30").status == 0
    (directory,) = (workplace / "results" / "runs" / "default").iterdir()
    summary = json.loads((directory / "summary.json").read_text())
    fields = (
        "status group model data optimizer batch micro_batch seed epochs steps base_lr peak_lr "
        "final_lr test_accuracy best_test_accuracy best_epoch holdout_accuracy train_loss "
        "train_seconds wall_seconds images_per_second peak_memory_bytes parameters device "
        "world_size threads precision torch commit command error"
    ).split()
    assert not set(fields) - set(summary)
    assert summary["status"] == "completed" and summary["error"] is None
    assert summary["steps"] == 6 and summary["parameters"] == 74_835
    assert summary["holdout_accuracy"] is not None and summary["peak_memory_bytes"] > 1e7
    assert summary["command"].startswith("python train.py data=image_folder data.root=")
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


def test_out_of_memory_names_micro_batch(small, workplace, command, monkeypatch):
    import engine.training.loop

    def exhaust(*_):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: tried 9 GB")

    monkeypatch.setattr(engine.training.loop, "train_epoch", exhaust)
    outcome = command("train.py", *small)
    assert outcome.status == 2
    assert outcome.err.startswith("error: micro_batch=1024: ") and outcome.err.count("\n") == 1
    (directory,) = (workplace / "results" / "runs" / "default").iterdir()
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["status"] == "failed" and "micro_batch" in summary["error"]


def test_train_is_short():
    # train.py shows the steps of a run. Arithmetic of optimizers and schedules is in engine.
    assert len(Path(train.__file__).read_text().splitlines()) < 160


def test_every_flag_has_a_string_as_help():
    # argparse refuses anything else since Python 3.14 (CPython's Lib/argparse.py, _check_help).
    # One flag of Hydra 1.3.8's own parser has an object that is rendered later.
    for action in engine.cli._make_parser()._actions:
        assert type(action.help) is str, action


# YAML 1.1 or Hydra's grammar reads each of these as a boolean, a number or a time.
@pytest.mark.parametrize("text", ["no", "on", "true", "2024", "007", "1e3", "1_000", "0x10", ".5"])
def test_a_text_key_has_the_typed_value_in_every_command(
    small, workplace, command, monkeypatch, capsys, text
):
    assert command("train.py", *small, "epochs=1", "batch=60", f"group={text}").status == 0
    assert (workplace / "results" / "runs" / text).is_dir()
    for script in (scripts.status, scripts.tables):
        monkeypatch.setattr(sys, "argv", [script.__name__, f"group={text}"])
        assert exit_status(script.main) == 0
    assert (workplace / "results" / text / "table.csv").exists()
    monkeypatch.setattr(sys, "argv", ["status", f"group={text}x"])
    assert exit_status(scripts.status.main) == 2
    assert f"group={text}x: has no runs under results/runs/{text}x" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["--info", "config"]], ids=" ".join)
def test_a_configuration_is_shown_with_the_text_that_was_typed(workplace, command, flags):
    """https://github.com/hydra-ecosystem/hydra/issues/1163: text of digits becomes a number."""
    for text in ("2024", "1_1_1", "no"):
        outcome = command("train.py", *flags, f"group={text}")
        assert outcome.status == 0 and f"group: '{text}'\n" in outcome.out


def test_a_sweep_over_text_keeps_each_value_as_typed(small, workplace, command):
    sweep = ("-m", *small, "epochs=1", "batch=60", "group=1e3,no,007")
    assert command("train.py", *sweep).status == 0
    assert {path.name for path in (workplace / "results").iterdir()} == {"runs", "1e3", "no", "007"}


@pytest.mark.parametrize(
    "name",
    ["bench (1)", "a,b", "it's", "x=y", "${x}", "[z]", "{a}", "a:b", "é漢", "ends\\", "#1 %"],
)
def test_a_folder_of_configurations_can_have_any_name(workplace, command, name):
    folder = workplace / name / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\nbatch: 77\n")
    run = ("+experiment=mine", "plan=true", "data=synthetic", "model=resnet8")
    outcome = command("train.py", f"--config-dir={name}", *run)
    assert outcome.status == 0 and "(batch 77," in outcome.out
    # scripts.tune prints such a command, here for a folder with an unusual name.
    outcome = command("train.py", "-m", "--config-dir", str(workplace / name), *run, "seed=0,1")
    assert outcome.status == 0 and outcome.out.count("(batch 77,") == 2


def test_a_sweep_of_many_runs_prints_that_it_checks_them(workplace, command):
    run = (
        "-m",
        "plan=true",
        "data=synthetic",
        "model=resnet8",
        "seed=" + ",".join(map(str, range(20))),
    )
    assert "checking  20 runs\n" in command("train.py", *run).err


def test_files_are_utf_8_whatever_the_locale(small, workplace):
    """Python's UTF-8 mode is off, and the locale's encoding is ASCII."""
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    arguments = ["-m", *small, "seed=0,1", "epochs=1"]
    made = subprocess.run(
        [sys.executable, PROJECT / "train.py", *arguments],
        cwd=workplace, env=environment, capture_output=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    # Characters that the terminal lacks are printed as escapes.
    assert b"\\xb1" in made.stdout and b"failed" not in made.stdout
    table = (workplace / "results" / "default" / "table.md").read_text(encoding="utf-8")
    assert "±" in table and "Â" not in table
