"""Input from elsewhere (configurations, files, archives, text) is used as data, never as code."""

import ast
import importlib
import json
import os
import re
import shutil
import sys
import time

import pytest

from engine.cli import exit_status
from engine.errors import UserError
from engine.report.page import fenced
from engine.report.tables import escaped
from engine.report.write import write_report
from engine.runs.records import check_inside
from tests.helpers import PROJECT, files_below

LAUNCHER = "only hydra/launcher=NAME and hydra.launcher.KEY=VALUE can be set"
REFUSED = [
    ("hydra.launcher._target_=os.getcwd", "no key may name code"),
    ("++hydra.launcher._target_=os.getcwd", "no key may name code"),
    ("+hydra.launcher.x={_target_: os.getcwd}", "no key may name code"),
    ("+hydra.callbacks.x._target_=os.getcwd", LAUNCHER),
    ("+hydra.callbacks={x: {_target_: os.getcwd}}", LAUNCHER),
    ("hydra={launcher: {_target_: os.getcwd}}", LAUNCHER),
    ("+hydra.job_logging.handlers={x: {'()': os.getcwd}}", LAUNCHER),
    ("hydra/job_logging=default", LAUNCHER),
    ("+hydra/job_logging@foo=default", LAUNCHER),
    ("hydra.searchpath=[pkg://os]", "--config-dir=DIR adds configurations"),
    ("hydra.run.dir=/elsewhere", LAUNCHER),
    ("hydra.sweep.dir=/elsewhere", LAUNCHER),
    ("hydra.output_subdir=.hydra", LAUNCHER),
    ("+hydra.job.env_set={PATH: x}", LAUNCHER),
    ("hydra.job.chdir=true", LAUNCHER),
    ("hydra.mode=MULTIRUN", LAUNCHER),
    ("+model@hydra.callbacks.x=resnet8", "hydra.callbacks={'x': "),
    ("+model._target_=os.getcwd", "model._target_=os.getcwd: unknown key"),
    ("+hydra.launcher.foo=1", "got an unexpected keyword argument 'foo'"),
]


@pytest.fixture
def uncalled(monkeypatch):
    """Fail the test if os.system is called, which stands for hostile code."""
    import os

    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("code was run"))


@pytest.mark.parametrize("flags", [[], ["-m"]])
@pytest.mark.parametrize(("argument", "message"), REFUSED, ids=[a for a, _ in REFUSED])
def test_hydras_own_keys_name_no_code(small, workplace, command, argument, message, flags):
    if not flags and argument == "+hydra.launcher.foo=1":
        pytest.skip("a single run has no launcher")
    outcome = command("train.py", *flags, *small, argument)
    assert outcome.status == 2, outcome
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    assert message in outcome.err and not files_below(workplace)


HOSTILE = {
    "callbacks": "hydra:\n  callbacks:\n    x:\n      _target_: os.system\n      command: exit\n",
    "launcher": "hydra:\n  launcher:\n    x:\n      _target_: os.system\n      command: exit\n",
    "launcher.class": "hydra:\n  launcher:\n    _target_: os.system\n",
    "job_logging": "hydra:\n  job_logging:\n    handlers:\n      x:\n        (): os.system\n",
    "job": "hydra:\n  job:\n    env_set:\n      PATH: nowhere\n",
    "run": "hydra:\n  run:\n    dir: elsewhere\n",
}


@pytest.mark.parametrize("key", HOSTILE)
@pytest.mark.parametrize("flags", [[], ["-m"], ["--cfg", "job"]])
def test_an_experiment_from_elsewhere_cannot_run_code(
    small, workplace, command, tmp_path, uncalled, key, flags
):
    folder = tmp_path / "shared"
    (folder / "experiment").mkdir(parents=True)
    text = f"# @package _global_\n{HOSTILE[key]}"
    (folder / "experiment" / "shared.yaml").write_text(text)
    outcome = command("train.py", *flags, f"--config-dir={folder}", *small, "+experiment=shared")
    assert outcome.status == 2, outcome
    message = f"error: hydra.{key.partition('.')[0]}="
    message = "'x' not in 'BasicLauncherConf'" if key == "launcher" else message
    assert message in outcome.err and outcome.err.count("\n") == 1, outcome.err
    assert not files_below(workplace)


def test_a_launchers_own_file_can_only_name_a_launcher(small, workplace, command, tmp_path):
    folder = tmp_path / "shared" / "hydra" / "launcher"
    folder.mkdir(parents=True)
    (folder / "shared.yaml").write_text("_target_: os.system\ncommand: exit\n")
    outcome = command(
        "train.py", "-m", f"--config-dir={tmp_path / 'shared'}", *small, "hydra/launcher=shared"
    )
    assert outcome.status == 2 and outcome.err.count("\n") == 1, outcome
    assert "Invalid plugin 'os.system'" in outcome.err and not files_below(workplace)


def test_a_launchers_own_file_sets_no_other_key(small, workplace, command, tmp_path):
    folder = tmp_path / "shared" / "hydra" / "launcher"
    folder.mkdir(parents=True)
    (folder / "own.yaml").write_text(
        "# @package _global_\n"
        "hydra:\n"
        "  launcher:\n    _target_: hydra._internal.core_plugins.basic_launcher.BasicLauncher\n"
        f"  callbacks:\n    x:\n      _target_: os.mkdir\n      path: {tmp_path / 'made'}\n"
    )
    sweep = ("train.py", "-m", f"--config-dir={tmp_path / 'shared'}", *small)
    outcome = command(*sweep, "hydra/launcher=own")
    assert outcome.status == 2 and outcome.err.count("\n") == 1, outcome
    assert "error: hydra.callbacks={'x': " in outcome.err
    assert not files_below(workplace) and not (tmp_path / "made").exists()


def test_only_a_command_can_choose_the_launcher(small, workplace, command, tmp_path):
    launcher, experiments = (tmp_path / "shared" / n for n in ("hydra/launcher", "experiment"))
    launcher.mkdir(parents=True)
    experiments.mkdir()
    (launcher / "own.yaml").write_text("_target_: my.Launcher\nkey: 1\n")
    chosen = "defaults:\n  - override /hydra/launcher: own\n"
    (experiments / "shared.yaml").write_text(f"# @package _global_\n{chosen}")
    sweep = ("train.py", "-m", f"--config-dir={tmp_path / 'shared'}", *small, "plan=true")
    outcome = command(*sweep, "+experiment=shared")
    assert outcome.status == 2 and outcome.err.count("\n") == 1, outcome
    assert "hydra.launcher={" in outcome.err
    assert "; set hydra/launcher=NAME" in outcome.err
    assert command(*sweep, "+experiment=shared", "hydra/launcher=own").status == 0


def test_the_projects_own_files_compose(small, workplace, command):
    assert command("train.py", "-m", *small, "plan=true", "hydra/launcher=basic").status == 0


def sources():
    folders = ("lars", "models", "schedulers", "engine", "scripts")
    paths = [p for folder in folders for p in sorted((PROJECT / folder).rglob("*.py"))]
    return [*paths, PROJECT / "train.py", PROJECT / "val.py"]


def runs_code(source):
    """Yield the calls and imports that could run code from a file or a text."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            yield from names & {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called.endswith("torch.load") and options.get("weights_only") != "True":
            yield called
        if called in ("eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load", "__import__"):
            yield called
        if options.get("shell") == "True":
            yield f"{called} with a shell"


@pytest.mark.parametrize(
    "harm",
    ["torch.load(f)", "torch.load(f, weights_only=False)", "import pickle", "eval(x)", "exec(x)",
     "yaml.load(f)", "subprocess.run(x, shell=True)", "from pickle import load"],
)  # fmt: skip
def test_harmful_calls_are_found(harm):
    assert [*runs_code(harm)]


def test_no_file_or_text_is_run_as_code():
    found = {str(path): [*runs_code(path.read_text())] for path in sources()}
    assert len(found) > 50 and not {path: calls for path, calls in found.items() if calls}


def test_no_documented_command_listens_to_the_network():
    paths = [*PROJECT.glob("*.md"), *(PROJECT / "docs").glob("*.md"), PROJECT / "Makefile"]
    paths += [*(PROJECT / "conf").rglob("*.yaml"), PROJECT / "scripts" / "sweep.sh"]
    text = "\n".join(path.read_text() for path in paths)
    assert "tensorboard --logdir" in text
    # By default TensorBoard and Ray's dashboard serve only this machine.
    assert not re.search(r"--bind_all|--host\b|dashboard_host|0\.0\.0\.0", text)


@pytest.mark.parametrize("group", ["..", "../x", "/tmp/x", "a/b", "runs", ".", "a b", "é"])
def test_a_group_is_a_plain_name(small, workplace, command, group):
    outcome = command("train.py", *small, f"group={group}")
    assert outcome.status == 2 and outcome.err.startswith("error: group=")
    assert outcome.err.count("\n") == 1 and not files_below(workplace)


@pytest.mark.parametrize("link", ["results/out", "results/runs/out"])
def test_no_link_leads_a_group_out_of_results(small, workplace, command, link):
    (workplace / "results" / "runs").mkdir(parents=True)
    (workplace / "elsewhere").mkdir()
    (workplace / link).symlink_to(workplace / "elsewhere")
    before = files_below(workplace)
    for flags in ([], ["-m"]):
        outcome = command("train.py", *flags, *small, "group=out")
        assert outcome.status == 2 and outcome.err.count("\n") == 1
        assert "is a link that leads out of results" in outcome.err
    with pytest.raises(UserError, match="is a link that leads out of results"):
        write_report("out")
    assert files_below(workplace) == before


def test_results_itself_can_be_a_link(workplace):
    (workplace / "disk" / "runs").mkdir(parents=True)
    (workplace / "larger").mkdir()
    (workplace / "results").symlink_to("disk")
    (workplace / "disk" / "runs").rmdir()
    (workplace / "disk" / "runs").symlink_to(workplace / "larger")
    check_inside("group", "run")
    (workplace / "larger" / "group").mkdir()
    (workplace / "larger" / "group" / "run").symlink_to(workplace)
    with pytest.raises(UserError, match="results/runs/group/run is a link that leads out"):
        check_inside("group", "run")


HARM = "x</td><script>alert(1)</script>|`[a](javascript:b)\n# c\n```\n<img src=d>"


def test_typed_values_are_escaped_in_a_groups_page(small, workplace, command, tree):
    assert command("train.py", *small, "epochs=1").status == 0
    (directory,) = (workplace / "results" / "runs" / "default").iterdir()
    summary = json.loads((directory / "summary.json").read_text())
    for number, status in enumerate(["completed", "failed"]):
        other = summary | {
            "run": f"other{number}", "device": HARM, "torch": HARM, "commit": HARM, "error": HARM,
            "status": status, "command": f"python train.py 'data.root={HARM}'",
            "choices": summary["choices"] | {"data.root": HARM},
        }  # fmt: skip
        place = directory.parent / f"other{number}"
        shutil.copytree(directory, place)
        (place / "summary.json").write_text(json.dumps(other))
    write_report("default")
    folder = workplace / "results" / "default"
    page = (folder / "README.md").read_text()
    # Text in a fence is shown as it is, and the fence is longer than any inside the text.
    outside = re.sub(r"(?ms)^(`{3,})\n.*?^\1$", "", page)
    assert "````" in page and "alert(1)" in outside
    for text in (outside, (folder / "table.md").read_text()):
        assert "<script" not in text and "<img" not in text
        assert r"\](javascript" in text and not re.search(r"(?<!\\)\]\(java", text)
        assert "\n# c" not in text
        tables = re.findall(r"(?m)^\|.*\|$", text)
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in tables if line[2:7] != "Optim"}
        assert tables and cells <= {5, 10}, "a value must not add cells"


def test_escaping():
    assert escaped("optimizer.base_lr=0.1 a*b _c_") == r"optimizer.base_lr=0.1 a\*b \_c\_"
    assert escaped("a|b\n<i>`[x](y)") == r"a\|b &lt;i&gt;\`\[x\](y)"
    assert fenced("a", "``` b")[0] == "````" and fenced("a") == ["```", "a", "```"]


def test_a_published_line_with_a_missing_key_is_reported(workplace, command, small):
    (workplace / "results" / "pub").mkdir(parents=True)
    (workplace / "results" / "pub" / "runs.jsonl").write_text('{"run": "x", "status": "y"}\n')
    outcome = command("train.py", *small, "group=pub")
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert "runs.jsonl: line 1 has no batch; fix or remove it" in outcome.err


def test_temporary_files_of_a_killed_report_are_removed(small, workplace, command):
    folder = workplace / "results" / "default"
    folder.mkdir(parents=True)
    old, young = folder / ".table.md.abc", folder / ".table.csv.def"
    for path, age in ((old, 7200), (young, 5)):
        path.write_text("half")
        os.utime(path, (time.time() - age,) * 2)
    assert command("train.py", "-m", *small, "epochs=1").status == 0
    assert not old.exists() and young.exists()


@pytest.mark.parametrize(
    "script", ["val", "scripts.tables", "scripts.status", "scripts.tune", "scripts.lr_range",
               "scripts.options", "scripts.report", "scripts.critical", "scripts.bench.__main__",
               "scripts.bench.cpu_share"],
)  # fmt: skip
def test_commands_for_one_process_refuse_ranks(script, workplace, capsys, monkeypatch):
    main = importlib.import_module(script).main
    monkeypatch.setattr(sys, "argv", [f"{script}.py"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr(sys, "stdout", sys.stdout)
        assert exit_status(main) == 2
        err = capsys.readouterr().err
        assert err.count("is one process; start it with python") == err.count("\n") == lines
    assert not files_below(workplace)


def test_every_entry_point_is_tested():
    entries = {p for p in sources() if "__main__" in p.read_text()} - {PROJECT / "train.py"}
    asked = {"val", "tables", "status", "tune", "lr_range", "options", "bench", "cpu_share"}
    asked |= {"figures", "critical", "report"}
    # The benchmarks start the other two in separate processes.
    asked |= {"probe", "reference"}
    # A sweep starts it, and writes its input.
    asked |= {"calibrate"}
    assert {p.parent.name if p.stem == "__main__" else p.stem for p in entries} == asked


GLOBAL = "# @package _global_\n"
MISTAKEN = {
    "not: [closed": "yaml",
    "batch: ${by_batch:{128: 1}}": "yaml",
    "x: !!python/object/apply:os.system [exit]": "could not determine a constructor",
    "3": "Invalid loaded object type",
    "defaults: [shared]": "a configuration file includes itself",
    f"{GLOBAL}# \xff": "a configuration file is not UTF-8",
    "epochs: 1": "the first line of its file must be '# @package _global_'",
    f"{GLOBAL}epochs: ${{times_k:abc}}": "error: ${times_k:abc}: must be a number",
    f"{GLOBAL}epochs: ${{by_batch:3}}": "${by_batch:3}: must be key: value pairs, such as ${",
    f"{GLOBAL}epochs: ${{by_optimizer:3}}": "error: ${by_optimizer:3}: must be key: value pairs",
}


@pytest.mark.parametrize(("text", "message"), MISTAKEN.items(), ids=MISTAKEN)
def test_a_mistake_in_an_experiment_is_one_line(
    small, workplace, command, tmp_path, uncalled, text, message
):
    folder = tmp_path / "shared"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "shared.yaml").write_text(text + "\n", encoding="latin-1")
    others = [o for o in small if not o.startswith("epochs=")]
    outcome = command("train.py", f"--config-dir={folder}", *others, "+experiment=shared")
    assert outcome.status == 2 and outcome.err.count("\n") == 1, outcome
    assert message in outcome.err and not files_below(workplace)
    outcome = command("train.py", f"--config-dir={folder}", *others, "+experiment=other")
    known = "attempt1, attempt2, attempt3, attempt4, attempt5, demo, ladder, shared"
    assert f"must be one of {known}" in outcome.err


@pytest.mark.parametrize(
    ("name", "damage"),
    [("metrics.jsonl", b"\xff\xfe"), (".hydra/config.yaml", b"\xff\xfe"),
     (".hydra/overrides.yaml", b"\xff\xfe"), (".hydra/overrides.yaml", b"3"),
     ("summary.json", b'{"status":"completed","run":"x","batch":1,"choices":{}}')],
)  # fmt: skip
def test_a_damaged_text_file_of_a_run_gives_no_traceback(
    small, workplace, command, capsys, name, damage
):
    assert command("train.py", *small, "epochs=1").status == 0
    (run,) = (workplace / "results" / "runs" / "default").iterdir()
    if name != "summary.json":
        (run / "summary.json").unlink()
    (run / name).write_bytes(damage)

    def report():
        write_report("default")
        return 0

    status, err = exit_status(report), capsys.readouterr().err
    assert (status, err.count("\n")) in [(0, 0), (2, 1)], err
    assert command("train.py", *small, "epochs=1").status == 0
