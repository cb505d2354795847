"""Models and optimizers match their configuration."""

import copy

import pytest
import torch

from engine.config.schema import ModelConfig
from engine.training.build import build_model, build_optimizer, initialize_he
from engine.training.plan import build_scheduler, make_plan
from tests.helpers.runs import config


def test_a_variant_sets_null_options_and_keeps_given_ones():
    made = config("optimizer=lars", "optimizer.variant=larc", "optimizer.eps=0.5")
    optimizer = build_optimizer(made.optimizer, made.clip, torch.nn.Linear(2, 2), 0.1)
    group = optimizer.param_groups[0]
    assert (group["trust_coefficient"], group["trust_clip"], group["eps"]) == (0.02, True, 0.5)
    assert [g["adapt"] for g in optimizer.param_groups] == [True, False]


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_biases_have_a_separate_learning_rate(optimizer):
    made = config(f"optimizer={optimizer}", "optimizer.bias_lr_scale=0.25", "batch=10",
                  "optimizer.weight_decay=0", "epochs=4", "scheduler.warmup_epochs=0",
                  "optimizer.lr_scaling=none", "optimizer.base_lr=2")  # fmt: skip
    model = torch.nn.Linear(3, 2).double()
    plan = make_plan(made, 10)
    stepped = build_optimizer(made.optimizer, made.clip, model, plan.optimizer_lr)
    build_scheduler(made.scheduler, plan, stepped)
    before = model.bias.detach().clone()
    model(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
    stepped.step()
    assert torch.allclose(model.bias, before - 0.5 * model.bias.grad, rtol=1e-12)


def test_he_initialization_draws_weights_within_their_bounds():
    torch.manual_seed(0)
    model = build_model(ModelConfig("resnet8", "he", None), 10)
    weight = model.layer3[0].conv2.weight  # fan-in 64 * 9
    bound = (6 / (64 * 9)) ** 0.5
    assert 0.98 * bound < weight.abs().max() <= bound
    assert model.fc.weight.abs().max() <= (6 / 64) ** 0.5
    before = copy.deepcopy(model.bn1.state_dict())
    initialize_he(model)
    assert all(torch.equal(before[key], value) for key, value in model.bn1.state_dict().items())


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "resnet50"])
def test_zero_init_residual_zeroes_only_the_last_norm_of_each_block(name):
    def make(zero):
        torch.manual_seed(0)
        return build_model(ModelConfig(name, "default", None, zero), 10).state_dict()

    plain, zero = make(False), make(True)
    last = "bn3.weight" if name == "resnet50" else "bn2.weight"
    blocks = {"resnet8": 3, "resnet18": 8, "resnet50": 16}[name]
    assert sum(key.endswith(last) for key in zero) == blocks
    for key, value in zero.items():
        expected = torch.zeros_like(value) if key.endswith(last) else plain[key]
        assert torch.equal(value, expected), key


def test_a_block_with_zero_init_residual_starts_as_its_shortcut():
    model = build_model(ModelConfig("resnet8", "he", None, True), 10).eval()
    x = torch.rand(2, 16, 8, 8)
    assert torch.equal(model.layer1[0](x), x)
