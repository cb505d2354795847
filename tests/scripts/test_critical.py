"""The command scripts.critical: its runs, a stop and a restart, its report and its errors."""

import json
import os
import signal
import sys

import pytest

import engine.training.step
import scripts.critical
import scripts.status
from engine.cli import exit_status
from models import commit_batch_statistics
from tests.helpers import files_below

STUDY = [
    "optimizer=sgd", "target_accuracy=60", "data.holdout=30", "optimizer.base_lr=0.003",
    "epochs=4", "trials=3", "seeds=1", "scheduler.warmup_steps=0",
]  # fmt: skip


@pytest.fixture
def critical(capsys, monkeypatch):
    def run(*arguments, main=scripts.critical.main):
        monkeypatch.setattr(sys, "argv", ["critical", *map(str, arguments)])
        capsys.readouterr()
        try:
            status = exit_status(main)
        except SystemExit as leave:
            status = int(leave.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def asked(small):
    """Return the arguments of a study without its batches."""
    return [o for o in small if not o.startswith(("batch=", "epochs="))] + STUDY


def summaries(work, group):
    """Return the summaries of a group's runs by name."""
    paths = (work / "results" / "runs" / group).glob("*/summary.json")
    return {path.parent.name: json.loads(path.read_text()) for path in paths}


def test_a_study_that_is_stopped_and_restarted_trains_and_reports_each_run_once(
    workplace, critical, asked, monkeypatch
):
    done = []

    def stop_in_the_fifth_trial(model):
        commit_batch_statistics(model)
        done.append(model)
        if len(summaries(workplace, "critical-search")) == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(engine.training.step, "commit_batch_statistics", stop_in_the_fifth_trial)
    status, out, err = critical(*asked, "batch=64,32")
    assert status == 143 and "run the same command again to resume" in err
    assert "round     5 of 6  batch 64: SGD " in out and "round     6" not in out
    folder = workplace / "results" / "critical"
    assert [run["batch"] for run in summaries(workplace, "critical").values()] == [32]
    assert "SGD: critical batch size not known" in out and (folder / "README.md").exists()

    monkeypatch.setattr(engine.training.step, "commit_batch_statistics", commit_batch_statistics)
    status, out, err = critical(*asked, "batch=64,32")
    assert status == 0, err
    assert "resuming  after epoch" in out and out.count("\nrun  ") == 3
    lines = [line for line in out.splitlines() if line.startswith("round")]
    assert lines[0] == "round     1 of 6  batch 32: SGD 0.003 (its own rate)"
    search, found = summaries(workplace, "critical-search"), summaries(workplace, "critical")
    assert len(search) == 6 and len(found) == 2
    check_runs(search, found)
    assert found.keys() == {r["run"] for r in map(json.loads, open(folder / "runs.jsonl"))}
    table = [line.split() for line in out.splitlines() if line.startswith("SGD ")]
    steps = {run["batch"]: f"{run['steps_to_target'] or run['steps']}" for run in found.values()}
    assert [cells[1] for cells in table] == ["32", "64"]
    assert all(steps[int(cells[1])] in cells for cells in table)

    before = {path: (folder / path).read_bytes() for path in files_below(folder)}
    status, out, _ = critical(*asked, "batch=64,32")
    assert status == 0 and "\nrun  " not in out
    assert {path: (folder / path).read_bytes() for path in files_below(folder)} == before
    status, out, _ = critical("group=critical-search", main=scripts.status.main)
    assert status == 0 and "6 runs: 6 done" in out

    # Several runs at once are the same runs with the same results.
    status, out, err = critical(*asked, "batch=32", "parallel=2", "group=both")
    assert status == 0, err
    assert "parallel  2 runs at once" in out
    for group in ("search", ""):
        suffix = f"-{group}" if group else ""
        one, two = summaries(workplace, f"critical{suffix}"), summaries(workplace, f"both{suffix}")
        assert two.keys() == {name for name, run in one.items() if run["batch"] == 32}
        for name, run in two.items():
            for key in ("steps", "steps_to_target", "holdout_accuracy", "train_loss"):
                assert run[key] == one[name][key], key


def check_runs(search, found):
    """Check bounds, evaluations and rates of the runs of a study of two batches."""
    for run in [*search.values(), *found.values()]:
        choices = run["choices"]
        assert choices["stop_at_target"] and choices["scheduler.name"] == "constant"
        assert choices["data.test_size"] == 0 and choices["model.ghost_batch"] == 32
        steps_per_epoch = -(-90 // run["batch"])
        assert choices["epochs"] == -(-choices["max_steps"] // steps_per_epoch)
        assert choices["seed"] == (run["run"] in found)
    for run in found.values():
        trials = [t for t in search.values() if t["batch"] == run["batch"]]
        rates = {t["choices"]["optimizer.base_lr"]: t for t in trials}
        assert len(rates) == 3
        reached = [t for t in trials if t["steps_to_target"] is not None]
        best = min(reached, key=lambda t: (t["steps_to_target"], t["base_lr"]))
        assert run["choices"]["optimizer.base_lr"] == best["choices"]["optimizer.base_lr"]
        assert run["choices"]["max_steps"] == 2 * best["steps_to_target"]
        assert run["choices"]["eval_every"] == "1steps"
        # The first trial of a batch has its own bound; the other two end where it ended.
        bounds = [trial["choices"]["max_steps"] for trial in trials]
        assert len(set(bounds)) <= 2
    smallest = [t for t in search.values() if t["batch"] == 32]
    assert max(trial["choices"]["max_steps"] for trial in smallest) == 4 * 3


def test_a_failed_trial_stops_the_study_and_the_rest_is_reported(
    workplace, critical, asked, monkeypatch
):
    import engine.training.loop

    train_epoch = engine.training.loop.train_epoch

    def fail(step, *rest):
        if len(summaries(workplace, "critical-search")):
            raise RuntimeError("the device fell off")
        return train_epoch(step, *rest)

    monkeypatch.setattr(engine.training.loop, "train_epoch", fail)
    status, _, err = critical(*asked, "batch=32")
    assert status == 1 and "the device fell off" in err
    assert "run the same command again to retry the failed trials" in err
    assert not (workplace / "results" / "critical").exists()
    assert (workplace / "results" / "critical-search" / "README.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["target_accuracy=0"], "target_accuracy=0: must be a number above 0"),
        (["trials=2"], "trials=2: must be a whole number at least 3"),
        (["trials=3", "trials=4"], "trials=3: trials is given more than once"),
        (["seeds=0"], "seeds=0: must be a whole number at least 1"),
        (["factor=1"], "factor=1: must be a number above 1"),
        (["trails=5"], "trails=5: unknown key; did you mean"),
        (["batch=32,121"], "batch=121: must be at most the training split's 90 images"),
        (["batch=16"], "model.ghost_batch=32: must be at most micro_batch=1024 and batch=16"),
        (["batch=32,32"], "only optimizer and batch may have several values, each given once"),
        (["optimizer=adam"], "optimizer=adam: must be one of"),
        (["seed=0,1"], "only optimizer and batch may have several values"),
        (["stop_at_target=false"], "stop_at_target=false: scripts.critical decides this key"),
        (["max_steps=5"], "max_steps=5: scripts.critical decides this key"),
        (["eval_every=1"], "eval_every=1: scripts.critical decides this key"),
        (["report=true"], "report=true: must be false; python -m scripts.report"),
        (["plan=true"], "plan=true: scripts.critical decides this key"),
        (["data.holdout=0"], "data.holdout=0: must be above 0"),
        (["scheduler=cosine"], "scheduler=cosine: must be scheduler=constant; a decay"),
        (["scheduler.warmup_steps=null"], "scheduler.warmup_steps=null: must be a number of steps"),
        (["scheduler=tvlars"], "scheduler=tvlars: must be scheduler=constant; a decay"),
        (["--cfg", "job"], "scripts.critical: cannot show a configuration"),
        (["group=../x"], "group=../x: must be letters"),
        ([f"group={'x' * 95}"], "nor longer than 100 characters"),
    ],
)
def test_mistakes_are_reported(workplace, critical, asked, arguments, message):
    keys = [argument.partition("=")[0] for argument in arguments]
    others = [o for o in asked if o.partition("=")[0] not in keys]
    others += ["batch=32"] * ("batch" not in keys)
    status, out, err = critical(*others, *arguments)
    assert status == 2 and message in err and err.count("\n") == 1 and out == "", (out, err)
    assert files_below(workplace) == set()


def test_each_optimizer_begins_with_its_rate_at_the_smallest_batch(
    workplace, critical, asked, monkeypatch
):
    begun = []
    monkeypatch.setattr(scripts.critical, "measure_steps", lambda *given: begun.append(given[0]))
    path = workplace / "mine" / "experiment" / "rates.yaml"
    path.parent.mkdir(parents=True)
    rates = "${by_optimizer:{sgd: ${by_batch:{32: 0.1, 64: 0.2}}, lars: 3.0}}"
    path.write_text(f"# @package _global_\noptimizer:\n  base_lr: {json.dumps(rates)}\n")
    given = [o for o in asked if not o.startswith("optimizer")]
    given += ["--config-dir", "mine", "+experiment=rates", "optimizer.base=none,adamw"]
    assert critical(*given, "optimizer=lars", "batch=32,64")[2] == ""
    given = [o for o in given if not o.startswith("optimizer")]
    assert critical(*given, "optimizer=sgd,lars", "batch=32,64")[2] == ""
    assert begun == [{"lars": 3.0, "lars-adamw": 0.001}, {"sgd": 0.1, "lars": 3.0}]


def test_a_target_is_needed_and_help_lists_the_defaults(workplace, critical, asked):
    status, out, err = critical("batch=32", *[o for o in asked if not o.startswith("target")])
    assert (status, out) == (2, "")
    assert err == (
        "error: target_accuracy=null: must be the accuracy in % to reach, such as "
        "target_accuracy=70\n"
    )
    status, out, _ = critical("--help")
    assert status == 0 and all(f" {default}" in out for default in scripts.critical.DEFAULTS)
