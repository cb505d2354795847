"""Damaged checkpoints are refused, and the previous checkpoint replaces them."""

import json
import os
import random
from pathlib import Path

import pytest
import torch

import engine.system.files
from engine.errors import UserError
from engine.system.files import MARK, TRAILER, previous_of
from engine.training.checkpoint import (
    DamagedCheckpoint,
    load_checkpoint,
    load_latest,
    save_checkpoint,
)
from engine.training.loop import Progress
from engine.training.metrics import PartialEpoch
from tests.helpers.runs import CPU, config, only_run, rewrite, state_of
from tests.helpers.training import setup_of

CUTS_EVERY = 4096
FLIPS = 1000
# In the tests without the stress marker.
FEW_CUTS, FEW_FLIPS = 20, 50


def save(path, epoch=0, partial=None):
    """Save a ResNet-8 with momentum as a run with `epoch` finished epochs does."""
    made = config("model=resnet8", "data=synthetic", "epochs=9")
    torch.manual_seed(0)
    setup = setup_of(made, 1000)
    state = setup.make_state()
    for parameter in state.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    state.optimizer.step()
    history = [{"epoch": number + 1} for number in range(epoch)]
    save_checkpoint(path, setup, state, Progress(9, history, partial))


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "checkpoint.pt"
    save(path)
    return path


def cuts_are_refused(path, count=None):
    whole = path.read_bytes()
    places = [*range(0, len(whole), CUTS_EVERY), len(whole) - TRAILER, len(whole) - 1]
    for place in places if count is None else random.Random(0).sample(places, count):
        path.write_bytes(whole[:place])
        with pytest.raises(DamagedCheckpoint) as raised:
            load_checkpoint(path, CPU)
        message = str(raised.value)
        assert message.startswith(f"checkpoint={path}: ") and "\n" not in message
    path.write_bytes(whole)
    load_checkpoint(path, CPU)


def flips_are_refused(path, count):
    whole, chance = path.read_bytes(), random.Random(0)
    last = [len(whole) - 1 - place for place in range(TRAILER)]
    for place in last[:: TRAILER * 4 // count + 1] + [
        chance.randrange(len(whole)) for _ in range(count)
    ]:
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << chance.randrange(8)
        path.write_bytes(spoilt)
        with pytest.raises(DamagedCheckpoint, match="its checksum"):
            load_checkpoint(path, CPU)
    path.write_bytes(whole)
    load_checkpoint(path, CPU)


def test_a_cut_checkpoint_is_refused(saved):
    cuts_are_refused(saved, FEW_CUTS)


def test_a_flipped_bit_is_refused(saved):
    flips_are_refused(saved, FEW_FLIPS)


@pytest.mark.stress
def test_a_checkpoint_cut_anywhere_is_refused(saved):
    cuts_are_refused(saved)


@pytest.mark.stress
def test_a_bit_flipped_anywhere_is_refused(saved):
    flips_are_refused(saved, FLIPS)


def test_torch_load_reads_the_file_despite_the_checksum(saved):
    content = torch.load(saved, weights_only=True)
    assert content["version"] == 2 and len(content["model"]) > 20
    assert saved.read_bytes()[-TRAILER:].startswith(MARK)


def test_a_file_of_format_1_is_read_with_a_warning(saved, capsys):
    content = torch.load(saved, weights_only=True)
    del content["partial"]
    torch.save(content | {"version": 1}, saved)
    assert load_checkpoint(saved, CPU).partial is None
    printed = capsys.readouterr().err
    assert printed == f"checkpoint={saved}: has the old format 1, without a checksum\n"


def test_the_previous_checkpoint_is_used_if_the_newest_is_damaged(saved, capsys):
    save(saved, 1)
    save(saved, 2)
    assert load_latest(saved).epoch == 2
    assert load_checkpoint(previous_of(saved), CPU).epoch == 1
    saved.write_bytes(saved.read_bytes()[:5000])
    assert load_latest(saved).epoch == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert printed.startswith(f"checkpoint={saved}: ") and "checkpoint.prev.pt is used" in printed
    assert load_checkpoint(saved, CPU).epoch == 1, "the damaged file was not replaced"
    assert not previous_of(saved).exists()


def test_two_damaged_checkpoints_are_an_error(saved):
    save(saved, 1)
    for path in (saved, previous_of(saved)):
        path.write_bytes(path.read_bytes()[:-1])
    message = r"and checkpoint.prev.pt cannot be used either; resume=false starts"
    with pytest.raises(UserError, match=message):
        load_latest(saved)
    previous_of(saved).unlink()
    with pytest.raises(UserError, match="; resume=false starts from scratch"):
        load_latest(saved)
    assert saved.exists(), "the damaged file was removed"
    saved.unlink()
    assert load_latest(saved) is None


def test_a_newer_format_is_an_error_and_not_skipped(saved):
    save(saved, 1)
    rewrite(saved, torch.load(saved, weights_only=True) | {"version": 3})
    with pytest.raises(UserError, match="has format 3; this version reads formats 1 to 2"):
        load_latest(saved)


def test_a_disk_that_alters_the_new_file_loses_no_checkpoint(saved, monkeypatch):
    before = saved.read_bytes()
    write_summed = engine.system.files.write_summed

    def spoil(file, write):
        write_summed(file, write)
        file.seek(3000)
        file.write(b"rust")

    monkeypatch.setattr(engine.training.checkpoint, "write_summed", spoil)
    with pytest.raises(OSError, match="differs from what was written"):
        save(saved, 1)
    assert saved.read_bytes() == before and [*saved.parent.iterdir()] == [saved]


def test_a_save_interrupted_between_its_renames_loses_no_checkpoint(saved, monkeypatch):
    replace = os.replace

    def fail(source, target):
        if Path(target) == saved:
            raise OSError("interrupted")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(engine.system.files.os, "replace", fail)
        with pytest.raises(OSError, match="interrupted"):
            save(saved, 1)
    assert not saved.exists()
    assert load_latest(saved).epoch == 0
    assert saved.exists()


def test_a_checkpoint_keeps_a_partial_epoch(saved):
    part = PartialEpoch.of_no_steps(8, CPU)
    part.losses[:2] = torch.tensor([0.1, 0.2])
    part.rates += [0.5, 0.25]
    part.layers.append((1, {"conv": {"trust_ratio": torch.tensor(0.5)}}))
    part.seconds, part.startup_seconds, part.shared_machine = 1.5, 2.5, True
    save(saved, 1, part)
    loaded = load_checkpoint(saved, CPU)
    assert loaded.describe() == "after epoch 1 of 9 and step 2 of 8 of the next"
    assert loaded.partial.rates == [0.5, 0.25] and loaded.partial.seconds == 1.5
    assert loaded.partial.losses.tolist() == part.losses.tolist()
    assert loaded.partial.layers == part.layers
    assert loaded.partial.startup_seconds == 2.5 and loaded.partial.shared_machine is True


def test_a_partial_epoch_of_an_earlier_version_is_read(saved):
    save(saved, 1, PartialEpoch.of_no_steps(8, CPU))
    content = torch.load(saved, weights_only=True)
    for key in ("startup_seconds", "shared_machine"):
        del content["partial"][key]
    rewrite(saved, content)
    loaded = load_checkpoint(saved, CPU).partial
    assert loaded.startup_seconds == 0 and loaded.shared_machine is None


def test_a_run_resumes_from_the_previous_checkpoint(small, workplace, command, monkeypatch):
    run = [*small, "epochs=3", "deterministic=true"]
    assert command("train.py", *run).status == 0
    directory = only_run(workplace)
    expected = state_of(directory)
    assert not (directory / "checkpoint.prev.pt").exists(), "a finished run kept it"

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine.runs.run.Run, "finish", stop)
        assert command("train.py", *run, "resume=false").status == 130
    assert not (directory / "summary.json").exists()
    path = directory / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-1000])
    outcome = command("val.py", f"checkpoint={directory}")
    assert outcome.status == 2 and outcome.err.count("\n") == 1, "val.py used the previous one"
    outcome = command("train.py", *run)
    assert outcome.status == 0 and "resuming  after epoch 2 of 3" in outcome.out
    assert outcome.err.count("\n") == 1 and "checkpoint.prev.pt is used instead" in outcome.err
    got = state_of(directory)
    assert torch.equal(got[0]["model"]["fc.weight"], expected[0]["model"]["fc.weight"])
    assert got[1] == expected[1]
    path.write_bytes(b"")
    (directory / "summary.json").unlink()
    outcome = command("train.py", *run)
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert "resume=false starts from scratch" in outcome.err
    assert command("train.py", *run, "resume=false").status == 0
    assert json.loads((directory / "summary.json").read_text())["status"] == "completed"
