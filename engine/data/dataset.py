"""The data set of a run in memory: training split, test split and hold-out split.

Hold-out split and subsets are class-balanced and the same for every seed, so that runs are
comparable. sources.py finds and decodes the images; augment.py crops, flips and normalizes them.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.config.schema import DataConfig
from engine.data.sources import KNOWN, blank_source, read_source
from engine.errors import key_error


@dataclass(frozen=True)
class Split:
    """Images uint8 [N, 32, 32, 3] and their labels int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> "Split":
        """Return the examples at sorted, distinct indices; a full index returns this object."""
        if len(index) == len(self):
            return self
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Dataset:
    """The splits of a run.

    Attributes:
        name: the data set's name, as in `data.name`.
        classes: names of the classes; a label is an index into them.
        train: images to train on.
        test: images to test on.
        holdout: the part of the training images that is not trained on; None if it is empty.

    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    holdout: Split | None


@functools.lru_cache(maxsize=1)
def load_data(config: DataConfig, keep: bool = True) -> Dataset:
    """Return the data set that a configuration describes.

    The last data set stays in memory, so that the runs of a sweep share it.

    Args:
        config: the group `data`.
        keep: whether to write the decoded images to the cache on disk.

    Raises:
        UserError: the images cannot be found, downloaded or decoded, or a size is too large.

    """
    return _divide(config, read_source(config, keep))


def plan_data(config: DataConfig) -> Dataset:
    """Return the data set for a plan, without writing; a known data set has blank images."""
    if config.name in KNOWN:
        return _divide(config, blank_source(config.name))
    return load_data(config, keep=False)


@functools.cache
def known_training_size(config: DataConfig) -> int | None:
    """Return the number of training images of a known data set, else None. No image is read."""
    return len(plan_data(config).train) if config.name in KNOWN else None


def _divide(config: DataConfig, decoded: dict[str, Any]) -> Dataset:
    """Return the splits of decoded images: hold-out and subsets are balanced and seed-independent.

    Raises:
        UserError: a size exceeds the number of images.

    """
    train = Split(decoded["train_images"], decoded["train_labels"])
    test = Split(decoded["test_images"], decoded["test_labels"])
    if config.holdout >= len(train):
        allowed = f"must leave training images: the split has {len(train)}"
        raise key_error("data.holdout", config.holdout, allowed)
    available = len(train) - config.holdout
    train_size = available if config.train_size is None else config.train_size
    if train_size > available:
        allowed = f"must be at most {available}, the size of the training split without hold-out"
        raise key_error("data.train_size", train_size, allowed)
    test_size = len(test) if config.test_size is None else config.test_size
    if test_size > len(test):
        raise key_error("data.test_size", test_size, f"must be at most {len(test)}")
    order = balanced_order(train.labels)
    held, kept = order[: config.holdout], order[config.holdout :][:train_size]
    return Dataset(
        name=config.name,
        classes=tuple(decoded["classes"]),
        train=train[kept.sort().values],
        test=test[balanced_order(test.labels)[:test_size].sort().values],
        holdout=train[held.sort().values] if config.holdout else None,
    )


def balanced_order(labels: Tensor) -> Tensor:
    """Return an order of examples in which every prefix is as balanced as the classes allow.

    The order within a class is random but always the same. `labels` and the result are int64 [N].
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(labels)) - starts[labels[by_class]]
    return by_class[rank.argsort(stable=True)]
