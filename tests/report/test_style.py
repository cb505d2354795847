"""The style of all plots: color is the optimizer, and the same runs give the same files."""

import re

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from engine.config.optimizers import TITLES, title_of
from engine.report.curves import draw_curves
from engine.report.plots import draw_against
from engine.report.rows import Row, gather_lines, make_rows
from engine.report.settings import draw_settings
from engine.report.style import COLORS, GREY, PALETTE, STYLES, color_of, save, spread, styles_of
from engine.report.write import write_report
from engine.runs.records import load_records
from tests.helpers.report import put

BLUE, VERMILION = "#0072b2", "#d55e00"


def test_the_palette_has_six_distinct_colors_and_each_optimizer_has_one():
    assert len(set(PALETTE)) == 6 and len(set(STYLES)) == 6
    assert [color_of(title) for title in ("SGD", "LARS")] == [BLUE, VERMILION]
    assert set(TITLES.values()) <= set(COLORS)


def test_an_optimizer_inside_lars_has_another_color_than_any_other():
    bases = [name for name in TITLES if name != "lars"]
    colors = [color_of(title_of(label)) for label in (*TITLES, *(f"lars-{b}" for b in bases))]
    assert len(set(colors)) == len(colors) and GREY not in colors


def test_the_color_is_the_optimizer_and_the_style_the_recipe_in_every_plot(workplace):
    for optimizer in ("sgd", "lars"):
        for epochs in (15, 45):
            for batch in (128, 256):
                changes = (f"optimizer={optimizer}", f"epochs={epochs}", f"batch={batch}")
                put(workplace, *changes)
    rows = make_rows(load_records("g"))
    lines = gather_lines(rows, "batch")
    axes = Figure().subplots()
    draw_against(axes, "batch", lines, Row.results)
    drawn = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert drawn == {
        "SGD epochs=15": (BLUE, "-"), "SGD epochs=45": (BLUE, "--"),
        "LARS epochs=15": (VERMILION, "-"), "LARS epochs=45": (VERMILION, "--"),
    }  # fmt: skip
    labels = [text.get_text() for text in axes.texts]
    assert sorted(labels) == ["LARS 80.0", "LARS 80.0", "SGD 80.0", "SGD 80.0"]
    figure = Figure()
    draw_curves("g", lines, figure)
    panel = figure.axes[0]
    assert {(line.get_color(), line.get_linestyle()) for line in panel.lines} == set(drawn.values())
    figure = Figure()
    draw_settings("g", rows, figure)
    (axes,) = figure.axes
    dots = {to_hex(color) for marks in axes.collections for color in marks.get_facecolor()}
    assert dots == {BLUE, VERMILION}


@pytest.mark.drawn
def test_the_same_runs_give_the_same_svg_bytes_without_date_or_version(workplace):
    put(workplace, "seed=0")
    put(workplace, "optimizer=lars", "batch=256", status="diverged", accuracy=10.0)
    folder = workplace / "results" / "g"
    write_report("g")
    before = {path.name: path.read_bytes() for path in folder.glob("*.svg")}
    assert {*before} == {path.with_suffix(".svg").name for path in folder.glob("*.png")}
    for path in folder.glob("*.svg"):
        path.unlink()
    write_report("g")
    assert {path.name: path.read_bytes() for path in folder.glob("*.svg")} == before
    text = before["accuracy.svg"].decode()
    assert "<dc:date>" not in text and "matplotlib.org" not in text
    assert not re.search(r"\d{4}-\d\d-\d\dT", text)


def test_a_plot_without_content_is_removed_with_its_svg(workplace):
    put(workplace)
    folder = workplace / "results" / "g"
    folder.mkdir()
    for name in ("epochs.png", "epochs.svg", "noise.svg"):
        (folder / name).write_bytes(b"an older report's")
    write_report("g")
    assert not {path.stem for path in folder.iterdir()} & {"epochs", "noise"}


def test_styles_repeat_only_after_six_recipes():
    assert styles_of(["a", "b", "a"]) == {"a": ("-", "o"), "b": ("--", "s")}
    assert len(set(styles_of("abcdef").values())) == 6


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([], []),
        ([0.1, 0.9], [0.1, 0.9]),
        ([0.5, 0.5], [0.4, 0.6]),
        ([0.0, 0.5, 0.5, 0.5], [0.0, 0.3, 0.5, 0.7]),
        ([0.3, 0.45, 0.5], [13 / 60, 25 / 60, 37 / 60]),
    ],
)
def test_labels_are_moved_apart(places, expected):
    assert spread(places, 0.2) == pytest.approx(expected)


@pytest.mark.drawn
def test_a_plot_is_narrow_enough_for_a_phone(workplace):
    """At 360 pixels of width the smallest text is at least 8 pixels high."""
    from engine.report.style import SMALL_TEXT, WIDTH

    assert SMALL_TEXT / 72 / WIDTH * 360 > 8
    path = save(workplace / "plot.png", lambda figure: figure.subplots(), (WIDTH, 3.0))
    assert path.with_suffix(".svg").exists()
