"""Runs resume bit for bit, and files that cannot be resumed give one-line errors."""

import json
import pickle
from pathlib import Path

import pytest
import torch

import engine.runs.run
from engine.data.dataset import load_data
from engine.errors import UserError
from engine.training.checkpoint import load_checkpoint
from tests.helpers.runs import CPU, TOOLBOX, assert_same, only_run, rewrite, state_of


@pytest.mark.parametrize(
    "choices",
    [["optimizer=sgd"], ["optimizer=lars"], ["optimizer=lars", "optimizer.base=muon"], TOOLBOX],
    ids=["sgd", "lars", "wrapped muon", "toolbox"],
)
def test_a_resumed_run_equals_an_uninterrupted_run_bit_for_bit(
    small, workplace, command, monkeypatch, choices
):
    run = [*small, "epochs=4", *choices, "deterministic=true"]
    assert command("train.py", *run).status == 0
    directory = only_run(workplace)
    expected = state_of(directory)
    directory.rename(workplace / "uninterrupted")

    record_epoch = engine.runs.run.Run.record_epoch
    calls = 0

    def stop_in_the_third(self, row, trained):
        nonlocal calls
        calls += 1
        record_epoch(self, row, trained)
        if calls == 3:  # epoch 3 has metrics and no checkpoint yet
            raise KeyboardInterrupt

    monkeypatch.setattr(engine.runs.run.Run, "record_epoch", stop_in_the_third)
    assert command("train.py", *run).status == 130
    assert json.loads((directory / "summary.json").read_text())["status"] == "interrupted"
    assert load_checkpoint(directory / "checkpoint.pt", CPU).epoch == 2
    monkeypatch.setattr(engine.runs.run.Run, "record_epoch", record_epoch)
    resumed = command("train.py", *run)
    assert resumed.status == 0
    assert "resuming  after epoch 2 of 4" in resumed.out

    got = state_of(directory)
    for key in ("model", "optimizer", "scheduler", "ema", "noise_scale", "epoch"):
        assert_same(got[0][key], expected[0][key])
    assert got[1] == expected[1]


def test_the_same_command_twice_gives_bit_identical_weights(small, workplace, command):
    run = [*small, "deterministic=true"]
    assert command("train.py", *run).status == 0
    first = state_of(only_run(workplace))
    assert command("train.py", *run, "resume=false").status == 0
    second = state_of(only_run(workplace))
    assert_same(first[0]["model"], second[0]["model"])
    assert first[1] == second[1]
    assert command("train.py", *run, "seed=1").status == 0


def test_a_finished_run_is_not_trained_again(small, workplace, command):
    assert command("train.py", *small).status == 0
    directory = only_run(workplace)
    before = (directory / "checkpoint.pt").stat().st_mtime_ns
    again = command("train.py", *small)
    assert again.status == 0
    assert "finished already" in again.out
    assert (directory / "checkpoint.pt").stat().st_mtime_ns == before


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("harm"),))


def test_a_pickle_that_runs_code_is_refused_without_running_it(workplace):
    with open("harmful.pt", "wb") as file:
        pickle.dump(Harmful(), file)
    torch.save({"format": Harmful()}, "harmful2.pt")
    for name in ("harmful.pt", "harmful2.pt"):
        with pytest.raises(UserError, match="not a checkpoint"):
            load_checkpoint(Path(name), CPU)
    assert not Path("harm").exists()


@pytest.mark.parametrize("content", [b"", b"hello", "cut", "other", "newer"])
def test_a_file_that_is_not_a_checkpoint_is_a_one_line_error(small, workplace, command, content):
    assert command("train.py", *small, "epochs=1").status == 0
    path = only_run(workplace) / "checkpoint.pt"
    if content == "cut":
        path.write_bytes(path.read_bytes()[:-500])
    elif content == "other":
        torch.save({"weights": torch.zeros(3)}, path)
    elif content == "newer":
        rewrite(path, torch.load(path, weights_only=True) | {"version": 99})
    else:
        path.write_bytes(content)
    outcome = command("val.py", f"checkpoint={path}")
    assert outcome.status == 2
    assert outcome.err.startswith(f"error: checkpoint={path}: ")
    assert outcome.err.count("\n") == 1
    assert outcome.out == ""


def test_a_checkpoint_of_another_model_is_a_one_line_error(small, workplace, command):
    assert command("train.py", *small, "epochs=1").status == 0
    path = only_run(workplace) / "checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    saved["config"]["model"]["name"] = "resnet20"
    rewrite(path, saved)
    outcome = command("val.py", f"checkpoint={path}")
    assert outcome.status == 2
    assert "its weights do not fit model=resnet20" in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda saved: saved.pop("random_states"),
        lambda saved: saved.pop("version"),
        lambda saved: saved.update(config={"batch": 0}),
        lambda saved: saved.update(optimizer=3),
        lambda saved: saved.update(epoch=99),
        lambda saved: saved.update(mean=None),
    ],
)
def test_a_checkpoint_with_damaged_fields_is_a_one_line_error(small, workplace, command, spoil):
    command("train.py", *small)
    path = only_run(workplace) / "checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    spoil(saved)
    rewrite(path, saved)
    (path.parent / "summary.json").unlink()
    outcome = command("train.py", *small)
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert outcome.err.startswith("error: checkpoint=results/runs/default/")


def test_a_run_does_not_resume_with_other_images(small, workplace, command, tree):
    command("train.py", *small)
    (only_run(workplace) / "summary.json").unlink()
    next((tree / "train" / "cat").iterdir()).unlink()
    load_data.cache_clear()  # as a new process would
    outcome = command("train.py", *small)
    message = "was saved with other training images of the same classes; resume=false"
    assert outcome.status == 2 and message in outcome.err
    assert command("train.py", *small, "resume=false").status == 0


def test_a_run_does_not_resume_with_other_classes(small, workplace, command, tree):
    """https://github.com/ultralytics/yolov5/issues/410: a class is added, and tensors mismatch."""
    command("train.py", *small)
    (only_run(workplace) / "summary.json").unlink()
    for split in ("train", "test"):
        (tree / split / "ship").rename(tree / split / "boat")
    load_data.cache_clear()  # as a new process would
    outcome = command("train.py", *small)
    message = "was saved with other classes; only data.root has boat, only the checkpoint has ship"
    assert outcome.status == 2 and message in outcome.err
    assert command("train.py", *small, "resume=false").status == 0
