"""A mistake in a command prints one line, gives status 2 and writes nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.config.optimizers import TITLES
from tests.helpers import PROJECT, files_below

MISTAKES = [
    ("optimizer=adam", f"optimizer=adam: must be one of {', '.join(sorted(TITLES))}"),
    ("model=resnet9", "model=resnet9: must be one of"),
    ("data=mnist", "data=mnist: must be one of"),
    ("scheduler=linear", "scheduler=linear: must be one of"),
    ("+experiment=attempt99", "experiment=attempt99: must be one of"),
    ("experiment=demo", "experiment=demo: write +experiment=demo"),
    ("optimzer=lars", "optimzer=lars: unknown key; did you mean optimizer?\n"),
    ("bacth=128", "bacth=128: unknown key; did you mean batch"),
    ("optimizer.momentun=0.9", "optimizer.momentun=0.9: unknown key; did you mean"),
    ("+foo=1", "foo=1: unknown key"),
    ("+optimizer.foo=1", "optimizer.foo=1: unknown key"),
    ("optimizer.trust_coefficient=0.1", "=0.1: the default optimizer has no key trust_coefficient"),
    ("~batch", "batch: this key is missing"),
    ("batch", "batch: must be key=value"),
    ("batch=", "batch=: must be a whole number"),
    ("batch=abc", "batch=abc: must be a whole number at least 1"),
    ("batch=0", "batch=0: must be a whole number at least 1"),
    ("batch=-128", "batch=-128: must be"),
    ("batch=128.5", "batch=128.5: must be"),
    ("batch=121", "batch=121: must be at most the training split's 120 images"),
    ("batch=1,2", "batch=1,2: several values make a sweep, which needs -m"),
    ("batch=[1,2]", "batch=[1, 2]: must be"),
    ("batch=${nowhere}", "batch: Interpolation key 'nowhere' not found"),
    ("batch=[", "batch=["),
    ("micro_batch=0", "micro_batch=0: must be"),
    ("epochs=0", "epochs=0: must be"),
    ("epochs=1.5", "epochs=1.5: must be"),
    ("eval_every=0", "eval_every=0: must be"),
    ("eval_every=0steps", "eval_every=0steps: must be a whole number at least 1 or steps such"),
    ("eval_every=50 steps", "eval_every=50 steps: must be a whole number at least 1 or steps"),
    ("eval_every=5epochs", "eval_every=5epochs: must be a whole number at least 1 or steps such"),
    ("max_steps=0", "max_steps=0: must be a whole number at least 1 or null"),
    ("stop_at_target=true", "stop_at_target=true: needs target_accuracy, the accuracy in %"),
    ("seed=-1", "seed=-1: must be"),
    ("group=../../escape", "group=../../escape: must be letters"),
    ("group=runs", "group=runs: must not be"),
    ("device=tpu", "device=tpu: must be one of"),
    ("device=mps", "device=mps: this machine has none"),
    ("threads=0", "threads=0: must be"),
    ("precision=fp8", "precision=fp8: must be one of"),
    ("compile=maybe", "compile=maybe: must be true or false"),
    ("target_accuracy=0", "target_accuracy=0: must be"),
    ("optimizer.base_lr=-0.1", "optimizer.base_lr=-0.1: must be"),
    ("optimizer.base_lr=nan", "optimizer.base_lr=nan: must be"),
    ("optimizer.momentum=1", "optimizer.momentum=1: must be"),
    ("optimizer.momentum=abc", "optimizer.momentum=abc: must be"),
    ("scheduler.warmup_epochs=3", "scheduler.warmup_epochs=3: must be at most epochs=2"),
    ("scheduler.min_lr=1", "scheduler.min_lr=1: must be at most the peak rate"),
    ("scheduler.warmup_multiplier=2", "scheduler.warmup_multiplier=2: needs"),
    ("threads=1025", "threads=1025: must be"),
    ("data.holdout=120", "data.holdout=120: must leave training images"),
    ("data.train_size=121", "data.train_size=121: must be at most 120"),
    ("data.test_size=1000", "data.test_size=1000: must be at most 30"),
    ("data.root=nowhere", "data.root=nowhere: nowhere/train is not a directory"),
    ("data.root=null", "data.root=null: image_folder needs a directory"),
    ("clip.norm=-1", "clip.norm=-1: must be"),
    ("loss.label_smoothing=1", "loss.label_smoothing=1: must be a number at least 0 and below 1"),
    ("ema.decay=1", "ema.decay=1: must be a number above 0 and below 1 or null"),
    ("noise_scale=maybe", "noise_scale=maybe: must be true or false"),
    ("model.zero_init_residual=2", "model.zero_init_residual=2: must be true or false"),
    ("scheduler.warmup_steps=9", "scheduler.warmup_steps=9: must be at most the run's 8 steps"),
    ("epochs=1e400", "epochs=inf: must be"),
    ("epochs=1" + "0" * 310, "epochs=1" + "0" * 310 + ": must be a whole number at least 1 and"),
    ("scheduler.final_fraction=2", "scheduler.final_fraction=2: must be a number at least 0 and"),
    ("scheduler.start_fraction=0", "=0: the default scheduler has no key start_fraction"),
    ("~data.holdout=7", "~data.holdout=7: Could not delete from config. The value of"),
    ("~scheduler.gamma=1", "~scheduler.gamma=1: Could not delete from config. 'scheduler.gamma'"),
    ("hydra/launcher=nowhere", "hydra/launcher=nowhere: must be one of basic, joblib, ray, slurm,"),
    ("clip.value=1e39", "clip.value=1e+39: must be a number above 0 and within float32 or null"),
    ("optimizer.weight_decay=inf", "optimizer.weight_decay=inf: must be a number at least 0 and"),
    ("scheduler.warmup_multiplier=1e300", "scheduler.warmup_multiplier=1e+300: must be a number"),
    ("optimizr=sgd", "optimizr=sgd: unknown key; did you mean optimizer"),
    ("+batch=3", "+batch=3: write batch=3"),
    ("$bad=1", "$bad=1: unknown key; see --help"),
    ("batch=1e3", "batch=1000.0: must be a whole number at least 1, in digits only"),
    ("epochs=1e400", "epochs=inf: must be a whole number at least 1"),
    ("--frobnicate", "unrecognized arguments: --frobnicate"),
    ("--config-name=other", "--config-name: not used here"),
    ("--experimental-rerun=x.pickle", "--experimental-rerun: not used here"),
]


def assert_refused(outcome, message, workplace, before):
    assert outcome.status == 2, outcome
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1, outcome.err
    assert message in outcome.err
    assert outcome.out == ""
    assert files_below(workplace) == before


@pytest.mark.parametrize(("argument", "message"), MISTAKES, ids=[a for a, _ in MISTAKES])
def test_a_mistake_is_one_line_with_status_2_and_writes_nothing(
    small, workplace, command, argument, message
):
    key = argument.lstrip("+~").partition("=")[0]
    others = [o for o in small if o.partition("=")[0] != key]
    before = files_below(workplace)
    assert_refused(command("train.py", *others, argument), message, workplace, before)


def test_a_run_cannot_stop_at_a_target_without_a_hold_out_split(small, workplace, command):
    outcome = command("train.py", *small, "stop_at_target=true", "target_accuracy=70")
    message = "stop_at_target=true: needs data.holdout above 0, such as data.holdout=5000"
    assert_refused(outcome, message, workplace, set())


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("batch=32,abc", "batch=abc: must be"),
        ("batch=32,1000", "batch=1000: must be at most the training split's 120 images"),
        ("optimizer=sgd,adam", "optimizer=adam: must be one of"),
        ("seed=0,-1", "seed=-1: must be"),
        ("data.train_size=60,121", "data.train_size=121: must be at most 120"),
    ],
)
def test_a_mistake_anywhere_in_a_sweep_stops_it_before_it_starts(
    small, workplace, command, argument, message
):
    before = files_below(workplace)
    assert_refused(command("train.py", "-m", *small, argument), message, workplace, before)


@pytest.mark.parametrize("sweep", [[], ["-m"]], ids=["run", "sweep"])
@pytest.mark.parametrize("data", ["synthetic", "cifar10"])
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("batch=50001", "batch=50001: must be at most the training split's 50000 images"),
        ("data.holdout=50000", "data.holdout=50000: must leave training images"),
    ],
)
def test_sizes_beyond_a_known_split_are_refused_before_a_download(
    workplace, command, sweep, data, argument, message
):
    outcome = command("train.py", *sweep, f"data={data}", "data.root=pictures", argument)
    assert_refused(outcome, message, workplace, set())


def test_a_data_root_that_is_a_file(small, workplace, command, tmp_path):
    file = tmp_path / "file"
    file.write_text("hello")
    before = files_below(workplace)
    outcome = command("train.py", *small, f"data.root={file}")
    assert_refused(outcome, f"data.root={file}: ", workplace, before)


def test_an_empty_class_folder(small, workplace, command, tree):
    for path in (tree / "train" / "dog").iterdir():
        path.unlink()
    before = files_below(tree)
    outcome = command("train.py", *small)
    assert_refused(outcome, "train: Found no valid file for the classes dog", workplace, set())
    assert files_below(tree) == before


def test_class_folders_that_differ(small, workplace, command, tree):
    (tree / "test" / "ship").rename(tree / "test" / "boat")
    assert_refused(command("train.py", *small), "the same class folders", workplace, set())


def test_a_truncated_image(small, workplace, command, tree):
    path = tree / "train" / "cat" / "0005.png"
    path.write_bytes(path.read_bytes()[:500])
    before = files_below(tree)
    assert_refused(command("train.py", *small), "0005.png: cannot be decoded", workplace, set())
    assert files_below(tree) == before


def test_a_results_folder_that_cannot_be_written(small, workplace, command):
    (workplace / "results").write_text("a file stands in the way")
    outcome = command("train.py", *small)
    assert outcome.status == 2
    assert outcome.err.startswith("error: results=results/runs/default/")
    assert outcome.err.count("\n") == 1
    assert files_below(workplace) == {"results"}


@pytest.mark.parametrize("link", ["results", "results/runs", "results/runs/default"])
def test_a_results_folder_that_is_a_link_to_nowhere(small, workplace, command, link):
    """https://github.com/python/cpython/issues/129626: such a link is "File exists"."""
    (workplace / link).parent.mkdir(parents=True, exist_ok=True)
    (workplace / link).symlink_to("disk")
    outcome = command("train.py", *small)
    message = f"cannot be written ({link} is a link to disk, which does not exist); needs a folder"
    assert outcome.status == 2 and message in outcome.err and outcome.err.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_results_folder_without_permission(small, workplace, command):
    (workplace / "results").mkdir(mode=0o555)
    outcome = command("train.py", *small)
    assert outcome.status == 2
    assert "cannot be written (Permission denied)" in outcome.err


def test_a_run_that_another_process_trains(small, workplace, command):
    assert command("train.py", *small, "epochs=1").status == 0
    (directory,) = (workplace / "results" / "runs" / "default").iterdir()
    hold = (
        "import fcntl, os, sys, time; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX);"
        "print(f'process {os.getpid()} on here', file=f, flush=True);"
        "print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, directory / ".lock"], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        outcome = command("train.py", *small, "epochs=1", "resume=false")
        holder.kill()
    assert outcome.status == 2
    assert f"is being trained by process {holder.pid} on here\n" in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "checkpoint=null: must be a checkpoint file or a run's directory"),
        (["checkpoint=nowhere.pt"], "checkpoint=nowhere.pt: there is no such file"),
        (["checkpoint=" + "x" * 300], "x: cannot be read (File name too long)"),
        (["checkpoint=."], "checkpoint=checkpoint.pt: there is no such file"),
        (["checkpiont=x"], "checkpiont=x: unknown key; did you mean checkpoint"),
        (["checkpoint=x", "device=tpu"], "device=tpu: must be one of"),
        (["checkpoint=x", "json=1"], "json=1: must be true or false"),
        (["-m", "checkpoint=a,b"], "-m: val.py evaluates one checkpoint"),
    ],
)
def test_mistakes_in_an_evaluation(workplace, command, arguments, message):
    assert_refused(command("val.py", *arguments), message, workplace, set())


def test_a_missing_checkpoint_names_the_runs_that_are_there(workplace, command):
    group = Path("results/runs/first")
    for run in ("a", "b", "c", "d", "unfinished"):
        (group / run).mkdir(parents=True)
    for run in "abcd":
        (group / run / "checkpoint.pt").touch()
    named = f"{group / 'a'}, {group / 'b'}, {group / 'c'} and 1 more\n"
    for missing in (group / "RUN", group / "RUN" / "checkpoint.pt"):
        outcome = command("val.py", f"checkpoint={missing}")
        assert outcome.status == 2
        expected = f"{missing}: there is no such file; runs with a checkpoint there: {named}"
        assert outcome.err.endswith(expected)


@pytest.mark.parametrize(
    ("script", "more", "message"),
    [
        ("train.py", [], "MASTER_PORT not set; start several ranks with torchrun"),
        ("train.py", ["-m", "batch=32,64"], "-m: torchrun trains one run; sweep with python"),
        ("val.py", [], "WORLD_SIZE=2: val.py is one process; start it with python"),
    ],
)
def test_commands_that_do_not_support_ranks_are_refused(
    small, workplace, command, monkeypatch, script, more, message
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    if "-m" in more:
        for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.setenv(name, "0")
    outcome = command(script, *(small if script == "train.py" else []), *more)
    assert outcome.status == 2 and message in outcome.err and outcome.err.count("\n") == 1
    assert not files_below(workplace)


def test_in_a_shell_a_mistake_shows_no_traceback(tmp_path):
    made = subprocess.run(
        [sys.executable, PROJECT / "train.py", "batch=abc"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 2
    assert made.stderr == "error: batch=abc: must be a whole number at least 1\n"
    assert made.stdout == "" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["threads=1,2"], "threads=1, threads=2: give one of them; both name the run"),
        (["batch=glob(*)"], "a list of values is empty"),
        (["hydra.launcher=joblib"], "write hydra/launcher=joblib"),
    ],
)
def test_an_impossible_sweep(small, workplace, command, arguments, message):
    outcome = command("train.py", "-m", *small[:-1], *arguments)
    assert outcome.status == 2 and message in outcome.err and outcome.err.count("\n") == 1
    assert not files_below(workplace)


def test_a_dangling_link_among_the_images(small, workplace, command, tree):
    (tree / "train" / "cat" / "gone.png").symlink_to("nowhere.png")
    outcome = command("train.py", *small)
    assert outcome.status == 2 and "gone.png cannot be read" in outcome.err
    assert outcome.err.count("\n") == 1 and not files_below(workplace)


def test_a_pipe_among_the_images(small, workplace, tree):
    """https://github.com/xyb3rt/sxiv/issues/252: what opens a named pipe waits for its writer."""
    os.mkfifo(tree / "train" / "cat" / "pipe.png")
    command = [sys.executable, PROJECT / "train.py", *small]
    # In a process of its own, which can be ended.
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "pipe.png: is a pipe, a socket or a device; an image must be a regular" in done.stderr
    assert not files_below(workplace)


@pytest.mark.parametrize("flag", [["--resolve"], ["--package", "model"]])
def test_some_flags_need_cfg(small, workplace, command, flag):
    outcome = command("train.py", *small, *flag)
    assert outcome.status == 2 and f"{flag[0]}: needs --cfg" in outcome.err
    assert not files_below(workplace)
