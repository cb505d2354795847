"""The command scripts.tune: its trials, page, experiment and errors."""

import json
import shlex
import sys

import pytest
import yaml

import scripts.tune
from engine.cli import exit_status
from engine.report.write import write_report
from tests.helpers import files_below


@pytest.fixture
def tune(capsys, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["tune", *map(str, arguments)])
        capsys.readouterr()
        status = exit_status(scripts.tune.main)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_a_search_writes_an_experiment_that_the_final_sweep_runs(
    small, workplace, tune, command, monkeypatch
):
    import engine.training.evaluate

    evaluated = []
    evaluate = engine.training.evaluate.evaluate

    def noted(model, split, *rest):
        evaluated.append(len(split))
        return evaluate(model, split, *rest)

    monkeypatch.setattr(engine.training.evaluate, "evaluate", noted)
    asked = [o for o in small if not o.startswith("batch=")]
    asked += ["optimizer=sgd,lars", "batch=32,64", "epochs=1", "group=tuned", "data.holdout=30"]
    # The grid lies around the command's rate, which must not override the chosen one later.
    asked += ["optimizer.base_lr=0.02", "data.test_size=0", "tune.trials=null"]
    status, out, err = tune(*asked, "tune.points=3", "tune.factor=10", "tune.most=4")
    assert status == 0, err
    assert set(evaluated) == {30}, "the test split must not be evaluated"
    folder = workplace / "results" / "tuned"
    assert {"README.md", "rates.png", "runs.jsonl"} <= files_below(folder)
    page = (folder / "README.md").read_text()
    trials = {line.split("|")[5].strip() for line in page.splitlines() if line.startswith("| SGD")
              or line.startswith("| LARS")} & {"3", "4"}  # fmt: skip
    assert len(trials) == 1
    chosen = yaml.safe_load((folder / "experiment" / "tuned.yaml").read_text())
    assert set(chosen) == {"optimizer"} and set(chosen["optimizer"]) == {"base_lr"}
    again = tune(*asked, "tune.points=3", "tune.factor=10", "tune.most=4")
    assert again[0] == 0 and (folder / "README.md").read_text() == page
    assert "0 finished already" not in again[1]
    (final,) = [line for line in out.splitlines() if line.startswith("then ")]
    words = final.split()[1:]
    assert words[:3] == ["python", "train.py", "-m"]
    monkeypatch.setattr(engine.training.evaluate, "evaluate", evaluate)
    outcome = command("train.py", *words[2:])
    assert outcome.status == 0, outcome.err
    assert "holdout" not in final and (workplace / "results" / "tuned-final" / "table.md").exists()
    cells = [[cell.strip() for cell in line.split("|")] for line in page.splitlines()]
    rates = {
        (c[1].lower(), int(c[2])): float(c[3]) for c in cells if len(c) == 8 and c[2].isdigit()
    }
    lines = (workplace / "results" / "tuned-final" / "runs.jsonl").read_text().splitlines()
    runs = [json.loads(line) for line in lines]
    assert {
        (run["optimizer"], run["batch"]): run["choices"]["optimizer.base_lr"] for run in runs
    } == rates
    for run in runs:
        again = command(*shlex.split(run["command"])[1:])
        assert again.status == 0 and "finished already" in again.out, run["command"]


def test_a_search_on_an_experiment_keeps_its_settings_and_not_its_group(
    small, workplace, tune, command
):
    asked = [*small, "+experiment=attempt2", "optimizer=lars", "epochs=1", "data.holdout=30"]
    status, out, err = tune(*asked, "tune.points=3", "tune.most=3")
    assert status == 0, err
    assert not (workplace / "results" / "runs" / "attempt2").exists()
    (final,) = [line for line in out.splitlines() if line.startswith("then ")]
    outcome = command("train.py", *final.split()[3:])
    assert outcome.status == 0, outcome.err
    (path,) = (workplace / "results" / "runs" / "tune-final").glob("*/.hydra/config.yaml")
    made = yaml.safe_load(path.read_text())
    assert made["model"]["init"] == "he" and made["optimizer"]["trust_coefficient"] == 0.1
    chosen = {0.00625, 0.0125, 0.025}
    assert made["optimizer"]["base_lr"] in chosen and made["data"]["holdout"] == 0
    # A report of the trials does not overwrite the search's page.
    page = workplace / "results" / "tune" / "README.md"
    before = page.read_text()
    assert "- Model: resnet8 " in before and "- Commit: " in before
    write_report("tune")
    assert page.read_text() == before


def test_a_search_on_an_experiment_from_config_dir(small, workplace, tune, command, tmp_path):
    folder = tmp_path / "own"
    (folder / "experiment").mkdir(parents=True)
    recipe = "# @package _global_\noptimizer:\n  momentum: 0.5\n"
    (folder / "experiment" / "mine.yaml").write_text(recipe)
    asked = ["--config-dir", str(folder), "+experiment=mine", *small, "epochs=1", "group=found"]
    status, out, err = tune(*asked, "data.holdout=30", "tune.points=3", "tune.most=3")
    assert status == 0, err
    (final,) = [line for line in out.splitlines() if line.startswith("then ")]
    outcome = command("train.py", *shlex.split(final)[3:])
    assert outcome.status == 0, outcome.err
    (line,) = (workplace / "results" / "found-final" / "runs.jsonl").read_text().splitlines()
    run = json.loads(line)
    assert run["choices"]["optimizer.momentum"] == 0.5
    flags = [word for word in shlex.split(run["command"]) if word.startswith("--config-dir")]
    assert flags == ["--config-dir=results/found", f"--config-dir={folder}"]


def test_a_budget_makes_the_same_report(small, workplace, tune):
    pytest.importorskip("optuna")
    asked = [*small, "optimizer=sgd,lars", "epochs=1", "data.holdout=30", "tune.trials=3"]
    status, _, err = tune(*asked, "tune.decay_points=3")
    assert status == 0, err
    folder = workplace / "results" / "tune"
    assert "rates.png" in files_below(folder)
    page = (folder / "README.md").read_text()
    again = tune(*asked, "tune.decay_points=3")
    assert "run   " not in again[1] and (folder / "README.md").read_text() == page


def test_trials_train_at_once(small, workplace, tune):
    asked = [*small, "epochs=1", "data.holdout=30", "tune.points=3", "tune.most=3", "parallel=2"]
    status, out, err = tune(*asked)
    assert status == 0, err
    assert "parallel  2 runs at once, 1 thread each\n" in out
    paths = list((workplace / "results" / "runs" / "tune").glob("*/summary.json"))
    summaries = [json.loads(path.read_text()) for path in paths]
    assert [summary["runs_at_once"] for summary in summaries] == [2, 2, 2]
    assert not any("parallel" in summary["command"] for summary in summaries)


def test_a_failed_trial_stops_the_search(small, workplace, tune, monkeypatch):
    import engine.training.loop

    def fail(*rest):
        raise RuntimeError("the device fell off")

    monkeypatch.setattr(engine.training.loop, "train_epoch", fail)
    with pytest.raises(SystemExit) as raised:
        tune(*small, "epochs=1", "data.holdout=30", "tune.points=3")
    assert raised.value.code == 1 and not (workplace / "results" / "tune").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tune.points=2"], "tune.points=2: must be a whole number at least 3"),
        (["tune.factor=1"], "tune.factor=1: must be a number above 1"),
        (["tune.pionts=3"], "tune.pionts=3: unknown key; did you mean tune.points"),
        (["plan=true", "data.holdout=30"], "plan=true: scripts.tune has no dry run"),
        (
            ["report=true", "data.holdout=30"],
            "report=true: must be false; python -m",
        ),
        (["data.holdout=0"], "data.holdout=0: must be above 0"),
        (["optimizer.momentum=0,0.9"], "only optimizer, batch and seed may have several"),
        (["--cfg", "job"], "scripts.tune: cannot show a configuration"),
        (["data.test_size=20"], "data.test_size=20: a search never evaluates the test split"),
        (["group=a", "group=b"], "group: is given more than once"),
    ],
)
def test_mistakes_are_reported(small, workplace, tune, arguments, message):
    status, out, err = tune(*small, *arguments)
    assert status == 2 and message in err and err.count("\n") == 1 and out == ""
    assert files_below(workplace) == set()
