"""Splits of a data set into training, hold-out and test images."""

import pytest
import torch

from engine.data.dataset import balanced_order, load_data
from engine.errors import UserError
from tests.helpers.runs import folder_config


def test_every_prefix_of_a_balanced_order_is_balanced():
    labels = torch.tensor([0] * 30 + [1] * 30 + [2] * 5)
    order = balanced_order(labels)
    assert sorted(order.tolist()) == list(range(65))
    for size in (3, 9, 15):
        assert labels[order[:size]].bincount(minlength=3).tolist() == [size // 3] * 3
    assert labels[order[:25]].bincount().tolist() == [10, 10, 5]


def test_holdout_and_subsets_are_balanced_disjoint_and_the_same_each_time(tree):
    made = load_data(folder_config(tree, holdout=30, train_size=60, test_size=15))
    assert made.holdout is not None
    assert made.holdout.labels.bincount().tolist() == [10, 10, 10]
    assert made.train.labels.bincount().tolist() == [20, 20, 20]
    assert made.test.labels.bincount().tolist() == [5, 5, 5]
    seen = {bytes(image.numpy().tobytes()) for image in made.train.images}
    assert not seen & {bytes(image.numpy().tobytes()) for image in made.holdout.images}
    load_data.cache_clear()
    again = load_data(folder_config(tree, holdout=30, train_size=60, test_size=15))
    assert torch.equal(again.train.images, made.train.images)
    # The hold-out split does not depend on the size of the subset.
    load_data.cache_clear()
    other = load_data(folder_config(tree, holdout=30))
    assert torch.equal(other.holdout.images, made.holdout.images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"holdout": 120}, "data.holdout=120: must leave training images: the split has 120"),
        ({"train_size": 121}, "data.train_size=121: must be at most 120"),
        ({"holdout": 20, "train_size": 101}, "data.train_size=101: must be at most 100"),
        ({"test_size": 31}, "data.test_size=31: must be at most 30"),
    ],
)
def test_sizes_that_exceed_the_split_raise(tree, changes, message):
    with pytest.raises(UserError) as raised:
        load_data(folder_config(tree, **changes))
    assert message in str(raised.value)
