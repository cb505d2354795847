"""Tables, pages and plots show times of comparable runs only."""

import csv

import pytest
from matplotlib.figure import Figure

from engine.report.plots import draw_against, draw_curves, time_figures, write_comparison
from engine.report.rows import Target, gather_lines, make_rows
from engine.report.times import Conditions
from engine.report.write import write_report
from engine.runs.records import load_records
from tests.helpers.report import HISTORY, page_of, put, table

ALONE = {"runs_at_once": 2, "threads": 1, "shared_machine": False}
EARLIER: dict[str, object] = {"runs_at_once": None, "shared_machine": None}
SHARED = ALONE | {"shared_machine": True}
ONE = {"runs_at_once": 1, "threads": 2, "shared_machine": False}


def put_timed(work, *overrides, seconds=30.0, **changes):
    """Write a run of three epochs that took `seconds` in total."""
    history = [row | {"train_seconds": seconds / 3} for row in HISTORY]
    times = {"train_seconds": seconds, "images_per_second": 3000.0 / seconds}
    put(work, *overrides, history=history, **times, **changes)


def drawn(target=None):
    """Return the means and dots in a plot of the group's times, as (batch, seconds)."""
    rows, axes = make_rows(load_records("g")), Figure().subplots()
    goal = None if target is None else Target(target)
    has_mean = (lambda row: True) if target is None else (lambda row: row.reaches(target))
    lines = gather_lines(rows, "batch")
    draw_against(axes, "batch", lines, time_figures(rows, goal), has_mean)
    means = [
        tuple(map(float, p)) for line in axes.lines for p in zip(*line.get_data(), strict=True)
    ]
    dots = [tuple(map(float, place)) for marks in axes.collections for place in marks.get_offsets()]
    return means, [dot for dot in dots if dot != (0.0, 0.0)]


def test_a_run_that_shared_the_machine_does_not_count_in_times(workplace):
    for seed, (seconds, found) in enumerate(((30.0, ALONE), (300.0, SHARED), (60.0, ALONE))):
        put_timed(workplace, f"seed={seed}", seconds=seconds, **found)
    text, (row,) = table(workplace)
    assert "| 80.00 ± 0.00 (base line) | 45.0 s (1 of 3 runs shared the machine) |" in text
    assert "over seeds. Times are of 2 runs at once, 1 thread each.\n" in text
    assert (row["train_seconds_mean"], row["images_per_second_mean"]) == ("45.0", "75.0")
    assert (row["seconds_to_target_mean"], row["runs_at_once"], row["runs"]) == ("45.0", "2", "3")
    page = page_of(workplace)
    assert "| 3 | 45.0 s | 45.0 s (1 of 3 runs shared the machine) | 75 |" in page
    assert page.count("Times are of 2 runs at once, 1 thread each.") == 1
    for target in (None, 79.5):
        assert drawn(target) == ([(128.0, 45.0)], [(128.0, 30.0), (128.0, 60.0)])


@pytest.mark.parametrize(
    ("seeds", "note"),
    [(1, "- (the run shared the machine)"), (2, "- (all 2 runs shared the machine)")],
)
def test_a_row_whose_runs_all_shared_the_machine_has_no_time(workplace, seeds, note):
    for seed in range(seeds):
        put_timed(workplace, f"seed={seed}", **SHARED)
    text, (row,) = table(workplace)
    assert f"| {note} |" in text and "Times are of" not in text
    assert row["train_seconds_mean"] == row["seconds_to_target_mean"] == ""
    assert row["images_per_second_mean"] == "" and row["runs_at_once"] == "2"
    assert f"| {note} |" in page_of(workplace)
    assert drawn() == ([], []) and "time.png" not in write_report("g")
    put_timed(workplace, "batch=256", **ALONE)
    assert "time.png" in write_report("g") and drawn()[0] == [(256.0, 30.0)]


def test_a_rows_times_are_those_under_its_most_common_conditions(workplace):
    put_timed(workplace, "seed=0", seconds=90.0, **ONE)
    for seed in (1, 2):
        put_timed(workplace, f"seed={seed}", **ALONE)
    put_timed(workplace, "seed=3", seconds=300.0, **SHARED)
    text, (row,) = table(workplace)
    assert "| 128 (mixed threads) |" in text
    notes = "1 of 4 runs shared the machine, 1 of 4 runs under other conditions"
    assert f"| 30.0 s ({notes}) |" in text and row["train_seconds_mean"] == "30.0"
    assert drawn() == ([(128.0, 30.0)], [(128.0, 30.0)] * 2)


def test_a_row_prefers_the_conditions_of_runs_that_did_not_share(workplace):
    for seed in (0, 1):
        put_timed(workplace, f"seed={seed}", seconds=90.0, **ONE | {"shared_machine": True})
    put_timed(workplace, "seed=2", **ALONE)
    assert "| 30.0 s (2 of 3 runs shared the machine) |" in table(workplace)[0]


def test_a_row_of_other_conditions_is_marked_and_not_plotted(workplace):
    for batch in (128, 256):
        put_timed(workplace, f"batch={batch}", **ALONE)
    put_timed(workplace, "batch=512", **ONE, device="GPU")
    text, rows = table(workplace)
    assert "| 30.0 s |" in text and "| 30.0 s (1 run at once, 2 threads, GPU) |" in text
    note = "Times are of 2 runs at once, 1 thread each if the row says nothing else; plots have no"
    assert note in text and note in page_of(workplace)
    assert [row["runs_at_once"] for row in rows] == ["2", "2", "1"]
    assert [batch for batch, _ in drawn()[0]] == [128.0, 256.0]


def test_times_of_earlier_versions_are_not_recorded_and_in_no_plot(workplace, monkeypatch):
    put_timed(workplace, "seed=0", **EARLIER)
    put_timed(workplace, "seed=1", seconds=60.0, **EARLIER)
    put_timed(workplace, "batch=256", **ONE | {"shared_machine": None})
    text, rows = table(workplace)
    assert text.count("| not recorded |") == 2 and "Times are of" not in text
    assert 'A time is "not recorded" if an earlier version trained the run' in text
    assert [row["train_seconds_mean"] for row in rows] == ["", ""]
    assert [row["runs_at_once"] for row in rows] == ["", ""]
    assert [*rows[0]][-1] == "runs_at_once"
    page = page_of(workplace)
    assert page.count("| not recorded |") == 2 and "| Images/s |" not in page
    assert drawn() == ([], []) and "time.png" not in write_report("g")
    rows = make_rows(load_records("g"))
    figure = Figure()
    draw_curves("g", gather_lines(rows, "batch"), figure)
    assert [axes.get_title() for axes in figure.axes] == ["batch 128", "batch 256"]
    panels = []
    monkeypatch.setattr("engine.report.plots.save", lambda path, draw, size: panels.append(draw))
    write_comparison(workplace, {"g": rows})
    figure = Figure()
    panels[0](figure)
    assert [axes.get_title() for axes in figure.axes] == ["Final test accuracy, %"]


def test_new_runs_are_distinguished_from_those_of_earlier_versions(workplace):
    put_timed(workplace, "seed=0", **EARLIER)
    put_timed(workplace, "seed=1", **ALONE)
    put_timed(workplace, "batch=256", **ALONE)
    put_timed(workplace, "batch=512", **EARLIER)
    text, _ = table(workplace)
    assert "| 30.0 s (1 of 2 runs not recorded) |" in text and "| not recorded |" in text
    assert "Times are of 2 runs at once, 1 thread each." in text
    assert [batch for batch, _ in drawn()[0]] == [128.0, 256.0]


def test_a_target_that_a_run_misses_has_no_time_even_if_that_run_is_not_timed(workplace):
    put_timed(workplace, "seed=0", **ALONE)
    put(workplace, "seed=1", history=HISTORY[:2], **SHARED)
    write_report("g", 79.5)
    with open("results/g/table.csv") as file:
        (row,) = csv.DictReader(file)
    assert row["seconds_to_target_mean"] == ""
    assert drawn(79.5) == ([], [(128.0, 30.0)])


def test_a_diverged_seed_does_not_count_in_means_of_times(workplace):
    put_timed(workplace, "seed=0", **ALONE)
    put_timed(workplace, "seed=1", status="diverged", accuracy=10.0, seconds=3.0, **ALONE)
    assert "| 30.0 s |" in table(workplace)[0]
    assert drawn() == ([(128.0, 30.0)], [(128.0, 30.0)])


def test_curves_over_wall_time_omit_runs_that_are_not_comparable(workplace):
    for seed, found in enumerate((ALONE, SHARED, ALONE, ONE)):
        put_timed(workplace, f"seed={seed}", **found)
    put_timed(workplace, "seed=4", status="failed", **SHARED)
    figure = Figure()
    draw_curves("g", gather_lines(make_rows(load_records("g")), "batch"), figure)
    over_epochs, over_time = (len(axes.lines) for axes in figure.axes)
    # The failed run is drawn over both, because a run without an outcome may still be running.
    assert (over_epochs, over_time) == (5, 3)


def test_a_plot_of_several_groups_shows_the_most_common_conditions(workplace, monkeypatch):
    for batch in (128, 256):
        put_timed(workplace, f"batch={batch}", **ALONE)
    put_timed(workplace, "batch=512", **ONE)
    figures = []
    monkeypatch.setattr(
        "engine.report.plots.draw_against",
        lambda axes, axis, lines, found, *rest, **options: figures.append(found),
    )
    monkeypatch.setattr("engine.report.plots.save", lambda path, draw, size: draw(Figure()))
    rows = make_rows(load_records("g"))
    write_comparison(workplace, {"g": rows[:1], "h": rows[1:]})
    assert [len(figures[1](row)) for row in rows] == [1, 1, 0]


def test_conditions_are_described_in_words():
    two = Conditions(2, 1, "cpu")
    assert two.describe(two) == two.describe(None) == "2 runs at once, 1 thread each"
    assert Conditions(1, 2, "gpu").describe(two) == "1 run at once, 2 threads, gpu"
    assert Conditions(3, None, "cpu").describe(two) == "3 runs at once"
