"""The critical batch size of a group: which runs count, and the files that show it."""

import csv
import doctest
import json
import math
import re

import pytest
from matplotlib.figure import Figure

from engine.errors import UserError
from engine.report import critical, critical_plots
from engine.report.critical import Study, study_of
from engine.report.critical_page import critical_json, critical_section, critical_sentence
from engine.report.rows import make_rows
from engine.report.write import write_report
from engine.runs.records import load_records
from tests.helpers.critical import EIGHT, history, put_group, put_run
from tests.helpers.report import page_of, put

SIX = EIGHT[:6]
FILES = ("critical.json", "steps.png", "steps.svg", "rates.png", "rates.svg")


def written(work, target=None):
    """Write the report; return critical.json."""
    write_report("g", target)
    return json.loads((work / "results" / "g" / "critical.json").read_text())


def study(target=None) -> Study:
    """Return the study of the group."""
    found = study_of(make_rows(load_records("g")), target)
    assert found is not None
    return found


def measured(target=None):
    """Return what critical.json would hold."""
    return json.loads(critical_json(study(target)))


def section():
    """Return the section of the page."""
    return critical_section(study(), [])


def by_batch(curve):
    """Return the entries of an optimizer's batches in critical.json by batch."""
    return {entry["batch"]: entry for entry in curve["batches"]}


def test_critical_json_has_the_points_and_the_fit_of_each_optimizer(workplace):
    put_group(workplace, 1000, SIX)
    put_group(workplace, 4000, SIX, "lars")
    found = written(workplace)
    assert list(found) == ["target_accuracy", "split", "model", "data", "sgd", "lars"]
    head = [found[key] for key in ("target_accuracy", "split", "model", "data")]
    assert head == [70.0, "holdout", "resnet18", "cifar10"]
    keys = ["batches", "b_crit", "b_crit_low", "b_crit_high", "s_min", "e_min"]
    assert list(found["sgd"]) == list(found["lars"]) == keys
    # 3000 (1 + 1000 / 64) steps.
    assert found["sgd"]["batches"][0] == {
        "batch": 64, "steps": 49_875, "examples": 3_192_000, "runs": 1, "censored": 0,
        "base_lr": 0.1, "eval_every": 1,
    }  # fmt: skip
    assert [entry["batch"] for entry in found["lars"]["batches"]] == list(SIX)
    for name, b_crit in (("sgd", 1000), ("lars", 4000)):
        curve = found[name]
        assert curve["b_crit"] == pytest.approx(b_crit, rel=0.01)
        assert curve["b_crit_low"] <= curve["b_crit"] <= curve["b_crit_high"]
        assert curve["s_min"] == pytest.approx(3000, rel=0.01)
        assert curve["e_min"] == pytest.approx(curve["s_min"] * curve["b_crit"], rel=1e-4)


def test_a_censored_and_a_diverged_run_are_shown_and_do_not_bend_the_fit(workplace):
    put_group(workplace, 1000, SIX, seeds=(0, 1))
    before = measured()["sgd"]
    put_run(workplace, 128, 90_000, "seed=2", accuracies=(50, 60, 65.0))
    put_run(workplace, 256, 40, "seed=2", accuracies=(30.0, 10.0), status="diverged", accuracy=10.0)
    after = measured()["sgd"]
    assert {key: after[key] for key in after if key != "batches"} == {
        key: before[key] for key in before if key != "batches"
    }
    for batch in (128, 256):
        counts = by_batch(before)[batch] | {"runs": 3, "censored": 1}
        assert by_batch(after)[batch] == counts
    text = section()
    assert "| 26,438 (1 of 3 censored) |" in text and "| 14,719 (1 of 3 nan) |" in text
    figure = Figure()
    critical_plots.draw_steps("g", study(), figure)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[-2:] == ["target not reached", "diverged"]
    for axes in figure.axes:
        assert "x" in [line.get_marker() for line in axes.lines]


def test_a_batch_at_which_half_of_the_runs_miss_the_target_is_not_fitted(workplace):
    put_group(workplace, 1000, SIX)
    put_run(workplace, 4096, 10, "seed=0")
    put_run(workplace, 4096, 90_000, "seed=1", accuracies=(50.0, 65.0))
    found = measured()["sgd"]
    assert found["b_crit"] == pytest.approx(1000, rel=0.01)
    entry = by_batch(found)[4096]
    assert (entry["steps"], entry["runs"], entry["censored"]) == (10, 2, 1)
    assert "| 10 (1 of 2 censored) | 1 epoch | 40,960 | - | - |" in section()
    figure = Figure()
    critical_plots.draw_steps("g", study(), figure)
    assert list(figure.axes[0].lines[0].get_xdata()) == list(SIX)


def test_a_run_that_reached_the_target_and_then_diverged_did_not_reach_it(workplace):
    put_group(workplace, 1000, SIX)
    put_run(workplace, 4096, 300, accuracies=(50, 71, 10.0), status="diverged", accuracy=10.0)
    assert by_batch(measured()["sgd"])[4096]["steps"] is None
    assert "| not in 300 (1 of 1 nan) | 1 epoch | - | - | - |" in section()


def test_of_several_settings_the_one_with_most_seeds_counts_then_the_fastest(workplace):
    put_group(workplace, 1000, SIX)
    fast, slow = ("optimizer.base_lr=0.4",), ("optimizer.base_lr=0.2",)
    put_run(workplace, 64, 20_000, *fast, base_lr=0.4)
    assert by_batch(measured()["sgd"])[64] == {
        "batch": 64, "steps": 20_000, "examples": 1_280_000, "runs": 1, "censored": 0,
        "base_lr": 0.4, "eval_every": 1,
    }  # fmt: skip
    for seed in (0, 1):
        put_run(workplace, 64, 60_000, *slow, f"seed={seed}", base_lr=0.2)
    entry = by_batch(measured()["sgd"])[64]
    assert (entry["base_lr"], entry["runs"], entry["steps"]) == (0.2, 2, 60_000)
    # Of as many seeds, those that all reach the target count first.
    put_run(workplace, 64, 20_000, *fast, "seed=1", accuracies=(50.0, 65.0), base_lr=0.4)
    assert by_batch(measured()["sgd"])[64]["base_lr"] == 0.2


def test_evaluations_inside_an_epoch_count_from_the_start_of_the_run(workplace):
    rows = history(100, accuracies=(50.0, 71.0), images=3000)
    inside = [
        {"step": step, "train_seconds": 1.0, "test_accuracy": None, "holdout_accuracy": accuracy}
        for step, accuracy in ((60, 69.9), (80, 70.0), (90, 69.0))
    ]
    rows[1]["evaluations"] = inside
    put_run(workplace, 64, 100, history=rows)
    put_group(workplace, 1000, SIX[1:])
    # The second epoch begins at step 50, after 3000 images.
    entry = by_batch(measured()["sgd"])[64]
    assert (entry["steps"], entry["examples"]) == (80, 3000 + 30 * 64)
    (passage,) = study().curves[0].points[0].passages
    assert passage.before == 60


def test_the_run_s_own_count_is_used_at_its_own_target(workplace):
    put_group(workplace, 1000, SIX[1:])
    own = {"steps_to_target": 77, "examples_to_target": 4900, "seconds_to_target": 1.0}
    put_run(workplace, 64, 100, **own)
    entry = by_batch(measured()["sgd"])[64]
    assert (entry["steps"], entry["examples"]) == (77, 4900)
    entry = by_batch(measured(69)["sgd"])[64]
    assert (entry["steps"], entry["examples"]) == (67, 67 * 64)


def test_without_a_hold_out_the_test_split_is_read_and_the_page_says_so(workplace):
    for batch in SIX:
        steps = round(300 * (1 + 1000 / batch))
        put(workplace, f"batch={batch}", steps=steps, history=history(steps, "test"))
    write_report("g")
    assert not (workplace / "results" / "g" / "critical.json").exists()
    found = written(workplace, 70)
    assert found["split"] == "test" and found["sgd"]["b_crit"] == pytest.approx(1000, rel=0.02)
    page = (workplace / "results" / "g" / "README.md").read_text()
    assert "Critical batch size at 70 % on the test split, as history: SGD" in page


def test_files_that_no_longer_apply_are_removed(workplace):
    for batch in SIX:
        put(workplace, f"batch={batch}", history=history(100 + 64_000 // batch, "test"))
    folder = workplace / "results" / "g"
    written(workplace, 70)
    assert all((folder / name).exists() for name in FILES)
    text = write_report("g", 99)
    assert not any((folder / name).exists() for name in FILES)
    assert "No critical batch size: runs of one optimizer reach 99 % at 0 batch sizes" in text
    assert "ritical" not in (folder / "README.md").read_text()


def test_the_plot_of_a_search_for_rates_is_left_alone(workplace):
    folder = workplace / "results" / "g"
    (folder / "experiment").mkdir(parents=True)
    (folder / "rates.png").write_bytes(b"the tuner's")
    put_group(workplace, 1000, SIX)
    assert written(workplace)["sgd"]["b_crit"] > 0
    assert (folder / "rates.png").read_bytes() == b"the tuner's"
    assert (folder / "steps.png").exists() and not (folder / "README.md").exists()


def test_runs_that_stop_at_a_lower_target_say_nothing_about_a_higher_one(workplace):
    put_group(workplace, 1000, SIX)
    for batch in SIX[:3]:
        stop = {"stop_at_target": True, "target_accuracy": 60.0}
        put_run(workplace, batch, 10, "seed=1", accuracies=(50.0, 60.5), stop=stop)
    found = measured()
    assert found["target_accuracy"] == 70 and found["sgd"]["b_crit"] == pytest.approx(1e3, rel=0.01)
    assert study_of(make_rows(load_records("g")), 80.0) is None


def test_one_model_and_data_set_make_a_study(workplace):
    put_group(workplace, 1000, SIX)
    for batch in SIX[:3]:
        put_run(workplace, batch, 10, "model=resnet8")
    found = measured()
    assert found["model"] == "resnet18" and len(found["sgd"]["batches"]) == 6


def test_a_curve_without_a_fit_gives_its_reason(workplace):
    put_group(workplace, 1000, SIX)
    put_group(workplace, 1000, SIX[:2], "lars")
    found = measured()
    reason = "A fit needs 3 batch sizes at which most runs reach the target, not 2."
    assert found["lars"]["reason"] == reason and list(found["lars"]) == ["batches", "reason"]
    assert f"\n\n{reason}\n\n" in section()
    assert "; LARS not known (a fit needs 3 batch sizes" in critical_sentence(study())


def test_failed_and_missing_runs_do_not_count(workplace):
    put_group(workplace, 1000, SIX)
    put_run(workplace, 64, 100, "seed=1", status="failed")
    put_run(workplace, 64, 100, "seed=2", status="missing")
    put_run(workplace, 64, 100, "seed=3", status="interrupted", accuracies=(50.0, 60.0))
    assert by_batch(measured()["sgd"])[64]["runs"] == 1


def test_the_page_shows_the_regimes(workplace):
    put_group(workplace, 500, EIGHT)
    page = page_of(workplace)
    first = page.splitlines()[2]
    assert re.fullmatch(
        r"Critical batch size at 70 % on the hold-out split: SGD 500 \(90 % interval 500 to 500\), "
        r"perfect scaling to 128, 50 % efficiency at 620\.",
        first,
    )
    # Examples are in proportion to 500 + batch: 564 / 628, 564 / 756 and 564 / 2548.
    for batch, efficiency, regime in (
        (64, 100, "perfect scaling"), (128, 90, "perfect scaling"),
        (256, 75, "diminishing returns"), (2048, 22, "floor"),
    ):  # fmt: skip
        assert re.search(rf"\| {batch} \|[^\n]*\| {efficiency} \| {regime} \|\n", page)
    assert "a gap of 33 % of the steps at most" in page
    assert page.index("![steps](steps.png)") < page.index("![rates](rates.png)")


def test_the_noise_scale_up_to_the_target_is_next_to_the_critical_batch_size(workplace):
    put_group(workplace, 1000, SIX[1:])
    assert "Noise scale" not in section()
    rows = history(49_875, accuracies=(60.0, 65.0, 71.0, 72.0))
    for row, scale in zip(rows, (600.0, None, 1000.0, 5000.0), strict=True):
        row["noise_scale"] = scale
    put_run(workplace, 64, 49_875, history=rows)
    b_crit = f"{study().curves[0].fit.b_crit:,.0f}"
    assert "| Regime | Noise scale | B_crit |" in section()
    assert "noise_scale" in measured()["sgd"] and measured()["sgd"]["noise_scale"] == 800
    assert re.search(rf"\| 64 \|[^\n]* \| 800 \| {b_crit[:2]}", section())
    assert re.search(rf"\| 128 \|[^\n]* \| - \| {b_crit[:2]}", section())


def test_the_terminal_says_the_critical_batch_size(workplace):
    put_group(workplace, 1000, SIX)
    text = " ".join(write_report("g").split())
    assert text.startswith("g: resnet18 on cifar10, to 70 % on the hold-out split Optimizer Batch")
    assert "SGD 64 0.1 49,875 1 epoch 3,192,000 100 perfect scaling" in text
    assert "SGD: critical batch size 1,000 (90 % interval" in text and "accuracy, %" not in text
    assert "critical.json" in text and "reaches 80.0 %" not in text
    # Next to runs that train all their epochs, accuracies are shown too.
    put(workplace, "batch=64", "data.holdout=5000", "epochs=15")
    text = " ".join(write_report("g").split())
    assert "Critical batch size at 70 % on the hold-out split: SGD 1,000 (90 % interval" in text
    assert "accuracy, %" in text


def test_the_steps_are_shown_from_the_first_batch_on(workplace):
    put_run(workplace, 64, 300, "eval_every=50steps")
    text = " ".join(write_report("g").split())
    assert "SGD 64 0.1, peak 0.2 300 50 steps" in text
    assert "SGD: critical batch size not known (a fit needs 3 batch sizes" in text


def test_how_long_a_run_may_take_and_its_evaluations_are_no_setting(workplace):
    for batch, steps in ((64, 900), (128, 500), (256, 300)):
        ends = [f"epochs={batch}", f"max_steps={steps}", f"eval_every={steps // 20}steps"]
        put_run(workplace, batch, steps, *ends)
    write_report("g")
    with open(workplace / "results" / "g" / "table.csv") as file:
        assert [row["settings"] for row in csv.DictReader(file)] == ["", "", ""]
    assert "epochs=" not in (workplace / "results" / "g" / "table.md").read_text()
    found = written(workplace)["sgd"]["batches"]
    assert [entry["eval_every"] for entry in found] == ["45steps", "25steps", "15steps"]


def test_the_same_runs_give_the_same_files_without_nan(workplace):
    put_group(workplace, 1000, SIX, seeds=(0, 1))
    put_run(workplace, 8192, 100, accuracies=(10.0,), status="diverged", accuracy=10.0)
    folder = workplace / "results" / "g"
    written(workplace)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_report("g")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert set(FILES) <= set(before) and b"NaN" not in before["critical.json"]


def test_table_csv_has_steps_and_examples_to_the_target(workplace):
    put_run(workplace, 64, 300, "seed=0")
    put_run(workplace, 64, 400, "seed=1")
    put_run(workplace, 128, 300, "seed=0")
    put_run(workplace, 128, 400, "seed=1", accuracies=(50.0, 60.0))
    write_report("g")
    with open(workplace / "results" / "g" / "table.csv") as file:
        rows = list(csv.DictReader(file))
    columns = ("steps_to_target_mean", "examples_to_target_mean", "seconds_to_target_mean")
    assert [rows[0][key] for key in columns] == ["350.0", "22400.0", "30.0"]
    assert [rows[1][key] for key in columns] == ["", "", ""]
    assert list(rows[0])[-5:-3] == list(columns[:2])


def test_a_group_without_a_target_has_no_study(workplace):
    for batch in SIX:
        put(workplace, f"batch={batch}")
    assert study_of(make_rows(load_records("g")), None) is None
    with pytest.raises(UserError, match="has no runs"):
        write_report("h", 70)


def test_the_examples_of_the_docstrings():
    for module in (critical, critical_plots):
        failed, tried = doctest.testmod(module)
        assert tried >= 1 and not failed


def test_the_rates_are_drawn_with_both_rules(workplace):
    put_group(workplace, 1000, SIX)
    figure = Figure()
    critical_plots.draw_rates("g", study().curves, figure)
    measured, linear, root = figure.axes[0].lines
    assert list(measured.get_ydata()) == pytest.approx([0.1 * math.sqrt(2**k) for k in range(6)])
    assert list(linear.get_ydata()) == pytest.approx([0.1, 3.2])
    assert list(root.get_ydata()) == pytest.approx([0.1, 0.1 * math.sqrt(32)])


def test_steps_and_examples_are_drawn_with_perfect_scaling(workplace):
    put_group(workplace, 1000, SIX)
    figure = Figure()
    critical_plots.draw_steps("g", study(), figure)
    for axes, expected in zip(figure.axes, ((49_875, 49_875 / 32), (3_192_000,) * 2), strict=True):
        (perfect,) = [line for line in axes.lines if line.get_linestyle() == "--"]
        assert list(perfect.get_xdata()) == [64, 2048]
        assert list(perfect.get_ydata()) == pytest.approx(expected)
        (marked,) = [line for line in axes.lines if line.get_linestyle() == "-."]
        assert marked.get_xdata()[0] == pytest.approx(1000, rel=0.01)
