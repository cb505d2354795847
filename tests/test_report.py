import csv
import io
import json

import pytest

from engine.config import choices
from engine.parse import UserError
from engine.report import write_report
from engine.rows import load_records, make_rows
from tests.test_config import config

HISTORY = [
    {"epoch": 1, "test_accuracy": 40.0, "train_seconds": 10.0},
    {"epoch": 2, "test_accuracy": None, "train_seconds": 10.0},
    {"epoch": 3, "test_accuracy": 79.7, "train_seconds": 10.0},
]


def put(work, *overrides, status="completed", accuracy=80.0, history=HISTORY, **changes):
    """Write the files that a run of these choices would leave."""
    made = config(*overrides)
    name = f"run-{len(list(work.glob('results/runs/g/*')))}"
    folder = work / "results" / "runs" / "g" / name
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(json.dumps(made.to_dict()))
    if status == "missing":
        return
    summary = {
        "status": status, "run": name, "group": "g", "model": made.model.name,
        "data": made.data.name, "optimizer": made.optimizer.name, "batch": made.batch,
        "seed": made.seed, "epochs": made.epochs, "base_lr": 0.1, "peak_lr": 0.2,
        "test_accuracy": None if status == "failed" else accuracy, "best_test_accuracy": 81.0,
        "train_seconds": 30.0, "images_per_second": 1000.0, "target_accuracy": None,
        "commit": "abc", "device": "cpu", "torch": "2", "choices": choices(made),
    } | changes  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))


def table(work):
    text = write_report("g")
    with open(work / "results" / "g" / "table.csv") as file:
        return text, list(csv.DictReader(file))


def test_seeds_are_averaged_with_their_spread(workplace):
    for seed, accuracy in enumerate((79.0, 80.0, 81.0)):
        put(workplace, f"seed={seed}", accuracy=accuracy)
    text, (row,) = table(workplace)
    assert "| 128 | 0.1 | 80.00 ± 1.00 (base line) | 30.0 s |" in text
    assert (row["runs"], row["accuracy_mean"], row["accuracy_std"]) == ("3", "80.0", "1.0")
    assert row["best_accuracy_mean"] == "81.0" and row["settings"] == ""
    # The target is the baseline less half a point, 79.5, first reached after three epochs.
    assert row["seconds_to_target_mean"] == "30.0"


def test_diverged_failed_and_missing_runs_stay_visible(workplace):
    put(workplace, "seed=0")
    put(workplace, "seed=1", status="diverged", accuracy=10.0)
    put(workplace, "seed=2", status="missing")
    put(workplace, "batch=256", status="failed")
    put(workplace, "batch=512", status="missing")
    put(workplace, "batch=1024", status="diverged", accuracy=10.0)
    put(workplace, "batch=2048", status="interrupted", accuracy=50.0)
    text, rows = table(workplace)
    assert "45.00 ± 49.50 (1 of 3 nan, 1 of 3 missing) (base line)" in text
    assert "| 256 | 0.1 | failed | - |" in text
    assert "| 512 | - | missing | - |" in text
    assert "| 1024 | 0.1 | 10.0 (nan) | 30.0 s |" in text
    assert "| 2048 | 0.1 | missing | - |" in text
    counts = [(r["runs"], r["diverged"], r["failed"], r["missing"]) for r in rows]
    assert counts == [
        ("3", "1", "0", "1"), ("1", "0", "1", "0"), ("1", "0", "0", "1"),
        ("1", "1", "0", "0"), ("1", "0", "0", "1"),
    ]  # fmt: skip
    assert rows[0]["accuracy_mean"] == "45.0" and rows[1]["accuracy_mean"] == ""


def test_settings_name_what_else_differs(workplace):
    put(workplace)
    put(workplace, "optimizer.nesterov=true")
    put(workplace, "optimizer=lars")
    text, rows = table(workplace)
    assert [row["settings"] for row in rows] == [
        "optimizer.nesterov=false", "optimizer.nesterov=true", "",
    ]  # fmt: skip
    assert "| 128 optimizer.nesterov=true |" in text


def test_a_row_that_mixes_commits_is_marked(workplace):
    put(workplace, "seed=0")
    put(workplace, "seed=1", commit="def")
    assert "(mixed commit)" in table(workplace)[1][0]["settings"]


def test_time_to_target_needs_every_seed_to_reach_it(workplace):
    put(workplace, "seed=0", target_accuracy=60.0)
    put(workplace, "seed=1", target_accuracy=60.0, history=HISTORY[:1])
    assert table(workplace)[1][0]["seconds_to_target_mean"] == ""


def test_published_runs_count_where_their_directories_are_not(workplace):
    put(workplace, "seed=0", accuracy=70.0)
    before = write_report("g")
    import shutil

    shutil.rmtree(workplace / "results" / "runs")
    assert write_report("g") == before
    assert load_records("g")[0].history == HISTORY


def test_a_line_that_is_still_being_written_is_left_out(workplace):
    put(workplace, "seed=0")
    path = next(workplace.glob("results/runs/g/*/metrics.jsonl"))
    path.write_text(path.read_text() + '{"epoch": 4, "test_acc')
    assert len(load_records("g")[0].history) == 3


@pytest.mark.parametrize("group", ["g", "../g", "runs"])
def test_a_group_without_runs_is_told(workplace, group):
    with pytest.raises(UserError, match="group="):
        write_report(group)


def test_two_hundred_runs_make_their_report_in_seconds(workplace):
    import time

    for batch in (128, 256, 512, 1024, 2048):
        for optimizer in ("sgd", "lars"):
            for seed in range(20):
                put(workplace, f"batch={batch}", f"optimizer={optimizer}", f"seed={seed}")
    started = time.perf_counter()
    _, rows = table(workplace)
    assert len(rows) == 10 and len(make_rows(load_records("g"))) == 10
    assert time.perf_counter() - started < 5
    assert (
        io.StringIO((workplace / "results" / "g" / "runs.jsonl").read_text()).read().count("\n")
        == 200
    )
