import fcntl
import json
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
from tensorboard.summary.writer import event_file_writer

import engine.runs.epochs
import engine.runs.run
import engine.system.signals
import engine.training.step
from engine.cli import exit_status
from engine.system.signals import Pauses, Stopped, leaving, pausing
from engine.training.checkpoint import load_checkpoint
from models import commit_batch_statistics
from tests.helpers import PROJECT
from tests.helpers.runs import CPU, STATE, TOOLBOX, assert_same, only_run, state_of

SIGNALS = [
    (signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143), (signal.SIGHUP, 129),
]  # fmt: skip


@pytest.fixture
def steps(monkeypatch):
    """Count optimizer steps; `at[n]` is called in the n-th step, before it ends."""
    counted = {"done": 0, "at": {}}

    def commit(model):
        commit_batch_statistics(model)
        counted["done"] += 1
        counted["at"].get(counted["done"], lambda: None)()

    monkeypatch.setattr(engine.training.step, "commit_batch_statistics", commit)
    # Event files of the same second and process are read in the text order of this counter.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(100))
    return counted


def send(number):
    return lambda: os.kill(os.getpid(), number)


def test_a_run_stopped_at_any_step_resumes_bit_equal(small, workplace, command, steps):
    run = [*small, "epochs=3", *TOOLBOX, "deterministic=true", "log_layers_every=1"]
    assert command("train.py", *run).status == 0
    directory = only_run(workplace)
    expected = state_of(directory)
    summary = json.loads((directory / "summary.json").read_text())
    directory.rename(workplace / "uninterrupted")
    total = steps["done"]
    assert total == 12
    # In the first epoch, at an epoch's last step, in mid-epoch, and twice in one epoch.
    stops = {1: SIGNALS[0], 4: SIGNALS[1], 6: SIGNALS[2], 7: SIGNALS[0], 11: SIGNALS[3]}
    steps.update(done=0, at={step: send(number) for step, (number, _) in stops.items()})
    for step, (_, status) in stops.items():
        outcome = command("train.py", *run)
        assert outcome.status == status and steps["done"] == step
        assert "interrupted; run the same command again to resume" in outcome.err
        assert json.loads((directory / "summary.json").read_text())["status"] == "interrupted"
        saved = load_checkpoint(directory / "checkpoint.pt", CPU)
        assert saved.partial is not None
        assert 4 * saved.epoch + len(saved.partial.rates) == step
    evaluated = command("val.py", f"checkpoint={directory}")
    assert "after epoch 2 of 3 and step 3 of 4 of the next\n" in evaluated.out
    resumed = command("train.py", *run)
    assert resumed.status == 0
    assert "resuming  after epoch 2 of 3 and step 3 of 4 of the next" in resumed.out
    assert steps["done"] == total, "no step may be repeated"

    got = state_of(directory)
    for key in STATE:
        assert_same(got[0][key], expected[0][key])
    assert got[1] == expected[1]
    again = json.loads((directory / "summary.json").read_text())
    timed = {key for key in again if "seconds" in key} | {"images_per_second", "peak_memory_bytes"}
    assert {k: v for k, v in again.items() if k not in timed} == {
        k: v for k, v in summary.items() if k not in timed
    }
    assert points(directory) == points(workplace / "uninterrupted")


def points(directory):
    """Return the last value at each step in a run's events, by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if "second" not in tag]
    assert any(tag.startswith("trust_ratio/") for tag in tags)
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in tags}


def test_a_signal_during_evaluation_stops_the_run_after_it(
    small, workplace, command, steps, monkeypatch
):
    evaluate_splits = engine.runs.epochs.evaluate_splits

    def interrupt(*arguments):
        if steps["done"] == 4:
            send(signal.SIGTERM)()
        return evaluate_splits(*arguments)

    monkeypatch.setattr(engine.runs.epochs, "evaluate_splits", interrupt)
    assert command("train.py", *small).status == 143
    assert len((only_run(workplace) / "metrics.jsonl").read_text().splitlines()) == 1
    assert command("train.py", *small).status == 0 and steps["done"] == 8


def test_a_signal_after_the_last_step_lets_the_run_complete(small, workplace, command, monkeypatch):
    record_epoch = engine.runs.run.Run.record_epoch

    def interrupt(self, row, trained):
        record_epoch(self, row, trained)
        if row["epoch"] == 2:
            send(signal.SIGTERM)()

    monkeypatch.setattr(engine.runs.run.Run, "record_epoch", interrupt)
    assert command("train.py", *small).status == 0
    assert json.loads((only_run(workplace) / "summary.json").read_text())["status"] == "completed"


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_a_sweep_stops_after_an_interrupted_run_and_resumes(
    small, workplace, command, steps, number, status
):
    sweep = ("-m", *small, "batch=32,64,96", "epochs=1")
    steps["at"] = {5: send(number)}
    outcome = command("train.py", *sweep)
    assert outcome.status == status
    assert steps["done"] == 5, "the third run must not start"
    table = (workplace / "results" / "default" / "table.md").read_text()
    assert table.count("missing") == 2
    summaries = (workplace / "results" / "runs").rglob("summary.json")
    found = sorted(json.loads(path.read_text())["status"] for path in summaries)
    assert found == ["completed", "interrupted"]
    again = command("train.py", *sweep)
    assert again.status == 0 and "3 runs, 1 finished already" in again.out
    assert "resuming  after epoch 0 of 1 and step 1 of 2 of the next" in again.out
    assert steps["done"] == 4 + 2 + 2


def test_a_sweep_stops_after_a_run_that_completes_despite_the_signal(
    small, workplace, command, monkeypatch
):
    record_epoch = engine.runs.run.Run.record_epoch

    def interrupt(self, row, trained):
        record_epoch(self, row, trained)
        send(signal.SIGTERM)()

    with monkeypatch.context() as patch:
        patch.setattr(engine.runs.run.Run, "record_epoch", interrupt)
        assert command("train.py", "-m", *small, "batch=32,64", "epochs=1").status == 143
    again = command("train.py", "-m", *small, "batch=32,64", "epochs=1")
    assert again.status == 0 and "2 runs, 1 finished already" in again.out


def test_handlers_are_installed_only_while_a_run_trains(small, workplace, command, steps):
    numbers = [number for number, _ in SIGNALS]
    before = [signal.getsignal(number) for number in numbers]
    seen = []
    steps["at"] = {1: lambda: seen.extend(signal.getsignal(number) for number in numbers)}
    assert command("train.py", *small, "epochs=1").status == 0
    assert len(seen) == 4 and not set(seen) & set(before)
    assert [signal.getsignal(number) for number in numbers] == before
    assert command("train.py", "-m", *small, "seed=1,2", "epochs=1").status == 0
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_thread_gets_no_signals_and_an_ignored_one_stays_ignored():
    def in_a_thread():
        with pausing(1), leaving():
            kept.append(signal.getsignal(signal.SIGTERM))

    kept: list = []
    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    assert kept == [signal.SIG_DFL]
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pausing(1) as pauses:
            send(signal.SIGTERM)()
            assert not pauses.due()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
def test_a_launchers_own_handler_is_called_once_the_run_has_saved(number):
    received = []
    before = signal.signal(number, lambda *arguments: received.append(arguments[0]))
    try:
        with pausing(1) as pauses:
            send(number)()
            assert pauses.due() and not received
            pauses.saved()
            assert received == [number] and not pauses.due(), "it returned: training continues"
            send(number)()
        assert received == [number, number], "a signal after the last save goes to the launcher"
    finally:
        signal.signal(number, before)


def test_a_warning_is_no_first_signal_and_a_repeated_signal_counts_once(monkeypatch):
    killed = []
    monkeypatch.setattr(
        engine.system.signals.os, "kill", lambda *arguments: killed.append(arguments[1])
    )
    monkeypatch.setattr(engine.system.signals.signal, "signal", lambda *_: None)
    pauses = Pauses(1)
    for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        pauses.note(number, None)
    assert pauses.signal == signal.SIGTERM and not killed
    pauses.asked_at -= 2 * engine.system.signals.REPEAT_SECONDS
    pauses.note(signal.SIGUSR1, None)
    assert not killed
    pauses.note(signal.SIGINT, None)
    assert killed == [signal.SIGINT]


def test_a_second_signal_kills_while_a_stopped_run_closes(monkeypatch):
    killed = []
    monkeypatch.setattr(
        engine.system.signals.os, "kill", lambda *arguments: killed.append(arguments[1])
    )
    monkeypatch.setattr(engine.system.signals.signal, "signal", lambda *_: None)
    pauses = Pauses(1)
    pauses.before = {signal.SIGTERM: engine.system.signals.leave}
    pauses.note(signal.SIGTERM, None)
    with pytest.raises(Stopped):
        pauses.saved()
    pauses.note(signal.SIGTERM, None)
    assert not killed, "a repetition of the first signal"
    pauses.asked_at -= 2 * engine.system.signals.REPEAT_SECONDS
    pauses.note(signal.SIGTERM, None)
    assert killed == [signal.SIGTERM] and pauses.signal is None


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Stopped(143)])
def test_only_a_command_that_can_resume_advises_it(capsys, error):
    def interrupted():
        raise error

    for resumes, advice in (
        (True, "; run the same command again to resume from the last checkpoint"),
        (False, ""),
    ):
        assert exit_status(interrupted, resumes) == getattr(error, "status", 130)
        assert capsys.readouterr().err == f"interrupted{advice}\n"


def test_stopped_can_be_pickled():
    assert pickle.loads(pickle.dumps(Stopped(143))).status == 143


# Keeps the run inside a step, as a device that hangs would.
HANGS = """
import sys, time, train
from engine.cli import exit_status
from engine.training import step
commit, step.commit_batch_statistics = step.commit_batch_statistics, None
def hang(model):
    commit(model)
    print("in a step", flush=True)
    for _ in range(600): time.sleep(0.1)
step.commit_batch_statistics = hang
sys.exit(exit_status(train.main))
"""


def test_a_second_signal_ends_the_process_at_once(small, workplace):
    path = os.pathsep.join(sys.path)
    with subprocess.Popen(
        [sys.executable, "-c", HANGS, *small],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert any(line == b"in a step\n" for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        time.sleep(1.5 * engine.system.signals.REPEAT_SECONDS)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM


# The signal arrives while torch is imported, or while the data is read.
@pytest.mark.parametrize(("number", "status"), SIGNALS)
@pytest.mark.parametrize("place", ["import", "data"])
def test_a_signal_before_training_ends_the_process(small, workplace, number, status, place):
    waits = "import time; print('here', flush=True); time.sleep(60)"
    loading = (
        "import engine.data.dataset as d; d.load_data = lambda _: exec(open('slow.py').read())"
    )
    (workplace / "slow.py").write_text(waits)
    patch = {
        "import": "sys.meta_path.insert(0, Slow())",
        "data": loading,
    }[place]
    code = f"""
import sys, train
from engine.cli import exit_status
class Slow:
    def find_spec(self, name, *_):
        if name == "torch":
            import slow
{patch}
sys.exit(exit_status(train.main))
"""
    path = os.pathsep.join([str(workplace), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-c", code, *small],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path},
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"here\n"
        process.send_signal(number)
        assert process.wait(20) == status
        message = process.stderr.read()
        assert message.startswith(b"interrupted") and message.count(b"\n") == 1, message
    assert not (workplace / "results").exists()


def test_minutes_between_checkpoints(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(engine.system.signals.time, "monotonic", lambda: now[0])
    pauses = Pauses("10min")
    now[0] += 599
    assert not pauses.due() and not pauses.due_after(5)
    now[0] += 1
    assert pauses.due() and pauses.due_after(5)
    pauses.saved()
    assert not pauses.due()
    pauses = Pauses(5)
    now[0] += 1e6
    assert not pauses.due() and [e for e in range(1, 12) if pauses.due_after(e)] == [5, 10]


def test_saving_in_mid_epoch_changes_nothing(small, workplace, command, monkeypatch):
    run = [*small, "deterministic=true"]
    assert command("train.py", *run).status == 0
    directory = only_run(workplace)
    expected = state_of(directory)
    saves = []
    save_checkpoint = engine.training.checkpoint.save_checkpoint

    def save(*arguments):
        saves.append(arguments[3].part)
        save_checkpoint(*arguments)

    monkeypatch.setattr(engine.training.checkpoint, "save_checkpoint", save)
    monkeypatch.setattr(engine.system.signals.Pauses, "due", late_at_every_second_call())
    assert command("train.py", *run, "checkpoint_every=10min", "resume=false").status == 0
    assert only_run(workplace) == directory, "it must be the same run"
    got = state_of(directory)
    assert len([part for part in saves if part is not None]) >= 4
    for key in STATE:
        assert_same(got[0][key], expected[0][key])
    assert got[1] == expected[1]


def late_at_every_second_call():
    calls = []

    def due(self):
        calls.append(1)
        return len(calls) % 2 == 0

    return due


@pytest.mark.parametrize(
    ("every", "saved"), [("1", [1, 2, 3, 4, 5]), ("2", [2, 4, 5]), ("10min", [5])]
)
def test_epochs_between_checkpoints(small, workplace, command, monkeypatch, every, saved):
    epochs = []

    def save(path, setup, state, progress, write):
        epochs.append(len(progress.history))

    monkeypatch.setattr(engine.training.checkpoint, "save_checkpoint", save)
    run = [*small, "epochs=5", "data.train_size=30", "batch=30"]
    assert command("train.py", *run, f"checkpoint_every={every}").status == 0
    assert epochs == saved


@pytest.mark.parametrize(
    "value", ["0", "-1", "1.5", "min", "0min", "1.5min", "10 min", "10s", "null", "true"]
)
def test_mistakes_in_checkpoint_every(small, workplace, command, value):
    outcome = command("train.py", *small, f"checkpoint_every={value}")
    assert outcome.status == 2
    allowed = "must be a whole number at least 1 or minutes such as 10min"
    assert outcome.err == f"error: checkpoint_every={value}: {allowed}\n"


def in_a_terminal(work: Path, *arguments: object) -> tuple[subprocess.Popen, int]:
    """Start train.py as the leader of a terminal session.

    Returns the process and our end of the terminal.
    """
    ours, theirs = os.openpty()
    # Without a width the progress bars are not drawn.
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

    def take_terminal():
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [sys.executable, PROJECT / "train.py", *map(str, arguments)],
        cwd=work, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=take_terminal,
    )  # fmt: skip
    os.close(theirs)
    return process, ours


def read_until(end: int, text: bytes) -> None:
    seen = b""
    while text not in seen:
        ready, _, _ = select.select([end], [], [], 60)
        assert ready, seen
        seen += os.read(end, 4096)


def test_a_run_whose_terminal_is_closed_saves_and_exits(small, workplace):
    process, terminal = in_a_terminal(workplace, *small, "epochs=2000")
    read_until(terminal, b"epoch 3/2000")
    os.close(terminal)
    assert process.wait(60) == 129
    directory = only_run(workplace)
    assert json.loads((directory / "summary.json").read_text())["status"] == "interrupted"
    assert load_checkpoint(directory / "checkpoint.pt").epoch >= 2


# Runs in processes of their own draw no bar.
@pytest.mark.parametrize(("parallel", "text"), [(1, b"epoch 3/2000"), (2, b"  decay  ")])
def test_a_sweep_whose_terminal_is_closed_writes_its_table(small, workplace, parallel, text):
    sweep = ("-m", *small, "epochs=2000", "seed=0,1", f"parallel={parallel}")
    process, terminal = in_a_terminal(workplace, *sweep)
    read_until(terminal, text)
    os.close(terminal)
    assert process.wait(60) == 129
    table = (workplace / "results" / "default" / "table.csv").read_text()
    assert table.splitlines()[1].split(",")[8:12] == ["2", "0", "0", "2"]


def test_an_ignored_hangup_stays_ignored(small, workplace):
    """nohup ignores SIGHUP."""
    process = subprocess.Popen(
        [sys.executable, PROJECT / "train.py", *small, "epochs=3"],
        cwd=workplace, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    assert process.stdout.readline().startswith(b"run ")
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0
