"""Faults of the machine: each prints one line, damages no earlier file, and the run can resume."""

import errno
import functools
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import tarfile
import threading
import time
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import engine.system.files
import engine.training.loop
from engine.data import sources
from engine.data.dataset import load_data
from engine.errors import UserError
from engine.system.files import write_atomically
from engine.system.lock import holder, locked
from engine.training.checkpoint import load_checkpoint
from tests.helpers import CLASSES, files_below
from tests.helpers.runs import cifar10_config, folder_config, only_run


def assert_one_line(outcome, status, *messages):
    assert outcome.status == status, outcome
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1, outcome.err
    assert all(text in outcome.err for text in messages), outcome.err


def after_epoch(monkeypatch, number, act):
    """Call `act` once epoch `number` is trained, before it is recorded."""
    train_epoch, done = engine.training.loop.train_epoch, []

    def train(*rest):
        trained = train_epoch(*rest)
        done.append(1)
        if len(done) == number:
            act()
        return trained

    monkeypatch.setattr(engine.training.loop, "train_epoch", train)
    return done


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json", "checkpoint.pt"])
def test_a_directory_in_a_files_place(small, workplace, command, name):
    assert command("train.py", *small, "epochs=1").status == 0
    directory = only_run(workplace)
    for file in ("checkpoint.pt", "summary.json"):
        (directory / file).unlink()
    (directory / name).unlink(missing_ok=True)
    (directory / name).mkdir()
    outcome = command("train.py", *small, "epochs=1")
    status = 2 if name == "checkpoint.pt" else 1
    assert_one_line(outcome, status, f"{directory.name}/{name}", "s a directory")
    assert outcome.err.endswith("; remove it\n") == (name == "checkpoint.pt")
    (directory / name).rmdir()
    assert command("train.py", *small, "epochs=1").status == 0


def test_a_sweep_that_cannot_write_prints_one_line(small, workplace, command, monkeypatch):
    def refuse(self, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    outcome = command("train.py", "-m", *small, "seed=0,1")
    assert_one_line(outcome, 2, "results=", "(Read-only file system)")


@contextmanager
def file_system(folder, options):
    """Mount a separate file system in a folder; yield a function that remounts it."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("needs the right to mount a file system")
    except FileNotFoundError:
        pytest.skip("needs the command mount")
    try:
        yield lambda again: subprocess.run(
            ["mount", "-o", f"remount,{again}", str(folder)], check=True
        )
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_up(small, workplace, command):
    # There is room for two checkpoints of 0.7 MB, but not for a third one next to them.
    with file_system(workplace / "results", "size=1900k") as remount:
        outcome = command("train.py", *small, "epochs=4")
        advice = "fix this, then run the same command again"
        assert_one_line(outcome, 1, "No space left on device: 'results/runs/", advice)
        directory = only_run(workplace)
        assert load_checkpoint(directory / "checkpoint.pt").epoch >= 1
        assert not [*directory.glob(".checkpoint*")]
        remount("size=20m")
        outcome = command("train.py", *small, "epochs=4")
        assert outcome.status == 0 and "resuming  after epoch" in outcome.out
        assert json.loads((directory / "summary.json").read_text())["status"] == "completed"


def test_a_disk_that_became_read_only(small, workplace, command):
    with file_system(workplace / "results", "size=20m") as remount:
        assert command("train.py", *small, "epochs=1").status == 0
        before = files_below(workplace)
        remount("ro")
        assert_one_line(command("train.py", *small), 2, "results=", "(Read-only file system)")
        assert files_below(workplace) == before
        remount("rw")
        assert command("train.py", *small).status == 0


# Depending on where it fails, torch.save raises a separate error while it handles the OSError.
@pytest.mark.parametrize(
    ("number", "writes"), [(errno.ENOSPC, 0), (errno.ENOSPC, 1), (errno.EROFS, 3), (errno.EIO, 10)]
)
def test_a_failed_save_damages_no_checkpoint(
    small, workplace, command, monkeypatch, number, writes
):
    write, remaining = engine.system.files.HashingWriter.write, [0] * writes

    def fail(self, data):
        if not remaining:
            raise OSError(number, os.strerror(number))
        remaining.pop()
        return write(self, data)

    with monkeypatch.context() as patch:
        after_epoch(
            patch, 2, lambda: patch.setattr(engine.system.files.HashingWriter, "write", fail)
        )
        outcome = command("train.py", *small, "epochs=3")
    directory = only_run(workplace)
    message = f"{os.strerror(number)}: 'results/runs/default/{directory.name}/checkpoint.pt'"
    assert_one_line(outcome, 1, message, "fix this, then run the same command again")
    assert load_checkpoint(directory / "checkpoint.pt").epoch == 1
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["status"] == "failed" and os.strerror(number) in summary["error"]
    assert not [*directory.glob(".checkpoint*")]
    outcome = command("train.py", *small, "epochs=3")
    assert outcome.status == 0 and "resuming  after epoch 1 of 3" in outcome.out


def test_any_other_error_of_torch_is_not_changed(tmp_path):
    with pytest.raises(AttributeError, match="local object"):
        write_atomically(tmp_path / "file", lambda file: torch.save(lambda: 0, file))
    assert not [*tmp_path.iterdir()]


def test_data_loads_without_a_cache_if_the_disk_is_full(tree, monkeypatch):
    class Full:
        room = 1

        def write(self, data):
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.room -= 1
            return len(data)

        def flush(self):
            pass

    write = sources.write_atomically
    monkeypatch.setattr(
        sources, "write_atomically", lambda path, fill: write(path, lambda _: fill(Full()))
    )
    assert len(load_data(folder_config(tree)).train) == 120
    assert not [*tree.glob(".decoded*")]


@pytest.mark.parametrize("recreated", [False, True])
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_directory_removed_while_its_run_trains(
    small, workplace, command, monkeypatch, epoch, recreated
):
    def remove():
        directory = only_run(workplace)
        shutil.rmtree(directory)
        if recreated:
            # Another process that trains the same run would do this.
            (directory / ".hydra").mkdir(parents=True)
            (directory / ".lock").write_text("")

    with monkeypatch.context() as patch:
        after_epoch(patch, epoch, remove)
        outcome = command("train.py", *small)
    assert_one_line(outcome, 2, "results=results/runs/default/resnet8", "was removed while the run")
    group = workplace / "results" / "runs" / "default"
    files = sum(path.is_file() for path in group.rglob("*"))
    assert files == recreated, "the run must not write there again"
    outcome = command("train.py", *small)
    assert outcome.status == 0 and "resuming" not in outcome.out
    assert (only_run(workplace) / "summary.json").exists()


def test_an_interruption_is_reported_even_if_nothing_can_be_written(
    small, workplace, command, monkeypatch
):
    def remove_and_interrupt():
        shutil.rmtree(only_run(workplace))
        raise KeyboardInterrupt

    after_epoch(monkeypatch, 1, remove_and_interrupt)
    outcome = command("train.py", *small)
    assert outcome.status == 130 and outcome.err.startswith("interrupted; ")
    assert outcome.err.count("\n") == 1


@contextmanager
def serving(folder):
    """Serve a folder's files over HTTP on this machine; yield the address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def damaged_archive(path, member=None):
    """Write an archive with CIFAR-10's name and one member; return its MD5.

    Without a member, write a file that is not an archive.
    """
    if member is None:
        path.write_bytes(b"cut short")
    else:
        with tarfile.open(path, "w:gz") as archive:
            info = tarfile.TarInfo(member)
            info.size = 7
            archive.addfile(info, io.BytesIO(b"escaped"))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("member", [None, "../escaped", "cifar-10-batches-py/../../escaped"])
def test_a_damaged_or_malicious_download_is_refused(tmp_path, monkeypatch, member):
    if not hasattr(tarfile, "data_filter"):
        pytest.skip("this Python has no filter for archives")
    server, root = tmp_path / "server", tmp_path / "images"
    server.mkdir()
    archive = server / "cifar-10-python.tar.gz"
    md5 = damaged_archive(archive, member)
    # With a member the checksum matches, and only the member's path is wrong.
    agreed = "" if member is None else f"; CIFAR10.tgz_md5 = {md5!r}"
    with serving(server) as address:
        url = f"{address}/{archive.name}"
        prelude = f"from torchvision.datasets import CIFAR10; CIFAR10.url = {url!r}{agreed}"
        monkeypatch.setattr(sources, "DOWNLOAD", f"{prelude}\n{sources.DOWNLOAD}")
        with pytest.raises(UserError) as raised:
            load_data(cifar10_config(root))
    assert str(raised.value).startswith("data=cifar10: could not be downloaded (")
    assert ("not found or corrupted" if member is None else "outside") in str(raised.value)
    assert [*tmp_path.rglob("*")] == [server, archive]


def test_a_cache_damaged_anywhere_is_rebuilt(tree):
    expected = load_data(folder_config(tree))
    cache, chance = tree / ".decoded-image_folder.pt", random.Random(0)
    whole = cache.read_bytes()
    fingerprint = torch.load(cache, weights_only=True)["fingerprint"]
    damaged_places = 0
    for place in [*range(0, 400, 4), *(chance.randrange(len(whole)) for _ in range(50))]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << chance.randrange(8)
        cache.write_bytes(damaged)
        found = sources._read_cache(cache)
        usable = found.get("fingerprint") == fingerprint and sources._is_whole(found)
        assert not usable or torch.equal(found["train_images"], expected.train.images)
        damaged_places += not usable
    assert damaged_places > 50
    torch.save({"fingerprint": fingerprint, "classes": [1], "digest": None}, cache)
    load_data.cache_clear()
    assert torch.equal(load_data(folder_config(tree)).train.images, expected.train.images)
    assert sources._is_whole(sources._read_cache(cache)), "the cache must be complete again"


def test_a_clock_that_goes_backwards(small, workplace, command, monkeypatch):
    now = time.time()
    hours = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: now - 3600.0 * next(hours))
    assert command("train.py", *small).status == 0
    rows = (only_run(workplace) / "metrics.jsonl").read_text().splitlines()
    for row in map(json.loads, rows):
        assert 0 < row["train_seconds"] <= row["wall_seconds"] < 600


def test_a_remote_holder_from_before_the_clock_was_set_back(tmp_path):
    lock = tmp_path / ".lock"
    lock.write_text("process 1 on elsewhere\n")
    os.utime(lock, (time.time() + 10**6,) * 2)
    assert holder(tmp_path) is None
    with locked(tmp_path) as held:
        assert held()


def test_a_failed_run_from_before_the_clock_was_set_back(small, workplace, command, monkeypatch):
    tries = []

    def fail(*_):
        tries.append(1)
        raise ValueError("broken")

    monkeypatch.setattr(engine.training.loop, "train_epoch", fail)
    sweep = ("train.py", "-m", *small, "batch=32")
    assert command(*sweep).status == 1
    log = only_run(workplace) / "error.log"
    os.utime(log, (time.time() + 10**6,) * 2)
    del tries[:]
    assert command(*sweep).status == 1
    assert len(tries) == 1, "an outcome must count whatever its time"


def test_batches_that_leave_no_remainder(small, workplace, command):
    more = ["batch=40", "micro_batch=20", "data.test_size=30"]
    assert command("train.py", *small, *more).status == 0
    rows = (only_run(workplace) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [3, 6]
    assert [json.loads(row)["images"] for row in rows] == [120, 120]


def test_a_class_without_examples(small, workplace, command):
    few = ["data.train_size=2", "data.test_size=2", "data.holdout=2", "batch=2"]
    assert command("train.py", *small, *few).status == 0
    outcome = command("val.py", f"checkpoint={only_run(workplace)}", "json=true")
    per_class = json.loads(outcome.out)["per_class_accuracy"]
    assert tuple(per_class) == CLASSES
    assert [value is None for value in per_class.values()].count(True) == 1
    outcome = command("val.py", f"checkpoint={only_run(workplace)}")
    assert outcome.status == 0 and "no examples" in outcome.out
