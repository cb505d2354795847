import time

import pytest
import torch

from scripts.bench import probe, startup
from scripts.bench.harness import random_split
from tests.helpers.runs import CPU


def test_start_rows_have_medians_and_aims():
    rows = startup.start_rows({"train.py": [3.0, 5.0, 4.0], "reference loop": [6.0, 6.0]})
    assert [tuple(row.values()) for row in rows] == [
        ("train.py", 4.0, "3.50 to 4.50", 6.0),
        ("reference loop", 6.0, "6.00 to 6.00", ""),
    ]
    phases = [dict.fromkeys(probe.LABELS, 1.0) | {"torch": value} for value in (2.0, 4.0, 3.0)]
    rows = {row.pop("phase"): tuple(row.values()) for row in startup.phase_rows(phases)}
    assert list(rows) == list(probe.LABELS)
    assert rows["torch"] == (3.0, "2.50 to 3.50", "33.3%", "")
    assert rows["own code"] == (1.0, "1.00 to 1.00", "11.1%", 1.0)


def test_a_clock_charges_the_innermost_label(monkeypatch):
    now = iter([10.0, 11.0, 13.0, 16.0, 20.0])
    monkeypatch.setattr(time, "time", lambda: next(now))
    clock = probe.Clock(8.0)
    clock.call("data", clock.call, "torch", lambda: None)
    clock.charge()
    assert dict(clock.seconds) == {"interpreter": 2.0 + 4.0, "data": 1.0 + 3.0, "torch": 2.0}


@pytest.mark.parametrize(
    ("module", "label"),
    [
        ("torch", "torch"),
        ("torch._dynamo", "torch"),
        ("torch.utils.tensorboard", "other libraries"),
        ("torchvision.models", "other libraries"),
        ("hydra.core.hydra_config", "other libraries"),
        ("json", "own code"),
        ("engine.data.dataset", "own code"),
    ],
)
def test_an_import_has_its_label(module, label):
    assert probe.label_of(module) == label


def test_a_start_is_divided_into_phases(tree, tmp_path):
    arguments = ["data=image_folder", f"data.root={tree}", "model=resnet8", "batch=32", "threads=1"]
    started = time.time()
    phases = startup.start_training(arguments, tmp_path)
    assert tuple(phases) == probe.LABELS
    assert all(seconds > 0 for seconds in phases.values())
    assert 0.5 * (time.time() - started) < sum(phases.values()) < time.time() - started
    # The process ends after one step, so no epoch is recorded.
    (metrics,) = tmp_path.glob("results/runs/*/*/metrics.jsonl")
    assert metrics.read_text() == ""


def test_the_reference_starts_on_the_cached_images(tmp_path):
    folder = tmp_path / ".data" / "synthetic"
    folder.mkdir(parents=True)
    split = random_split(4)
    decoded = {"train_images": split.images, "train_labels": split.labels}
    torch.save(decoded, folder / ".decoded-synthetic.pt")
    started = time.time()
    assert 0 < startup.start_reference(CPU, tmp_path) < time.time() - started


def test_a_start_that_fails_raises(tmp_path):
    with pytest.raises(RuntimeError, match="batch=0"):
        startup.start_training(["batch=0"], tmp_path)
