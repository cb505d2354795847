"""The figures of README.md and results/README.md come from published results."""

import re

import pytest

import scripts.figures
from engine.cli import exit_status
from engine.errors import UserError
from scripts.figures import FIGURE, TABLE, figure, fill, pages
from tests.helpers import PROJECT

# Final accuracies in % that others published, which results/README.md compares with ours.
HYSTS = (
    "92.72", "92.04", "92.55", "92.25", "92.27", "92.42", "91.93", "92.32", "91.31", "91.95",
    "89.80", "91.79", "87.65", "88.49",
)  # fmt: skip
STUDY = (
    "90.40", "90.69", "90.22", "90.32", "89.50", "90.41", "89.41", "90.50", "89.29", "90.19",
    "86.87", "88.49", "77.72", "86.56",
)  # fmt: skip
# Rates, accuracies, a difference and times of `make demo`.
DEMO = (
    "0.07071", "5.657", "29.40", "20.40", "10.90", "27.70", "16.40", "14.00", "14.0", "3.1", "7.8",
    "6.0", "6.1", "8.7", "5.2", "5.7",
)  # fmt: skip
# The keys are the pages on which every decimal number needs a source. Each page lists the numbers
# that no result has, with their source or what they are. A source that is a file of the project
# must contain the number.
CONSTANTS = {
    "README.md": {
        "3.11": "pyproject.toml",
        "1708.03888": "lars/lars.py",
        "2.0": "a rate in the example of a loop",
        "0.9": "a momentum in the example of a loop",
        "1.290": "a loss that the run of the example printed",
        "46.08": "an accuracy that it printed",
        "10.08": "a rate that it printed",
        "0.1": "bias_lr_scale in conf/optimizer/lars.yaml",
        **dict.fromkeys(DEMO, "what make demo printed on two Xeon cores with AMX"),
    },
    "results/README.md": dict.fromkeys(HYSTS, "README of hysts/pytorch_image_classification")
    | dict.fromkeys(STUDY, "README of cmpark0126/pytorch-LARS"),
}
DECIMAL = re.compile(r"(?<![\d.])\d+\.\d+(?!\.?\d)")


@pytest.fixture(autouse=True)
def _checkout(monkeypatch):
    monkeypatch.chdir(PROJECT)


def unmarked(text: str) -> list[str]:
    """Return the decimal numbers of a page outside of marked figures and tables."""
    text = FIGURE.sub("", TABLE.sub("", text))
    return DECIMAL.findall(re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL))


def test_figures_are_those_of_the_published_runs():
    for page in pages():
        text = page.read_text(encoding="utf-8")
        assert fill(text) == text, f"{page}: run python -m scripts.figures"


@pytest.mark.parametrize("page", CONSTANTS)
def test_every_decimal_number_has_a_source(page):
    text, known = (PROJECT / page).read_text(encoding="utf-8"), CONSTANTS[page]
    unknown = sorted(set(unmarked(text)) - set(known))
    assert not unknown, f"{page}: {unknown}: put them between marks, see scripts.figures --help"
    assert set(known) == set(unmarked(text)), "a constant that the page no longer has"
    for number, source in known.items():
        if (PROJECT / source).is_file():
            assert number in (PROJECT / source).read_text(encoding="utf-8"), (number, source)


def test_the_readme_has_a_table_of_results():
    assert len(TABLE.findall((PROJECT / "README.md").read_text(encoding="utf-8"))) == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ladder-resnet8 optimizer=lars batch=4096", "64.4"),
        ("ladder-resnet8 optimizer=lars batch=4096 digits=2 show=both", "64.37 ± 0.89"),
        ("ladder-resnet8 optimizer=lars batch=4096 minus='optimizer=sgd'", "3.0"),
        ("ladder-resnet8 optimizer=sgd batch=4096 show=least seed=1", "59.5"),
        ("ladder-resnet8 optimizer=sgd batch=128 show=steps", "5,865"),
        ("ladder-resnet8 optimizer=sgd batch=128 show=training", "80.1"),
        ("ladder-resnet8 optimizer=sgd batch=100", None),
        ("attempt5 optimizer=sgd batch=8192 setting=common show=both", "78.4 ± 0.1"),
        ("attempt5 optimizer=lars batch=8192 optimizer.bias_lr_scale=1", "16.0"),
        ("bench=cpu part=lars table='ResNet-50, groups' row=timm column='median, ms'", "46.3"),
    ],
)
def test_a_figure_is_that_of_the_table(words, expected):
    assert figure(words) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("ladder-resnet8 optimizer=lars", "must name one row, not 7"),
        ("no-such-group batch=128", "must be a group with runs"),
        ("ladder-resnet8 batch=128 optimizer=sgd show=speed", "must be one of accuracy"),
        ("ladder-resnet8 attempt5 batch=128", "must be one group"),
        ("ladder-resnet8 optimizer=sgd bacth=128", "bacth: unknown key; .*batch"),
        ("ladder-resnet8 setting=best", "setting=best: must be common"),
        ("ladder-resnet8 batch='128", "a quote is not closed"),
        ("ladder-resnet8 optimizer=sgd batch=128 digits=x", "digits=x: must be a whole number"),
        (
            "ladder-resnet8 batch=128 optimizer=sgd minus='batch=100'",
            "minus='batch=100': no published",
        ),
        ("bench=cpu part=lars table=x row=timm column=y", "must name one number"),
    ],
)
def test_a_wrong_mark_is_an_error(words, message):
    with pytest.raises(UserError, match=message):
        figure(words)


def test_a_mark_without_a_run_is_an_error():
    with pytest.raises(UserError, match="no published run fits"):
        fill("<!-- figure: ladder-resnet8 optimizer=sgd batch=100 -->1.0<!-- /figure -->")


def test_the_command_fills_a_page_and_names_it(workplace, monkeypatch, capsys):
    (workplace / "results").mkdir()
    (workplace / "results" / "README.md").write_text("no figure\n")
    (workplace / "results" / "ladder-resnet8").symlink_to(PROJECT / "results" / "ladder-resnet8")
    words = "ladder-resnet8 optimizer=sgd batch=128"
    (workplace / "README.md").write_text(f"<!-- figure: {words} -->?<!-- /figure --> %\n")
    monkeypatch.setattr("sys.argv", ["figures"])
    assert exit_status(scripts.figures.main) == 0
    assert capsys.readouterr().out == "written   README.md\n"
    filled = f"<!-- figure: {words} -->79.3<!-- /figure --> %\n"
    assert (workplace / "README.md").read_text() == filled
    assert exit_status(scripts.figures.main) == 0 and capsys.readouterr().out == ""


def test_a_number_outside_of_marks_is_found():
    text = "64.4 <!-- figure: g batch=0.5 -->1.5<!-- /figure --> <!-- 7.5 --> v1.2.3 and 80.1."
    assert unmarked(text) == ["64.4", "80.1"]
