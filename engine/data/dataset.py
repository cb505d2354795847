"""The pictures of a run in memory: training split, test split, hold-out.

Hold-out and subsets are class-balanced and the same for every seed, so that runs compare. Finding
and decoding the pictures is sources.py's; cropping, flipping and normalising augment.py's.
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
    """Pictures uint8 [N, 32, 32, 3] and their classes int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> "Split":
        """Take the pictures at the given places; all of them, in order, are not copied."""
        if len(index) == len(self):
            return self
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Dataset:
    """What a run trains on and is tested on; `holdout` is None where nothing is set aside."""

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    holdout: Split | None


@functools.lru_cache(maxsize=1)
def load_data(config: DataConfig, keep: bool = True) -> Dataset:
    """Find, decode, check and split the pictures; raise UserError where they cannot be had.

    The last data set stays in memory, so that the runs of one sweep share it. keep: also write
    the decoded pictures to the cache, for the runs to come.
    """
    return _divide(config, read_source(config, keep))


def plan_data(config: DataConfig) -> Dataset:
    """Return what a plan needs to know, and write nothing: blank pictures where sizes are known."""
    if config.name in KNOWN:
        return _divide(config, blank_source(config.name))
    return load_data(config, keep=False)


@functools.cache
def known_training_size(config: DataConfig) -> int | None:
    """Count the training pictures where that takes none of them; None where it would."""
    return len(plan_data(config).train) if config.name in KNOWN else None


def _divide(config: DataConfig, decoded: dict[str, Any]) -> Dataset:
    """Set the hold-out aside and take the subsets, class-balanced and the same for every seed."""
    train = Split(decoded["train_images"], decoded["train_labels"])
    test = Split(decoded["test_images"], decoded["test_labels"])
    if config.holdout >= len(train):
        allowed = f"must leave training images: below the split's {len(train)}"
        raise key_error("data.holdout", config.holdout, allowed)
    left = len(train) - config.holdout
    train_size = left if config.train_size is None else config.train_size
    if train_size > left:
        allowed = f"must be at most {left}, the training split less the hold-out"
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
    """Order examples so that every prefix holds the classes as evenly as they come.

    The order inside a class is random and always the same: int64 [N] from labels int64 [N].
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(labels)) - starts[labels[by_class]]
    return by_class[rank.argsort(stable=True)]
