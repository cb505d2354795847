import json
import os
import re
import subprocess
import sys

import pytest
import torch

from engine.cli import exit_status
from scripts.bench import __main__, machine, optimizers, profile, step
from scripts.bench.ceilings import Ceilings
from tests.helpers import PROJECT


def test_the_first_line_comes_before_torch_is_imported(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch is imported')")
    (tmp_path / "old.json").write_text("{}")

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "scripts.bench", *arguments, f"--folder={tmp_path / 'new'}"],
            cwd=PROJECT, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True,
            encoding="utf-8",
        )  # fmt: skip
        assert not done.stdout and not (tmp_path / "new").exists()
        return done.stderr

    first, second = run("epoch", "rest").splitlines()
    assert re.fullmatch(r"\d:\d\d left, epoch, rest: loading torch", first)
    assert second == "torch is imported"
    # Mistakes are found before.
    assert run("epoch", "--minutes=0").count("\n") == 1
    assert "has no results of epoch" in run("epoch", f"--against={tmp_path / 'old.json'}")


def run_bench(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
    return exit_status(__main__.main, resumes=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed"], "speed: must be one of data, epoch"),
        (["optimizers", "--rounds=x"], "argument --rounds: invalid int value: 'x'; see --help"),
        (["data", "--folder=/proc/nowhere"], "--folder=/proc/nowhere: cannot be written ("),
        (["step", "--rounds=1"], "--rounds=1: must be at least 2"),
        (["step", "--minutes=0"], "--minutes=0: must be a number above 0"),
        (["step", "--minutes=-1.5"], "--minutes=-1.5: must be a number above 0"),
        (["step", "--minutes=nan"], "--minutes=nan: must be a number above 0"),
        (["step", "--minutes=inf"], "--minutes=inf: must be a number above 0"),
        (["step", "--minutes=five"], "argument --minutes: invalid float value: 'five'"),
        (["step", "--device=tpu"], "--device=tpu: must be cpu or cuda"),
        (["step", "--model=vgg"], "--model=vgg: must be one of resnet8"),
        (["profile", "--batch=1"], "--batch=1: must be at least 2"),
        (["step", "--batch=64"], "--batch=64: needs one of the parts profile"),
        (["--model=resnet8"], "--model=resnet8: needs one of the parts ladder, optimizers, pro"),
        (["step", "--against=no.json"], "--against=no.json: cannot be read (No such file"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, monkeypatch, capsys, workplace):
    assert run_bench(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1
    assert not captured.out and not list(workplace.iterdir())


def test_a_device_that_is_absent_is_refused(monkeypatch, capsys, workplace):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_bench(monkeypatch, "step", "--device=cuda") == 2
    assert "error: --device=cuda: this machine has no CUDA device" in capsys.readouterr().err
    assert not list(workplace.iterdir())


def test_the_command_prints_and_writes(monkeypatch, capsys, workplace):
    monkeypatch.setattr(
        profile, "ceilings_of", lambda session, known: Ceilings({"fp32": 1e9, "bf16": 1e9}, 1e9)
    )
    options = ["--model=resnet8", "--batch=16", "--rounds=2", "--folder=speed", "--device=cpu"]
    assert run_bench(monkeypatch, "profile", "profile", *options) == 0
    captured = capsys.readouterr()
    assert captured.out.count("| convolution, backward |") == 1
    assert " left, profile: loading torch\n" in captured.err
    assert " left, profile (part 1 of 1), warm-up, resnet8, batch 16," in captured.err
    (path,) = (workplace / "speed").glob("*.json")
    assert json.loads(path.read_text())["profile"]["rounds"] == 2


def table(session, title="a title", seconds=2.0, **more):
    figures = {"one": [seconds, seconds, seconds], "two": [1.0, 2.0, 3.0]} | more
    session.table(title, [{"name": "one", "s": seconds}], figures, "Medians of 3 rounds.")


def bench(monkeypatch, run, *arguments, part="optimizers") -> int:
    """Run the command with a function in place of a part's own."""
    monkeypatch.setattr(f"scripts.bench.{part}.run", lambda session, **options: run(session))
    return run_bench(monkeypatch, part, "--folder=speed", "--device=cpu", *arguments)


def results(workplace) -> dict:
    (path,) = (workplace / "speed").glob("*.json")
    return json.loads(path.read_text())


def test_ctrl_c_leaves_the_tables_that_are_done(monkeypatch, capsys, workplace):
    def stop(session):
        table(session, "first")
        # It is printed and written as soon as it is there.
        assert "### first\n\nMedians of 3 rounds.\n\n| name | s |" in capsys.readouterr().out
        assert len(results(workplace)["optimizers (partial)"]["tables"]) == 1
        table(session, "second")
        raise KeyboardInterrupt

    def stop_at_once(session):
        raise KeyboardInterrupt

    assert bench(monkeypatch, stop) == 130
    assert "optimizers: stopped; its tables: 2 finished, in speed/" in capsys.readouterr().err
    written = results(workplace)["optimizers (partial)"]
    assert not written["complete"] and [t["title"] for t in written["tables"]] == [
        "first", "second"
    ]  # fmt: skip
    page = (workplace / "speed/README.md").read_text()
    assert "### optimizers (partial)" in page and "Partial: only the tables below" in page
    # A complete result takes its place, and stays if a later one is stopped.
    assert bench(monkeypatch, lambda session: table(session, "whole")) == 0
    (whole,) = results(workplace).items()
    assert whole[0] == "optimizers" and whole[1]["complete"]
    assert "Partial" not in (workplace / "speed/README.md").read_text()
    assert bench(monkeypatch, stop) == 130
    assert {name: len(r["tables"]) for name, r in results(workplace).items()} == {
        "optimizers": 1, "optimizers (partial)": 2
    }  # fmt: skip
    before = results(workplace)
    assert bench(monkeypatch, stop_at_once) == 130
    assert "optimizers: stopped; its tables: none finished" in capsys.readouterr().err
    assert results(workplace) == before


def test_parts_share_the_time_that_is_left(monkeypatch, workplace):
    shares = []
    for module in (optimizers, step):
        monkeypatch.setattr(
            module, "run", lambda session, **options: shares.append(session.share(1))
        )
    assert run_bench(monkeypatch, "optimizers", "step", "--minutes=10", "--device=cpu") == 0
    # The first part used nothing of its half.
    assert 200 < shares[0] <= 300 and 400 < shares[1] <= 600


@pytest.mark.parametrize("name", ["optimizers", "lars", "lars (partial)"])
def test_figures_are_compared_with_an_earlier_file(name, monkeypatch, capsys, workplace):
    """The part had another name in earlier versions."""

    def earlier(session):
        session.result["environment"]["threads"] = 99
        table(session, three=[1.0, 1.0])
        table(session, "gone")
        session.result["environment"]["versions"]["torch"] = "2.0"

    def later(session):
        table(session, seconds=1.0)
        table(session, "new")

    assert bench(monkeypatch, earlier) == 0
    (path,) = (workplace / "speed").glob("*.json")
    path = path.rename(workplace / "old.json")
    path.write_text(json.dumps({name: json.loads(path.read_text())["optimizers"]}))
    capsys.readouterr()
    assert bench(monkeypatch, later, f"--against={path.name}") == 0
    captured = capsys.readouterr()
    (warning,) = (line for line in captured.err.splitlines() if line.startswith("warning"))
    assert warning == (
        f"warning: old.json differs in torch (2.0, now {machine.version_of('torch')}); "
        f"threads (99, now {torch.get_num_threads()})"
    )
    compared = captured.out.partition("### a title, compared with old.json\n")[2]
    assert "Only in old.json: three.\n" in compared
    assert "| one | 2 | 1 | 0.500 | 0.500 to 0.500 |" in compared
    # From 1.5 / 2.5 to 2.5 / 1.5.
    assert "| two | 2 | 2 | 1.000 | 0.600 to 1.667 |" in compared
    assert "old.json has no table `new`." in compared
    assert "Only in old.json: gone." in compared


def test_a_file_that_cannot_be_compared_is_refused(monkeypatch, capsys, workplace):
    assert bench(monkeypatch, table) == 0
    (path,) = (workplace / "speed").glob("*.json")
    spoiled = json.loads(path.read_text())
    spoiled["optimizers"]["tables"][0]["figures"]["one"] = ["fast"]
    empty = json.loads(path.read_text())
    empty["optimizers"]["tables"][0]["figures"]["one"] = []
    texts = {
        "other.json": (path.read_text().replace('"optimizers"', '"step"'),
                       "has no results of optimizers; it has step"),
        "text.json": ("| a |", "is not JSON"),
        "list.json": ("[1]", "must be a results file of this version of scripts.bench"),
        "old.json": ('{"optimizers": {"tables": []}}', "must be a results file of this version"),
        "spoiled.json": (json.dumps(spoiled), "has figures that are not numbers"),
        "empty.json": (json.dumps(empty), "has figures that are not numbers"),
    }  # fmt: skip
    before = path.read_text()
    for name, (text, message) in texts.items():
        (workplace / name).write_text(text)
        capsys.readouterr()
        assert bench(monkeypatch, table, f"--against={name}") == 2
        captured = capsys.readouterr()
        assert f"error: --against={name}: {message}" in captured.err
        assert captured.err.count("\n") == 1 and not captured.out
    assert path.read_text() == before


def test_files_of_others_in_the_folder_are_not_overwritten(monkeypatch, capsys, workplace):
    folder = workplace / "speed"
    folder.mkdir()
    for name, text, message in (
        ("README.md", "# My page", "is not a page of scripts.bench; choose another --folder"),
        ("notes.json", "{", "is not JSON"),
    ):
        (folder / name).write_text(text)
        assert bench(monkeypatch, table) == 2
        assert f"error: speed/{name}: {message}" in capsys.readouterr().err
        assert [path.name for path in folder.iterdir()] == [name]
        (folder / name).unlink()
