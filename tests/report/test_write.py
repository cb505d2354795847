"""Whole reports: groups of various outcomes, and equal files from the same runs."""

import io

import pytest

import engine.report.write
from engine.errors import UserError
from engine.report.rows import make_rows
from engine.report.write import write_report
from engine.runs.records import load_records
from tests.helpers.report import HISTORY, page_of, put, table


@pytest.mark.parametrize("group", ["g", "../g", "runs"])
def test_a_group_without_runs_is_an_error(workplace, group):
    with pytest.raises(UserError, match="group="):
        write_report(group)


@pytest.mark.drawn
def test_a_report_of_two_hundred_runs_takes_seconds(workplace):
    import time

    for batch in (128, 256, 512, 1024, 2048):
        for optimizer in ("sgd", "lars"):
            for seed in range(20):
                put(workplace, f"batch={batch}", f"optimizer={optimizer}", f"seed={seed}")
    started = time.process_time()
    _, rows = table(workplace)
    assert len(rows) == 10 and len(make_rows(load_records("g"))) == 10
    # It takes 6 s on cores with AVX2 alone.
    assert time.process_time() - started < 12
    assert (
        io.StringIO((workplace / "results" / "g" / "runs.jsonl").read_text()).read().count("\n")
        == 200
    )


@pytest.mark.parametrize(
    "runs",
    [
        [("batch=128",)],
        [("batch=128", "optimizer=lars"), ("batch=256", "optimizer=lars")],
        [("batch=128", f"optimizer.momentum={m}") for m in (0, 0.1, 0.2, 0.3, 0.4, 0.5)],
    ],
    ids=["one run", "lars alone", "many settings"],
)
@pytest.mark.parametrize("status", ["completed", "diverged", "missing", "failed"])
def test_a_report_is_complete_for_every_outcome_and_setting(workplace, runs, status):
    for overrides in runs:
        history = HISTORY if status == "completed" else []
        put(workplace, *overrides, status=status, accuracy=10.0, history=history)
    text = page_of(workplace)
    assert text.startswith("# g\n") and "![curves](curves.png)" in text


def test_the_same_runs_give_the_same_files(workplace):
    put(workplace, "seed=0")
    put(workplace, "optimizer=lars", "seed=1")
    write_report("g")
    folder = workplace / "results" / "g"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_report("g")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_report_includes_runs_that_end_while_it_is_written(workplace, monkeypatch):
    put(workplace, "batch=128")
    write_plots = engine.report.write.write_plots

    def slow(*arguments):
        if not (workplace / "results" / "runs" / "g" / "run-1").exists():
            put(workplace, "batch=256")
        return write_plots(*arguments)

    monkeypatch.setattr(engine.report.write, "write_plots", slow)
    text, rows = table(workplace)
    assert [row["batch"] for row in rows] == ["128", "256"] and "| 256 |" in text
