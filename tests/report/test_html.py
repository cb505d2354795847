"""The content of report.html, without a browser."""

import json
import re
import shutil

import pytest
from torch.utils.tensorboard import SummaryWriter

from engine.cli import exit_status
from engine.errors import UserError
from engine.report import html, html_data
from engine.report.fit import rounded
from engine.report.rows import make_rows, records_of, target_of
from engine.report.tables import accuracy_cell, csv_text
from engine.report.write import write_report
from scripts import report
from tests.helpers import PROJECT
from tests.helpers.critical import put_group
from tests.helpers.html import HOSTILE, data_of
from tests.helpers.report import put


def columns_of(data, name="rows"):
    """Return the texts of a table by heading."""
    entries = [entry["cells"] for entry in data[name]]
    return {heading: [cells[heading][0] for cells in entries] for heading in entries[0]}


def test_the_figures_are_those_of_the_tables(workplace):
    for seed, accuracy in enumerate((80.0, 81.0)):
        put(workplace, f"seed={seed}", accuracy=accuracy)
    put(workplace, "batch=256", "optimizer=lars", status="diverged", accuracy=10.0)
    put(workplace, "batch=512", "optimizer=lars", status="missing")
    rows = make_rows(records_of("g"))
    data = data_of()
    shown = columns_of(data)
    assert shown["top-1 Accuracy, %"] == [accuracy_cell(row) for row in rows]
    assert shown["top-1 Accuracy, %"] == ["80.50 ± 0.71", "10.0 (nan)", "missing"]
    assert shown["Time to train"] == ["30.0 s", "30.0 s", "-"] and "Group" not in shown
    header, *lines = [line.split(",") for line in csv_text(rows, target_of(rows)).splitlines()]
    for heading, column in (("top-1 Accuracy, %", "accuracy_mean"), ("Batch", "batch"),
                            ("Time to train", "train_seconds_mean")):  # fmt: skip
        values = [row["cells"][heading][1] for row in data["rows"]]
        expected = [line[header.index(column)] for line in lines]
        assert values == [float(text) if text else None for text in expected], heading
    runs = columns_of(data, "runs")
    assert runs["Status"] == ["completed", "completed", "diverged", "missing"]
    assert runs["Accuracy, %"] == ["80.00", "81.00", "10.00", "-"]
    assert data["runs"][0]["curves"]["test_accuracy"] == [[1.0, 3.0], [40.0, 79.7]]


def test_a_run_has_the_values_that_other_runs_changed(workplace):
    put(workplace, "optimizer.momentum=0.8")
    put(workplace, "loss.label_smoothing=0.1", status="failed", error=HOSTILE)
    first, second = [run["choices"] for run in data_of()["runs"]]
    assert (first["loss.label_smoothing"], second["loss.label_smoothing"]) == (0.0, 0.1)
    assert list(first) == sorted(first) and not {"report", "parallel", "group"} & set(first)


def test_steps_to_the_target_are_those_of_critical_json(workplace):
    put_group(workplace, b_crit=500.0)
    write_report("g")
    critical = json.loads((workplace / "results" / "g" / "critical.json").read_text())
    plot = data_of()["sections"]["Steps to the target"]["g"]
    points, curve = plot["traces"]
    assert points["y"] == [point["steps"] for point in critical["sgd"]["batches"]]
    assert curve["y"][0] == pytest.approx(points["y"][0], rel=0.01)
    low, middle, high = (critical["sgd"][key] for key in ("b_crit_low", "b_crit", "b_crit_high"))
    assert plot["texts"] == [
        "The target is 70 % on the hold-out split.",
        f"SGD: critical batch size {rounded(middle, 3)}, 90 % interval {rounded(low, 3)} to "
        f"{rounded(high, 3)}.",
    ]
    assert "Critical batch size at 70 %" in " ".join(data_of()["groups"][0]["answers"])
    for damaged in ("{", "[]", "{}"):
        (workplace / "results" / "g" / "critical.json").write_text(damaged)
        # The runs' own target is known without the file.
        assert list(data_of()["sections"]) == ["Steps to the target"]
    assert data_of(target=99.0)["sections"] == {}


def test_a_requested_target_sets_the_steps(workplace):
    put(workplace)
    shown = columns_of(data_of(target=79.0))
    assert shown["Steps to target"] == ["24"] and shown["Time to target"] == ["30.0 s"]
    assert "Steps to target" not in columns_of(data_of(target=79.9))


def test_trust_ratios_come_from_the_events_of_a_run(workplace):
    put(workplace)
    assert data_of()["sections"] == {}
    with SummaryWriter(workplace / "results" / "runs" / "g" / "run-0") as writer:
        for step in range(1, 501):
            writer.add_scalar("trust_ratio/conv1.weight", 0.01 * step, step)
            writer.add_scalar("weight_norm/conv1.weight", 1.0, step)
    (trace,) = data_of()["sections"]["Trust ratios of the layers"]["run-0"]["traces"]
    assert trace["name"] == "conv1.weight" and len(trace["x"]) == 167
    assert (trace["x"][1], trace["y"][1]) == (4, 0.04)


def test_many_lines_share_a_look_for_each_optimizer(workplace):
    for number in range(html_data.MOST_LINES + 1):
        put(workplace, f"optimizer.base_lr=0.{number + 1:02}")
    put(workplace, "optimizer=lars")
    data = data_of()
    assert [look["name"] for look in data["series"]] == ["SGD", "LARS"]
    assert [row["series"] for row in data["rows"]] == [0] * 13 + [1]


def test_the_command_names_what_is_missing(workplace, monkeypatch, capsys):
    put(workplace)
    monkeypatch.setattr("sys.argv", ["report", "group=g"])
    monkeypatch.setattr(html.importlib.util, "find_spec", lambda name: None)
    assert exit_status(report.main) == 2
    assert capsys.readouterr().err == (
        "error: report.html needs plotly; install it with: pip install 'plotly>=6'\n"
    )
    assert not (workplace / "results" / "g").exists()


def test_a_sweep_without_plotly_says_so_before_it_trains(small, workplace, command, monkeypatch):
    monkeypatch.setattr("engine.sweeps.sweep.has_plotly", lambda: False)
    outcome = command("train.py", "-m", *small, "epochs=1", "group=g", "report=true")
    assert outcome.status == 0 and outcome.err.startswith("report=true: report.html needs plotly;")
    assert outcome.err.count("\n") == 1 and "report.html" not in outcome.out
    (run,) = (workplace / "results" / "runs" / "g").glob("resnet8*")
    assert "report" not in json.loads((run / "summary.json").read_text())["command"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report=true"], "report=true: is for sweeps, python train.py -m"),
        (["-m", "report=true,false"], "report=true,false: must be one value for the whole sweep"),
        (["-m", "report=yes_please"], "report=yes_please: must be true or false"),
    ],
)
def test_report_is_refused_where_it_has_no_meaning(small, workplace, command, arguments, message):
    outcome = command("train.py", *small, *arguments)
    assert outcome.status == 2 and outcome.err.startswith(f"error: {message}")
    assert outcome.err.count("\n") == 1 and not list(workplace.iterdir())


@pytest.fixture
def plotly():
    return pytest.importorskip("plotly")


def test_a_sweep_writes_the_page(small, workplace, command, plotly):
    outcome = command("train.py", "-m", *small, "epochs=1", "group=g", "report=true")
    assert outcome.status == 0 and "written   results/g/report.html" in outcome.out
    assert (workplace / "results" / "g" / "report.html").stat().st_size > 1e6


def test_a_published_group_needs_no_runs(workplace, plotly):
    (workplace / "results").mkdir()
    shutil.copytree(PROJECT / "results" / "attempt5", workplace / "results" / "attempt5")
    put(workplace)
    path = html.write_html(["attempt5", "g"])
    assert str(path) == "results/attempt5+g.html"
    text = path.read_text()
    assert "79.60 ± 0.27" in text or r"79.60 \u00b1 0.27" in text
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", text[: text.index("<script")])
    with pytest.raises(UserError, match="group=none"):
        html.write_html(["attempt5", "none"])


def test_what_users_typed_is_inside_the_json_alone(workplace, plotly):
    put(workplace, status="failed", error=HOSTILE, command=HOSTILE)
    text = html.html_page(HOSTILE, data_of())
    assert HOSTILE not in text and "<img" not in text and text.count("</script>") == 3
    found = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert json.loads(found[1])["runs"][0]["facts"]["error"] == HOSTILE
