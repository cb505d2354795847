"""Reading a group's runs, and the numbers of its rows."""

import shutil

import pytest

from engine.errors import UserError
from engine.report.plots import with_accuracy
from engine.report.rows import make_rows
from engine.report.write import write_report
from engine.runs.records import load_records
from tests.helpers.report import HISTORY, baselines_drawn, page_of, put, table


def test_rows_have_mean_and_standard_deviation_over_seeds(workplace):
    for seed, accuracy in enumerate((79.0, 80.0, 81.0)):
        put(workplace, f"seed={seed}", accuracy=accuracy)
    text, (row,) = table(workplace)
    assert "| 128 | 0.1 | 80.00 ± 1.00 (base line) | 30.0 s |" in text
    assert (row["runs"], row["accuracy_mean"], row["accuracy_std"]) == ("3", "80.0", "1.0")
    assert row["best_accuracy_mean"] == "81.0" and row["settings"] == ""
    # The target is the baseline less 0.5 points, 79.5 %, first reached after three epochs.
    assert row["seconds_to_target_mean"] == "30.0"


def test_with_several_rates_the_baseline_is_one_that_did_not_diverge(workplace):
    for rate in (1.6, 0.4, 0.1):
        diverged = {"status": "diverged", "accuracy": 10.0} if rate == 0.1 else {}
        put(workplace, f"optimizer.base_lr={rate:g}", base_lr=rate, **diverged)
    text, rows = table(workplace)
    assert [row["base_lr"] for row in rows] == ["0.1", "0.4", "1.6"]
    assert "| 0.4 | 80.00 (base line) |" in text and text.count("(base line)") == 1
    # With several settings, none is the baseline of the page and of its plot.
    put(workplace, "optimizer=lars", "batch=256")
    assert "The target is" not in page_of(workplace)
    assert baselines_drawn() == []
    write_report("g", 70.0)
    assert (
        "LARS reaches it at batch 256." in (workplace / "results" / "g" / "README.md").read_text()
    )


def test_time_to_target_needs_every_seed_to_reach_it(workplace):
    put(workplace, "seed=0", target_accuracy=60.0)
    put(workplace, "seed=1", target_accuracy=60.0, history=HISTORY[:1])
    assert table(workplace)[1][0]["seconds_to_target_mean"] == ""


def test_a_run_that_stops_at_its_target_is_no_baseline_and_enters_no_accuracy_plot(workplace):
    stop = ["data.holdout=500", "stop_at_target=true", "target_accuracy=70", "batch=64"]
    put(workplace, *stop, steps_to_target=16, holdout_accuracy=71.0)
    put(workplace, *stop, "seed=1", steps_to_target=None, holdout_accuracy=60.0)
    assert "| 80.00 ± 0.00 (70 % not reached by 1 of 2) |" in table(workplace)[0]
    assert baselines_drawn() == []
    plots = {path.name for path in (workplace / "results" / "g").glob("*.png")}
    assert "accuracy.png" not in plots
    put(workplace, "batch=128", accuracy=79.0)
    text = table(workplace)[0]
    assert "| 128 | 0.1 | 79.00 (base line) |" in text and text.count("(base line)") == 1
    rows = make_rows(load_records("g"))
    assert [row.batch for row in with_accuracy(rows)] == [128]
    assert [row.target_split for row in rows] == ["holdout", "test"]


def test_published_runs_count_without_their_directories(workplace):
    put(workplace, "seed=0", accuracy=70.0)
    before = table(workplace)
    shutil.rmtree(workplace / "results" / "runs")
    assert table(workplace) == before
    assert load_records("g")[0].history == HISTORY


def test_an_incomplete_last_line_is_skipped(workplace):
    put(workplace, "seed=0")
    path = next(workplace.glob("results/runs/g/*/metrics.jsonl"))
    path.write_text(path.read_text() + '{"epoch": 4, "test_acc')
    assert len(load_records("g")[0].history) == 3


@pytest.mark.parametrize("content", ["{}", "[]", '{"status": "completed"}', "3"])
def test_an_invalid_summary_counts_as_missing(workplace, content):
    put(workplace)
    (workplace / "results" / "runs" / "g" / "run-0" / "summary.json").write_text(content)
    assert "| 128 | - | missing | - |" in table(workplace)[0].replace(" (base line)", "")


def test_a_damaged_published_file_is_an_error_and_is_kept(workplace):
    put(workplace, "batch=128")
    table(workplace)
    published = workplace / "results" / "g" / "runs.jsonl"
    damaged = "<<<<<<< ours\n" + published.read_text()
    published.write_text(damaged)
    with pytest.raises(UserError, match=r"results/g/runs\.jsonl: line 1 is not a JSON"):
        write_report("g")
    assert published.read_text() == damaged


def test_the_baselines_target_is_for_rows_of_the_same_epochs_only(workplace):
    put(workplace, "batch=128", "epochs=3", accuracy=79.7)
    put(workplace, "batch=256", "epochs=3", accuracy=79.7)
    put(workplace, "batch=256", "epochs=4", accuracy=79.7)
    _, rows = table(workplace)
    times = {(row["batch"], row["epochs"]): row["seconds_to_target_mean"] for row in rows}
    assert times["256", "4"] == "" and float(times["256", "3"]) > 0
    assert page_of(workplace).count(" | 3 | 30.0 s |") == 2
    write_report("g", 70.0)
    assert (workplace / "results/g/README.md").read_text().count("| - | - | 30.0 s |") == 0


def test_a_diverged_seed_counts_in_the_hold_out_accuracy_but_not_in_times(workplace):
    only = ("data.holdout=10", "optimizer=sgd")
    put(workplace, *only, "seed=0", holdout_accuracy=70.0)
    broken = {"holdout_accuracy": None, "train_seconds": 1.0, "images_per_second": None}
    put(workplace, *only, "seed=1", status="diverged", accuracy=10.0, **broken)
    page = page_of(workplace)
    assert "| 40.00 (70.00, 10.00) |" in page and "| 30.0 s | 1,000 |" in page
