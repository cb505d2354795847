"""Loss and accuracy per split, class and example."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from engine.data.augment import Normalization
from engine.system.runtime import start_runtime
from engine.training.evaluate import evaluate
from tests.helpers.training import Plain, images_of, make_plain


def test_evaluation_returns_the_loss_and_prediction_of_each_example():
    split, runtime = images_of(1100), start_runtime("cpu", "fp32", 1, False, 0)
    made = evaluate(make_plain(), split, Normalization.of(split.images), 10, runtime)
    assert made.losses.shape == made.predictions.shape == (1100,)
    assert float(made.losses.mean()) == pytest.approx(made.loss, rel=1e-5)
    right = (made.predictions == split.labels).float().mean()
    assert 100 * float(right) == pytest.approx(made.accuracy)


def test_evaluation_counts_every_example_of_each_class():
    runtime = start_runtime("cpu", "fp32", 1, False, 0)
    split = images_of(1300)  # more than one evaluation batch

    class ByBrightness(nn.Module):
        def forward(self, x):
            return F.one_hot((x.mean(dim=(1, 2, 3)) > 0).long(), 10).float()

    normalization = Normalization.of(split.images)
    made = evaluate(ByBrightness(), split, normalization, 10, runtime)
    guess = (normalization.apply(split.images).mean(dim=(1, 2, 3)) > 0).long()
    assert made.accuracy == pytest.approx(100 * float((guess == split.labels).float().mean()))
    for label in range(10):
        of_class = split.labels == label
        expected = 100 * float((guess[of_class] == label).float().mean())
        assert made.per_class_accuracy[label] == pytest.approx(expected)
    loss = F.cross_entropy(F.one_hot(guess, 10).float(), split.labels)
    assert made.loss == pytest.approx(float(loss), rel=1e-5)


def test_a_class_without_examples_has_no_accuracy():
    runtime = start_runtime("cpu", "fp32", 1, False, 0)
    split = dataclasses.replace(images_of(20), labels=torch.zeros(20, dtype=torch.int64))
    made = evaluate(Plain(), split, Normalization.of(split.images), 10, runtime)
    assert made.per_class_accuracy[1:] == [None] * 9
    assert math.isfinite(made.loss)
