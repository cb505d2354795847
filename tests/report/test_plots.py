"""The plots of a group: which rows form lines, and which get a separate plot."""

import os
import subprocess
import sys

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

import engine.report.plots
import engine.report.write
from engine.report import titles
from engine.report.plots import draw_against, label_of
from engine.report.rows import gather_lines, make_rows
from engine.report.write import write_report
from engine.runs.records import load_records
from tests.helpers import PROJECT
from tests.helpers.report import HISTORY, baselines_drawn, page_of, put


def test_the_base_line_is_drawn(workplace):
    put(workplace)
    put(workplace, "batch=256")
    assert baselines_drawn() == ["base line: SGD 128"]


def test_the_time_to_target_has_no_mean_if_a_seed_misses_it(workplace):
    for seed in (0, 1):
        put(workplace, f"seed={seed}")
        put(workplace, "batch=256", f"seed={seed}", history=HISTORY[: 3 - seed])
    rows = make_rows(load_records("g"))
    axes = Figure().subplots()
    draw_against(axes, "batch", gather_lines(rows, "batch"), lambda row: row.times_to(79.5))
    (line,) = axes.lines
    assert list(line.get_xdata()) == [128]
    dots = [tuple(place) for marks in axes.collections for place in marks.get_offsets()]
    assert dots.count((256, 30.0)) == 1 and dots.count((128, 30.0)) == 2


def test_a_group_with_several_numbers_of_epochs_is_drawn_against_them(workplace):
    for epochs, accuracy in ((15, 60.0), (45, 80.0)):
        for seed in (0, 1):
            put(workplace, f"epochs={epochs}", f"seed={seed}", accuracy=accuracy + seed)
        put(workplace, f"epochs={epochs}", "batch=256", "optimizer=lars", accuracy=accuracy)
    put(workplace, "epochs=90", "batch=512")
    assert "![epochs](epochs.png)" in page_of(workplace)
    lines = gather_lines(make_rows(load_records("g")), "epochs")
    assert {label: [row.epochs for row in rows] for label, rows in lines.items()} == {
        "SGD 128": [15, 45], "LARS 256": [15, 45], "SGD 512": [90],
    }  # fmt: skip
    axes = Figure().subplots()
    draw_against(axes, "epochs", lines, lambda row: row.figures("test_accuracy"))
    drawn = {line.get_label(): [*zip(*line.get_data(), strict=True)] for line in axes.lines}
    assert drawn["SGD 128"] == [(15, 60.5), (45, 80.5)] and axes.get_xlabel() == "Epochs"


def test_a_group_with_one_number_of_epochs_is_not_drawn_against_it(workplace):
    put(workplace, "batch=128")
    put(workplace, "batch=256")
    assert "epochs.png" not in page_of(workplace)


def test_a_plot_of_several_groups_omits_settings_at_one_batch(workplace, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        engine.report.plots,
        "draw_against",
        lambda axes, axis, lines, *figures, **options: drawn.append(set(lines)),
    )
    monkeypatch.setattr(engine.report.plots, "save", lambda path, draw, size: draw(Figure()))
    for number in range(5):
        put(workplace, f"optimizer.base_lr=0.{number + 1}")
    rows = engine.report.write.load_rows("g")
    settings = {
        f"SGD h, 200 epochs {label.removeprefix('SGD ')}" for label in gather_lines(rows, "batch")
    }
    assert len(settings) == 5
    # A group without lines has only its settings to draw.
    engine.report.plots.write_comparison(workplace, {"h": rows})
    for batch in (128, 256):
        put(workplace, "optimizer=lars", f"batch={batch}")
    engine.report.plots.write_comparison(
        workplace, {"g": engine.report.write.load_rows("g"), "h": rows}
    )
    assert drawn[::2] == [settings, {"LARS g, 200 epochs"} | settings]


def test_many_settings_at_one_batch_get_a_separate_plot(workplace):
    for number, change in enumerate(("0.1", "0.2", "0.3", "0.4")):
        put(workplace, f"optimizer.base_lr={change}", accuracy=70.0 + number)
    text = write_report("g")
    assert "accuracy.png" in text and "settings.png" not in text
    put(workplace, "optimizer.base_lr=0.5", status="diverged", accuracy=10.0)
    text = write_report("g")
    folder = workplace / "results" / "g"
    assert "settings.png" in text and "accuracy.png" not in text and "time.png" not in text
    assert (folder / "settings.png").exists() and not (folder / "accuracy.png").exists()
    page = (folder / "README.md").read_text()
    assert "![settings](settings.png)" in page and " reaches it " not in page.replace(
        "a row reaches", ""
    )
    # Lines of several batches are still drawn against the batch, in addition to the settings.
    for batch in (256, 512):
        put(workplace, "optimizer=lars", f"batch={batch}")
    text = write_report("g")
    assert "accuracy.png" in text and "settings.png" in text


def test_the_setting_that_an_ablation_changes_stays_on_its_line(workplace):
    changes = ("nesterov=true", "momentum=0.8", "dampening=0.1", "weight_decay=0.1")
    for batch in (128, 256, 512):
        put(workplace, f"batch={batch}", accuracy=80.0)
    for number, change in enumerate(changes):
        put(workplace, "batch=512", f"optimizer.{change}", accuracy=70.0 + number)
    put(workplace, "batch=512", "epochs=3", accuracy=81.0)
    text = write_report("g")
    assert all(f" {name}.png" in text for name in ("accuracy", "settings", "epochs"))
    rows = make_rows(load_records("g"))
    lines, settings = engine.report.plots.part_settings(gather_lines(rows, "batch"))
    assert {label: [row.batch for row in found] for label, found in lines.items()} == {
        "SGD epochs=200": [128, 256, 512]
    }
    assert len(settings) == 6 and [
        row.accuracy() for row in settings if row.setting == titles.COMMON
    ] == [80.0]
    through_epochs = gather_lines(rows, "epochs")
    assert [row.epochs for row in through_epochs["SGD 512"]] == [3, 200]
    assert "- SGD epochs=200 reaches it up to batch 512." in page_of(workplace)


def test_settings_are_ranked_with_the_row_that_they_are_compared_with(workplace):
    for batch in (128, 512):
        put(workplace, f"batch={batch}", accuracy=80.0)
    for momentum in (0.5, 0.6, 0.7, 0.8, 0.95):
        put(workplace, "batch=512", f"optimizer.momentum={momentum}", accuracy=70.0)
    lines, settings = engine.report.plots.part_settings(
        gather_lines(make_rows(load_records("g")), "batch")
    )
    assert [row.batch for row in lines["SGD optimizer.momentum=0.9"]] == [128, 512]
    assert len(lines) == 1 and sorted(row.accuracy() for row in settings)[-1] == 80.0
    assert {row.batch for row in settings} == {512}


@pytest.mark.drawn
def test_a_folder_with_dollars_in_its_name_is_drawn(workplace):
    """Text between dollar signs is a formula.

    https://github.com/telperion/nine-or-null/issues/14
    """
    noisy = [row | {"noise_scale": 100.0} for row in HISTORY]
    for number, root in enumerate(("$x^$", r"b_$\frac$", "c$")):
        for batch in (128, 256):
            changes = ["data=image_folder", f"data.root='{root}'", f"batch={batch}"]
            put(workplace, *changes, "noise_scale=true", history=noisy, accuracy=70.0 + number)
    write_report("g")
    drawn = {path.name for path in (workplace / "results" / "g").glob("*.png")}
    assert drawn == {"accuracy.png", "time.png", "curves.png", "noise.png"}
    # Each folder gives a row with a different setting; these many get a separate plot.
    for root in ("$y^$", "d$$"):
        put(workplace, "data=image_folder", f"data.root='{root}'", "batch=512")
    for root in ("$z^$", "e$$", "f"):
        put(workplace, "data=image_folder", f"data.root='{root}'", "batch=1024")
    write_report("g")
    assert (workplace / "results" / "g" / "settings.png").exists()


def test_a_label_shows_the_name_literally():
    for name in ("$x^$", r"\$a", "a$b", "plain"):
        text = Text(text=label_of(name))
        assert text._preprocess_math(text.get_text()) == (name, False)


@pytest.mark.drawn
def test_plots_do_not_depend_on_matplotlibs_configuration(workplace):
    """A notebook sets the backend of its commands, and a matplotlibrc may require missing LaTeX.

    https://github.com/bmaltais/kohya_ss/issues/2521
    https://github.com/astroswego/plotypus/issues/67
    """
    put(workplace)
    write_report("g")
    plots = [workplace / "results" / "g" / name for name in ("accuracy.png", "curves.png")]
    expected = [path.read_bytes() for path in plots]
    (workplace / "matplotlibrc").write_text("text.usetex: True\naxes.facecolor: red\n")
    backend = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    environment = os.environ | backend | {"PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "scripts.tables", "group=g"]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    assert [path.read_bytes() for path in plots] == expected
