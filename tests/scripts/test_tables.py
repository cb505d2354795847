"""The command scripts.tables: rebuilt reports, and several groups in one plot."""

import csv
import sys

import pytest

import scripts.tables
from engine.cli import exit_status
from tests.helpers.report import put


def test_a_target_can_be_given_after_the_runs(workplace, monkeypatch):
    put(workplace)
    monkeypatch.setattr(sys, "argv", ["tables", "group=g", "target_accuracy=35"])
    assert exit_status(scripts.tables.main) == 0
    with open(workplace / "results" / "g" / "table.csv") as file:
        (row,) = csv.DictReader(file)
    assert float(row["seconds_to_target_mean"]) == 10.0
    assert "The target is 35.00 %" in (workplace / "results" / "g" / "README.md").read_text()
    monkeypatch.setattr(sys, "argv", ["tables", "group=g", "target_accuracy=101"])
    assert exit_status(scripts.tables.main) == 2


@pytest.mark.drawn
def test_several_groups_in_one_plot(workplace, monkeypatch, capsys):
    put(workplace)
    (workplace / "results" / "runs" / "g").rename(workplace / "results" / "runs" / "h")
    put(workplace, "optimizer=lars")
    monkeypatch.setattr(sys, "argv", ["tables", "group=g,h"])
    assert exit_status(scripts.tables.main) == 0
    assert "written   results/g+h.png" in capsys.readouterr().out
    assert (workplace / "results" / "g+h.png").stat().st_size > 0


def test_tables_of_several_groups_are_all_written_or_none(workplace, monkeypatch, capsys):
    put(workplace, "batch=128", "epochs=3")
    monkeypatch.setattr(sys, "argv", ["tables", "group=g,h"])
    assert exit_status(scripts.tables.main) == 2
    assert "group=h: has no runs" in capsys.readouterr().err
    assert not (workplace / "results" / "g").exists()
