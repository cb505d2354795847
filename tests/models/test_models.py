import copy

import pytest
import torch
from torch import nn

import models
from engine.config.schema import ModelConfig
from engine.training.build import MODELS, build_model, initialize_he
from models.batch_norm import BatchNorm2d, batch_norms, commit_batch_statistics, group_sizes

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
def test_output_is_one_logit_a_class(name):
    model = MODELS[name](num_classes=7).eval()
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_shortcut_takes_every_second_pixel_and_pads_channels_with_zeros():
    block = models.resnet8().layer2[0].eval()
    with torch.no_grad():
        block.conv2.weight.zero_()  # only the shortcut is left
    x = torch.rand(1, 16, 8, 8)
    out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any() and not out[:, 24:].any()


def test_he_draws_convolutions_and_linear_within_their_bounds():
    torch.manual_seed(0)
    model = build_model(ModelConfig("resnet8", "he", None), 10)
    weight = model.layer3[0].conv2.weight  # fan-in 64 * 9
    bound = (6 / (64 * 9)) ** 0.5
    assert 0.98 * bound < weight.abs().max() <= bound
    assert model.fc.weight.abs().max() <= (6 / 64) ** 0.5
    before = copy.deepcopy(model.bn1.state_dict())
    initialize_he(model)
    assert all(torch.equal(before[key], value) for key, value in model.bn1.state_dict().items())


def test_group_sizes_join_a_short_last_group_to_its_neighbour():
    assert group_sizes(256, 64) == [64] * 4
    assert group_sizes(250, 64) == [64, 64, 122]
    assert group_sizes(100, 64) == [100]
    assert group_sizes(100, None) == [100]


def moved_by_torch(x, weight, bias, upstream, sizes):
    """One torch layer a group, from fresh buffers: output, gradients, buffers averaged."""
    x = x.detach().clone().requires_grad_()
    layers, outputs = [], []
    for group in x.split(sizes):
        layer = nn.BatchNorm2d(x.shape[1]).to(x.dtype)
        layer.weight, layer.bias = weight, bias
        outputs.append(layer(group))
        layers.append(layer)
    out = torch.cat(outputs)
    gradients = torch.autograd.grad(out, (x, weight, bias), upstream)
    buffers = [
        torch.stack([getattr(layer, name) for layer in layers]).mean(0)
        for name in ("running_mean", "running_var")
    ]
    return [out, *gradients, *buffers]


@pytest.mark.parametrize("loop_on", [("cpu",), ()], ids=["loop", "together"])
@pytest.mark.parametrize(("ghost", "count"), [(None, 20), (8, 16), (8, 24), (8, 30), (3, 20)])
def test_batch_norm_equals_one_torch_layer_a_group(ghost, count, loop_on, monkeypatch):
    monkeypatch.setattr(BatchNorm2d, "loop_on", loop_on)
    torch.manual_seed(0)
    x = (torch.randn(count, 5, 4, 3, dtype=torch.float64) * 3 + 1).requires_grad_()
    upstream = torch.randn_like(x)
    layer = BatchNorm2d(5, ghost).double()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    sizes = group_sizes(count, ghost)
    expected = moved_by_torch(x, layer.weight, layer.bias, upstream, sizes)
    out = layer(x.to(memory_format=torch.channels_last))
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer.running_mean, torch.zeros(5))  # nothing moves before the step
    gradients = torch.autograd.grad(out, (x, layer.weight, layer.bias), upstream)
    assert (layer.sums[2] == len(sizes)).all()
    commit_batch_statistics(layer)
    for name, made, wanted in zip(
        ("output", "input's", "weight's", "bias's", "mean", "variance"),
        [out, *gradients, layer.running_mean, layer.running_var],
        expected,
        strict=True,
    ):
        assert torch.allclose(made, wanted, rtol=1e-9, atol=1e-9), name


def test_running_statistics_move_once_a_step_by_the_mean_over_micro_batches():
    x = torch.randn(16, 3, 2, 2)
    layer, reference = BatchNorm2d(3), nn.BatchNorm2d(3)
    for part in x.split(8):
        layer(part)
    commit_batch_statistics(layer)
    mean = torch.stack([part.mean(dim=(0, 2, 3)) for part in x.split(8)]).mean(0)
    assert torch.allclose(layer.running_mean, 0.1 * mean, atol=1e-6)
    assert layer.num_batches_tracked == 1
    assert layer.state_dict().keys() == reference.state_dict().keys()
    before = layer.running_mean.clone()
    commit_batch_statistics(layer)  # nothing is pending
    assert torch.equal(layer.running_mean, before)


@pytest.mark.parametrize("ghost", [None, 2])
def test_a_layer_is_compiled_once_however_many_passes_a_step_has(ghost):
    compiled = []

    def backend(module, inputs):
        compiled.append(module)
        return module.forward

    layer, plain = BatchNorm2d(3, ghost), BatchNorm2d(3, ghost)
    called = torch.compile(layer, backend=backend, dynamic=False)
    for count in (2, 12):
        for part in torch.randn(count, 4, 3, 2, 2):
            called(part)
            plain(part)
        commit_batch_statistics(layer)
        commit_batch_statistics(plain)
    assert len(compiled) == 1
    torch.testing.assert_close(layer.state_dict(), plain.state_dict())
    assert layer.num_batches_tracked == 2


def test_a_model_has_the_momentum_that_is_asked_for():
    made = ModelConfig("resnet8", "default", None, bn_momentum=0.75)
    model, x = build_model(made, 10), torch.randn(4, 3, 8, 8)
    assert {layer.momentum for layer in batch_norms(model)} == {0.75}
    seen = []
    batch_norms(model)[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(x)
    commit_batch_statistics(model)
    moved = batch_norms(model)[0].running_mean
    assert torch.allclose(moved, 0.75 * seen[0].mean(dim=(0, 2, 3)), atol=1e-6)


def test_evaluation_is_torch_batch_norm():
    layer, reference = BatchNorm2d(3, 4), nn.BatchNorm2d(3)
    layer(torch.randn(8, 3, 2, 2))
    commit_batch_statistics(layer)
    reference.load_state_dict(layer.state_dict())
    x = torch.randn(5, 3, 2, 2)
    assert torch.equal(layer.eval()(x), reference.eval()(x))
