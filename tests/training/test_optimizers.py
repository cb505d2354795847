"""What every optimizer of the configuration must do; and the steps of AdamW and LAMB."""

import csv

import pytest
import torch

from engine.config.optimizers import TITLES
from engine.training.build import OPTIMIZERS, build_optimizer
from engine.training.cuda_graph import make_capturable, plain_state
from engine.training.muon import MuonAdamW
from engine.training.plan import build_scheduler, make_plan
from lars import LAMB
from lars.reference import lamb_step
from tests.helpers.runs import assert_same, config, only_run, state_of
from tests.helpers.training import make_plain, trained

every_optimizer = pytest.mark.parametrize("name", TITLES)


def built(name, *overrides, model=None):
    made = config(f"optimizer={name}", "batch=10", "epochs=4", *overrides)
    model = torch.nn.Linear(3, 2).double() if model is None else model
    plan = make_plan(made, 40)
    optimizer = build_optimizer(made.optimizer, made.clip, model, plan.optimizer_lr)
    return made, model, optimizer, build_scheduler(made.scheduler, plan, optimizer)


def test_every_optimizer_has_a_builder_and_a_title():
    assert list(OPTIMIZERS) == list(TITLES)
    assert TITLES["sgd"] == "SGD" and TITLES["adamw"] == "AdamW"


@every_optimizer
def test_the_memory_estimate_counts_its_state(name):
    made, model, optimizer, _ = built(name)
    model(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
    optimizer.step()
    for parameter in model.parameters():
        state = optimizer.state[parameter].values()
        kept = [v for v in state if torch.is_tensor(v) and v.shape == parameter.shape]
        assert len(kept) == made.optimizer.state_tensors


@every_optimizer
def test_biases_have_a_rate_and_a_decay_of_their_own(name):
    _, _, optimizer, _ = built(name, "optimizer.bias_lr_scale=0.25", "optimizer.decay=weights")
    weights, biases = optimizer.param_groups
    assert biases["lr"] == pytest.approx(0.25 * weights["lr"])
    assert weights["weight_decay"] > 0 and biases["weight_decay"] == 0


@every_optimizer
def test_micro_batches_give_the_step_of_one_batch(name):
    whole, _ = trained(make_plain(), f"optimizer={name}", dtype=torch.float64)
    parts, _ = trained(make_plain(), f"optimizer={name}", "micro_batch=7", dtype=torch.float64)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        # An update of Adam's divides by the gradient's root mean square, which may be tiny.
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@every_optimizer
def test_a_checkpoint_holds_no_trace_of_a_graph(name):
    _, _, optimizer, _ = built(name)
    before = optimizer.state_dict()["param_groups"]
    make_capturable(optimizer, torch.device("cpu"))
    assert all(torch.is_tensor(group["lr"]) for group in optimizer.param_groups)
    for group, expected in zip(plain_state(optimizer)["param_groups"], before, strict=True):
        # A graph reads the rate as an fp32 tensor.
        assert group.pop("lr") == pytest.approx(expected.pop("lr"), rel=1e-6)
        assert group == expected


@pytest.mark.drawn
def test_a_sweep_of_every_optimizer_ends_in_a_table_and_plots(small, workplace, command):
    names = ",".join(TITLES)
    outcome = command("train.py", "-m", *small, f"optimizer={names}", "batch=16,32", "epochs=1")
    assert outcome.status == 0, outcome.err
    folder = workplace / "results" / "default"
    with open(folder / "table.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["optimizer"] for row in rows} == set(TITLES)
    assert all(float(row["accuracy_mean"]) >= 0 for row in rows)
    table = (folder / "table.md").read_text(encoding="utf-8")
    assert all(f"## {title}" in table for title in TITLES.values())
    assert (folder / "accuracy.png").stat().st_size > 1000


def steps_of(model, optimizer, scheduler):
    """Take 15 steps; before each, yield its number, its rate and random gradients by name."""
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 16):
        gradients = {
            name: torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            for name, parameter in model.named_parameters()
        }
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name].clone()
        yield step, float(optimizer.param_groups[0]["lr"]), gradients
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("decay", ["weights", "all"])
def test_adamw_follows_the_formulas(decay):
    """Loshchilov and Hutter 2019 (arXiv 1711.05101), algorithm 2, in float64 over 20 steps."""
    beta1, beta2, eps, weight_decay = 0.8, 0.95, 1e-3, 0.1
    made, model, optimizer, scheduler = built(
        "adamw", f"optimizer.beta1={beta1}", f"optimizer.beta2={beta2}", f"optimizer.eps={eps}",
        f"optimizer.weight_decay={weight_decay}", f"optimizer.decay={decay}",
        "optimizer.bias_lr_scale=0.5", "scheduler.warmup_epochs=1", "optimizer.base_lr=0.01",
    )  # fmt: skip
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = {name: torch.zeros_like(w) for name, w in expected.items()}
    second = {name: torch.zeros_like(w) for name, w in expected.items()}
    for step, rate, gradients in steps_of(model, optimizer, scheduler):
        for name, gradient in gradients.items():
            lr = rate * (0.5 if name == "bias" else 1.0)
            own_decay = weight_decay if name == "weight" or decay == "all" else 0.0
            first[name] = beta1 * first[name] + (1 - beta1) * gradient
            second[name] = beta2 * second[name] + (1 - beta2) * gradient.square()
            average = first[name] / (1 - beta1**step)
            root = (second[name] / (1 - beta2**step)).sqrt()
            expected[name] = expected[name] * (1 - lr * own_decay) - lr * average / (root + eps)
    assert made.optimizer.name == "adamw"
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("adapt", ["weights", "all"])
def test_lamb_takes_its_keys(adapt):
    """The steps are those of the paper's rule: see tests/lars/test_lamb.py for its details."""
    made, model, optimizer, scheduler = built(
        "lamb", "optimizer.beta1=0.8", "optimizer.beta2=0.95", "optimizer.eps=1e-3",
        "optimizer.weight_decay=0.1", f"optimizer.adapt={adapt}", "optimizer.bias_lr_scale=0.5",
    )  # fmt: skip
    assert isinstance(optimizer, LAMB) and made.optimizer.title == "LAMB"
    rows = {
        name: [p.detach().clone(), torch.zeros_like(p), torch.zeros_like(p)]
        for name, p in model.named_parameters()
    }
    for step, rate, gradients in steps_of(model, optimizer, scheduler):
        for name, gradient in gradients.items():
            is_weight = name == "weight"
            rows[name] = lamb_step(
                rows[name][0].detach(), gradient, *rows[name][1:], step,
                rate if is_weight else 0.5 * rate, beta1=0.8, beta2=0.95, eps=1e-3,
                weight_decay=0.1 if is_weight else 0.0, adapt=is_weight or adapt == "all",
            )  # fmt: skip
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), rows[name][0].detach(), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("name", "optimizer"), [("adamw", torch.optim.AdamW), ("lamb", LAMB), ("muon", MuonAdamW)]
)
def test_an_optimizer_that_counts_steps_resumes_to_the_bit_in_mid_epoch(
    name, optimizer, small, workplace, command, monkeypatch
):
    run = [*small, f"optimizer={name}", "scheduler=tvlars", "epochs=3"]
    run += ["deterministic=true", "clip.norm=1"]
    assert command("train.py", *run).status == 0
    directory = only_run(workplace)
    expected = state_of(directory)[0]
    directory.rename(workplace / "left-alone")
    step, calls = optimizer.step, []

    def stop(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(self, *arguments, **options)

    monkeypatch.setattr(optimizer, "step", stop)
    assert command("train.py", *run).status == 130
    monkeypatch.setattr(optimizer, "step", step)
    assert command("train.py", *run).status == 0
    got = state_of(directory)[0]
    for key in ("model", "optimizer", "scheduler", "epoch"):
        assert_same(got[key], expected[key])
