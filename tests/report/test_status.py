"""The progress of a group."""

import fcntl
import json
import shutil
import sys

import scripts.status
from engine.cli import exit_status
from engine.report.status import describe_progress
from tests.helpers.report import HISTORY, put


def test_progress_of_a_sweep(workplace, monkeypatch, capsys):
    put(workplace, "batch=128", "epochs=3")
    put(workplace, "batch=256", "epochs=3", status="diverged")
    put(workplace, "batch=512", "epochs=3", status="failed", history=[])
    put(workplace, "batch=1024", "epochs=3", status="missing")
    running = workplace / "results" / "runs" / "g" / "run-3"
    (running / "metrics.jsonl").write_text(json.dumps(HISTORY[0]) + "\n")
    put(workplace, "batch=2048", "epochs=3", status="missing")
    with open(running / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        monkeypatch.setattr(sys, "argv", ["status", "group=g"])
        assert exit_status(scripts.status.main) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "g: 5 runs: 1 done, 1 diverged, 1 running, 1 failed, 1 pending"
    # 12 s per epoch. The running run has two epochs left, the two others have three each.
    assert lines[1] == "time left 0:01:36, at 1 run at once"
    states = {line.split()[1]: line.split() for line in lines[4:]}
    assert states["run-0"] == ["done", "run-0", "3/3", "79.70"]
    assert states["run-3"] == ["running", "run-3", "1/3", "40.00", "0:00:24"]
    assert states["run-4"] == ["pending", "run-4", "0/3", "-", "0:00:36"]
    assert states["run-2"][0] == "failed" and states["run-1"][3] == "nan"


def test_the_time_left_is_estimated_from_runs_of_the_same_model(workplace):
    put(workplace, "model=resnet8", "epochs=3")
    put(workplace, "model=resnet50", "epochs=3", status="missing")
    put(workplace, "data.train_size=500", "model=resnet8", "epochs=3", status="missing")
    put(workplace, "model=resnet8", "batch=256", "optimizer=lars", "epochs=3", status="missing")
    lines = describe_progress("g").splitlines()
    assert lines[1].startswith("time left not known yet")
    left = {line.split()[1]: line.split()[-1] for line in lines[4:]}
    # The same model takes 12 s per epoch, even with another optimizer and batch.
    assert left == {"run-0": "79.70", "run-1": "?", "run-2": "?", "run-3": "0:00:36"}


def test_progress_of_several_groups(workplace, monkeypatch, capsys):
    put(workplace, "batch=128", "epochs=3")
    shutil.copytree(workplace / "results/runs/g", workplace / "results/runs/h")
    monkeypatch.setattr(sys, "argv", ["status", "group=g,h,g"])
    assert exit_status(scripts.status.main) == 0
    shown = capsys.readouterr().out
    assert shown.count("g: 1 runs: 1 done") == shown.count("h: 1 runs: 1 done") == 1
    monkeypatch.setattr(sys, "argv", ["status", "group=g", "group=h"])
    assert exit_status(scripts.status.main) == 2
    assert (
        capsys.readouterr().err == "error: group=g: group is given more than once; give it once\n"
    )
