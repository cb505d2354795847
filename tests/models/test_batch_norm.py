"""Batch norm over ghost groups and micro-batches, compared with torch's layer."""

import pytest
import torch
from torch import nn

from engine.config.schema import ModelConfig
from engine.training.build import build_model
from models.batch_norm import BatchNorm2d, batch_norms, commit_batch_statistics, group_sizes


def test_group_sizes_merge_a_short_last_group_into_the_one_before():
    assert group_sizes(256, 64) == [64] * 4
    assert group_sizes(250, 64) == [64, 64, 122]
    assert group_sizes(100, 64) == [100]
    assert group_sizes(100, None) == [100]


def normalized_by_torch(x, weight, bias, upstream, sizes):
    """Return output, gradients and mean buffers of one new nn.BatchNorm2d per group."""
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
def test_batch_norm_equals_one_torch_layer_per_group(ghost, count, loop_on, monkeypatch):
    monkeypatch.setattr(BatchNorm2d, "loop_on", loop_on)
    torch.manual_seed(0)
    x = (torch.randn(count, 5, 4, 3, dtype=torch.float64) * 3 + 1).requires_grad_()
    upstream = torch.randn_like(x)
    layer = BatchNorm2d(5, ghost).double()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    sizes = group_sizes(count, ghost)
    expected = normalized_by_torch(x, layer.weight, layer.bias, upstream, sizes)
    out = layer(x.to(memory_format=torch.channels_last))
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer.running_mean, torch.zeros(5))  # unchanged before the commit
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


def test_running_statistics_are_updated_once_per_step_by_the_mean_over_micro_batches():
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
    commit_batch_statistics(layer)  # no forward pass since the last commit
    assert torch.equal(layer.running_mean, before)


@pytest.mark.parametrize("ghost", [None, 2])
def test_a_layer_is_compiled_once_for_any_number_of_passes_per_step(ghost):
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


def test_a_model_has_the_configured_batch_norm_momentum():
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
