"""scripts.options, as a contributor uses it."""

import scripts.options
from engine.cli import exit_status


def test_only_files_that_differ_are_written_and_named(tmp_path, monkeypatch, capsys):
    page, stale = tmp_path / "options.md", tmp_path / "sgd.yaml"
    stale.write_text("momentum: 0.9  # old\n")
    texts = {page: "# Every key\n", stale: "momentum: 0.9  # new\n"}
    monkeypatch.setattr(scripts.options, "render", lambda: texts)
    monkeypatch.setattr(scripts.options, "CONF", tmp_path / "conf")
    monkeypatch.setattr("sys.argv", ["options.py"])
    assert exit_status(scripts.options.main) == 0
    assert {path: path.read_text() for path in texts} == texts
    written = capsys.readouterr().out.splitlines()
    assert written == ["written   options.md", "written   sgd.yaml"]
    assert exit_status(scripts.options.main) == 0
    assert capsys.readouterr().out == ""


def test_an_argument_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["options.py", "group=x"])
    assert exit_status(scripts.options.main) == 2
    assert "group=x: unknown key" in capsys.readouterr().err
