"""Parameter counts, output shapes and shortcuts of the networks."""

import pytest
import torch

import models
from engine.training.build import MODELS

PUBLISHED = {
    "resnet8": 75_290,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "resnet50": 23_520_842,
    "resnet50_imagenet_stem": 23_528_522,
}


@pytest.mark.parametrize("name", MODELS)
def test_parameter_counts_are_the_published_ones(name):
    with torch.device("meta"):
        model = MODELS[name]()
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "resnet50_imagenet_stem"])
def test_output_is_one_logit_per_class(name):
    model = MODELS[name](num_classes=7).eval()
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_shortcut_takes_every_second_pixel_and_pads_channels_with_zeros():
    block = models.resnet8().layer2[0].eval()
    with torch.no_grad():
        block.conv2.weight.zero_()  # the block is only its shortcut
    x = torch.rand(1, 16, 8, 8)
    out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any() and not out[:, 24:].any()
