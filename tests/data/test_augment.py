"""Normalization, crops and flips."""

import pytest
import torch

from engine.data.augment import Normalization, TrainingImages
from engine.data.dataset import Split


def numbered(count):
    """Return images whose pixels all equal the index of the image."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 32, 32, 3)
    return Split(images.contiguous(), torch.arange(count))


def test_normalization_is_exact():
    images = torch.randint(0, 256, (50, 32, 32, 3), dtype=torch.uint8)
    made = Normalization.of(images)
    pixels = images.double().view(-1, 3) / 255
    assert made.mean == pytest.approx(pixels.mean(0).tolist(), abs=1e-12)
    assert made.std == pytest.approx(pixels.std(0, unbiased=False).tolist(), abs=1e-12)
    out = made.apply(images)
    assert out.shape == (50, 3, 32, 32)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert out.mean(dim=(0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-4)
    assert out.std(dim=(0, 2, 3)).tolist() == pytest.approx([1, 1, 1], abs=1e-3)


def test_crops_and_flips_equal_a_plain_implementation():
    split = Split(torch.randint(0, 256, (40, 32, 32, 3), dtype=torch.uint8), torch.arange(40) % 10)
    identity = Normalization((0.0, 0.0, 0.0), (1 / 255,) * 3)
    training_images = TrainingImages(split, identity, torch.device("cpu"))
    draws = training_images.draw_epoch(seed=3, epoch=1)
    index = draws.order[:25]
    batch, labels = training_images.load(index, draws)
    for place, example in enumerate(index.tolist()):
        padded = torch.zeros(40, 40, 3)
        padded[4:36, 4:36] = split.images[example]
        row, column = draws.crops[:, example].tolist()
        expected = padded[row : row + 32, column : column + 32]
        if draws.flips[example]:
            expected = expected.flip(1)
        assert torch.allclose(batch[place].permute(1, 2, 0), expected, atol=1e-4)
        assert labels[place] == split.labels[example]


def test_augmentation_depends_only_on_seed_epoch_and_example():
    split = Split(torch.randint(0, 256, (30, 32, 32, 3), dtype=torch.uint8), torch.arange(30))
    training_images = TrainingImages(split, Normalization.of(split.images), torch.device("cpu"))
    torch.manual_seed(1)
    draws = training_images.draw_epoch(0, 5)
    whole, _ = training_images.load(draws.order, draws)
    torch.manual_seed(2)
    torch.rand(100)
    again = training_images.draw_epoch(0, 5)
    parts = torch.cat([training_images.load(part, again)[0] for part in again.order.split(7)])
    assert torch.equal(whole, parts)
    assert sorted(draws.order.tolist()) == list(range(30))
    for seed, epoch in ((1, 5), (0, 6)):
        assert not torch.equal(training_images.draw_epoch(seed, epoch).order, draws.order)


def test_crops_and_flips_are_uniform():
    training_images = TrainingImages(
        numbered(250), Normalization((0.5,) * 3, (0.25,) * 3), torch.device("cpu")
    )
    draws = [training_images.draw_epoch(0, epoch) for epoch in range(40)]
    counts = torch.cat([d.crops.flatten() for d in draws]).bincount(minlength=9) / 20_000
    assert counts.tolist() == pytest.approx([1 / 9] * 9, abs=0.01)
    flips = torch.cat([d.flips for d in draws]).float().mean()
    assert float(flips) == pytest.approx(0.5, abs=0.02)
