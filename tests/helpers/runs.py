"""Configurations, and readers of a run's directory."""

import csv
import functools
import json
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from engine.config.compose import CONF, plain_config
from engine.config.schema import Config, DownloadedDataConfig, ImageFolderConfig
from engine.system.files import write_summed

CPU = torch.device("cpu")
# Overrides that enable every feature with a separate state in the checkpoint.
TOOLBOX = [
    "optimizer=lars", "scheduler=onecycle", "scheduler.final_fraction=0.01", "ema.decay=0.9",
    "loss.label_smoothing=0.1", "model.zero_init_residual=true", "model.ghost_batch=8",
    "noise_scale=true",
]  # fmt: skip
# Overrides of a run that several ranks can train; data.root must be added.
RANKED = [
    "data=image_folder", "model=resnet8", "batch=32", "model.ghost_batch=8", "epochs=4",
    "ema.decay=0.9", "precision=fp32", "threads=1",
    # This rate does not amplify rounding errors from sums in different orders.
    "optimizer.base_lr=0.05",
]  # fmt: skip
# The entries of a checkpoint that must be bit-equal after a resume.
STATE = ("model", "optimizer", "scheduler", "ema", "noise_scale", "epoch", "partial")


def composed(*overrides: str) -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return plain_config(compose("train", list(overrides)))


@functools.cache
def config(*overrides: str) -> Config:
    """Return a configuration. To compose one takes a tenth of a second, so they are kept."""
    return Config.from_hydra(composed(*overrides))


def folder_config(root, **changes):
    options = {"cache": None, "holdout": 0, "train_size": None, "test_size": None} | changes
    return ImageFolderConfig(name="image_folder", root=str(root), **options)


def cifar10_config(root, seconds=60.0):
    return DownloadedDataConfig("cifar10", str(root), None, 0, None, None, seconds)


def only_run(work: Path) -> Path:
    (directory,) = (work / "results" / "runs" / "default").iterdir()
    return directory


def state_of(directory: Path):
    """Return a run's checkpoint, and its rows of metrics.jsonl without times."""
    saved = torch.load(directory / "checkpoint.pt", weights_only=True)
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    timed = (
        "train_seconds", "wall_seconds", "images_per_second", "startup_seconds", "shared_machine",
    )  # fmt: skip
    return saved, [{k: v for k, v in row.items() if k not in timed} for row in rows]


def rewrite(path, content):
    """Replace a checkpoint's content, and its checksum accordingly."""
    with open(path, "wb") as file:
        write_summed(file, lambda out: torch.save(content, out))


def assert_same(left, right):
    """Assert that nested containers are equal in types and values, tensors bit by bit."""
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    else:
        assert left == right


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with open(path) as file:
        return list(csv.DictReader(file))
