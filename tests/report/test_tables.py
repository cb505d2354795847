"""The table of a group."""

from tests.helpers.report import put, table


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


def test_the_csv_has_the_accuracies_on_both_splits(workplace):
    held = "data.holdout=100"
    put(workplace, held, "seed=0", accuracy=80.0, holdout_accuracy=70.0)
    put(workplace, held, "seed=1", accuracy=80.0, holdout_accuracy=72.0)
    put(workplace, held, "seed=0", "batch=256", status="diverged", accuracy=10.0)
    put(workplace, "batch=512")
    _, rows = table(workplace)
    columns = ("accuracy_mean", "holdout_accuracy_mean", "holdout_accuracy_std")
    found = {row["batch"]: [row[key] for key in columns] for row in rows}
    assert found["128"] == ["80.0", "71.0", str(2**0.5)]
    assert found["256"] == ["10.0", "10.0", ""]
    assert found["512"] == ["80.0", "", ""]
