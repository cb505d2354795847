"""LARS with a base: LARSWrapper around SGD, AdamW, LAMB or Muon."""

import dataclasses
import json

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

import engine.training.muon
from engine.config.compose import values_of
from engine.config.optimizers import SHARED
from engine.config.wrapped import stepper
from engine.training.build import build_model, build_optimizer, state_bytes
from engine.training.muon import MuonAdamW
from lars import LAMB, PRESETS, LARSWrapper
from tests.helpers import files_below
from tests.helpers.runs import config, rows_of

BASES = {"sgd": SGD, "adamw": AdamW, "lamb": LAMB, "muon": MuonAdamW}
every_base = pytest.mark.parametrize("base", BASES)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 6, 3)
        self.hidden = nn.Conv2d(6, 4, 3)
        self.last = nn.Linear(4, 10)


def wrapped(base, *overrides):
    return config("optimizer=lars", f"optimizer.base={base}", *overrides)


def built(made, model, lr=0.05):
    return build_optimizer(made.optimizer, made.clip, model, lr)


@every_base
@pytest.mark.parametrize("adapt", ["weights", "all"])
def test_the_base_steps_with_gradients_times_their_trust_ratios(base, adapt):
    """The ratio of the paper, eta |w| / (|g| + decay |w|), where the decay is SGD's only."""
    decay = 0.1
    changes = [f"optimizer.weight_decay={decay}", "optimizer.decay=weights"]
    made = wrapped(base, *changes, f"optimizer.adapt={adapt}", "optimizer.trust_coefficient=0.02")
    plain = config(f"optimizer={base}", *changes)
    if base == "sgd":
        # The wrapper adds the decay to the gradient, before it is scaled.
        plain = config("optimizer=sgd", "optimizer.weight_decay=0")
    model, expected = Network().double(), Network().double()
    optimizer, reference = built(made, model), built(plain, expected)
    assert isinstance(optimizer, LARSWrapper) and isinstance(optimizer.optimizer, BASES[base])
    generator = torch.Generator().manual_seed(1)
    for _ in range(8):
        pairs = zip(model.named_parameters(), expected.parameters(), strict=True)
        for (name, weight), twin in pairs:
            grad = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight.grad, twin.grad = grad, grad.clone()
            is_weight = name.endswith("weight")
            own = decay if is_weight and base == "sgd" else 0.0
            ratio = 1.0
            if is_weight or adapt == "all":
                ratio = 0.02 * twin.detach().norm() / (grad.norm() + own * twin.detach().norm())
            twin.grad = ratio * (grad + own * twin.detach())
        optimizer.step()
        reference.step()
        assert torch.equal(weight.grad, grad), "the gradient is as before"
    for weight, twin in zip(model.parameters(), expected.parameters(), strict=True):
        # Newton-Schulz rounds to bfloat16, which may differ after other rounding in float64.
        close = 1e-3 if base == "muon" else 1e-9
        torch.testing.assert_close(weight, twin, rtol=close, atol=close * 0.1)


def test_lambs_own_option_adapt_stays_lambs():
    made = wrapped("lamb", "optimizer.adapt=all")
    weights, biases = built(made, Network()).param_groups
    assert weights["lars_adapt"] and biases["lars_adapt"]
    assert weights["adapt"] and not biases["adapt"]


@every_base
def test_shared_keys_have_the_bases_values_and_others_come_from_its_file(base):
    made, values = wrapped(base).optimizer, values_of("optimizer", base)
    assert {name: getattr(made, name) for name in SHARED} == {name: values[name] for name in SHARED}
    assert made.momentum is None and made.nesterov is None and made.dampening is None
    inner = stepper(made)
    assert {key: getattr(inner, key) for key in values} == values
    given = ["optimizer.base_lr=0.5", "optimizer.lr_scaling=none", "optimizer.decay=all"]
    made = wrapped(base, *given).optimizer
    assert (made.base_lr, made.lr_scaling, made.decay) == (0.5, "none", "all")
    assert (stepper(made).base_lr, stepper(made).weight_decay) == (0.5, values["weight_decay"])


def test_without_a_base_lars_has_its_own_values_and_name():
    assert config("optimizer=lars") == config("optimizer=lars", "optimizer.base=none")
    made = config("optimizer=lars").optimizer
    assert (made.base_lr, made.momentum, made.bias_lr_scale) == (4.0, 0.9, 0.1)
    equal = dataclasses.replace(made)
    assert stepper(made) is made and stepper(equal) is equal
    assert "optimizer.base" not in config("optimizer=lars").choices()


def test_an_experiments_values_for_lars_are_not_those_of_lars_with_a_base():
    made = wrapped("adamw", "+experiment=attempt5", "batch=4096").optimizer
    assert (made.base_lr, made.momentum, made.bias_lr_scale) == (1e-3, None, 1.0)
    assert config("+experiment=attempt5", "optimizer=lars", "batch=4096").optimizer.momentum == 0.95


def test_an_experiment_lists_values_for_a_base_by_its_label(tmp_path, small, workplace, command):
    file = tmp_path / "own" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    listed = '"${by_optimizer:{lars: 3.0, lars-adamw: ${by_batch:{32: 0.25}}}}"'
    file.write_text(f"# @package _global_\noptimizer:\n  base_lr: {listed}\n")
    run = [*small, "+experiment=mine", "optimizer=lars", "optimizer.lr_scaling=none", "plan=true"]
    for base, rate in (("adamw", "0.25"), ("none", "3"), ("muon", "0.02")):
        flags = ["--config-dir", file.parent.parent]
        outcome = command("train.py", *flags, *run, f"optimizer.base={base}")
        assert outcome.status == 0 and f"peak {rate} = optimizer.base_lr" in outcome.out, outcome


@pytest.mark.parametrize("variant", ["timm", "larc"])
def test_the_variant_gives_the_trust_options_that_are_null(variant):
    made = wrapped("adamw", f"optimizer.variant={variant}", "optimizer.eps=0.5")
    group = built(made, Network()).param_groups[0]
    preset = PRESETS[variant]
    assert group["trust_eps"] == 0.5 and group["eps"] == 1e-8
    names = ("trust_coefficient", "trust_clip", "zero_norm", "trust_norm", "trust_weight_decay")
    assert {name: group[name] for name in names} == {name: preset[name] for name in names}


@every_base
def test_the_memory_estimate_is_the_size_of_the_bases_state_and_of_copied_gradients(base):
    made = wrapped(base, "model=resnet8")
    model = build_model(made.model, 10)
    optimizer = built(made, model)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    kept = sum(v.nbytes for v in states if torch.is_tensor(v) and v.ndim)
    copied = sum(weight.grad.nbytes for weight in model.parameters())
    assert state_bytes(made.optimizer, model) == kept + copied


@pytest.mark.filterwarnings("error")
@every_base
def test_a_base_gives_no_warning(base):
    model = Network()
    optimizer = built(wrapped(base), model)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()


@pytest.mark.drawn
def test_a_sweep_over_bases_names_each_in_tables_and_plots(small, workplace, command):
    sweep = [*small, "optimizer=lars", "optimizer.base=none,adamw", "batch=16,32", "epochs=1"]
    outcome = command("train.py", "-m", *sweep)
    assert outcome.status == 0, outcome.err
    folder = workplace / "results" / "default"
    rows = rows_of(folder / "table.csv")
    labels = ["lars", "lars", "lars-adamw", "lars-adamw"]
    assert [row["optimizer"] for row in rows] == labels
    assert all(row["settings"] == "" and row["runs"] == "1" for row in rows)
    table = (folder / "table.md").read_text(encoding="utf-8")
    assert "\n## LARS\n" in table and "\n## LARS(AdamW)\n" in table
    assert (folder / "accuracy.png").stat().st_size > 1000
    runs = sorted(path.name for path in (workplace / "results" / "runs" / "default").iterdir())
    assert sum("-lars-adamw-b" in name for name in runs) == 2 and len(runs) == 4
    summaries = [
        json.loads((path / "summary.json").read_text())
        for path in (workplace / "results" / "runs" / "default").iterdir()
    ]
    assert {summary["optimizer"] for summary in summaries} == {"lars", "lars-adamw"}


REPLACED = "must be null with optimizer.base=adamw, which replaces it"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["optimizer.base=lars"],
            "optimizer.base=lars: must be one of none, sgd, adamw",
        ),
        (["optimizer.base=nowhere"], "optimizer.base=nowhere: must be one of none, sgd"),
        (["optimizer.base=null"], "optimizer.base=null: must be one of none, sgd"),
        (["optimizer.momentum=0.9"], f"optimizer.momentum=0.9: {REPLACED}"),
        (["optimizer.nesterov=false"], f"optimizer.nesterov=false: {REPLACED}"),
        (["optimizer.dampening=0"], f"optimizer.dampening=0: {REPLACED}"),
        (["optimizer.momentum_scaling=trust"], f"optimizer.momentum_scaling=trust: {REPLACED}"),
        (
            ["optimizer.base=none", "optimizer.momentum=null"],
            "optimizer.momentum=null: must not",
        ),
        (
            ["optimizer.base=muon", "optimizer.base_lr=1e-43"],
            "optimizer.inner_lr=0.0003: must",
        ),
    ],
)
def test_mistakes_are_one_line(small, workplace, command, overrides, message):
    base = [] if "optimizer.base" in overrides[0] else ["optimizer.base=adamw"]
    outcome = command("train.py", *small, "optimizer=lars", *base, *overrides)
    assert outcome.status == 2 and outcome.err.count("\n") == 1, outcome.err
    assert outcome.err.startswith(f"error: {message}") and not files_below(workplace)


def test_torch_without_muon_names_the_key(small, workplace, command, monkeypatch):
    monkeypatch.setattr(engine.training.muon, "HAS_MUON", False)
    outcome = command("train.py", *small, "optimizer=lars", "optimizer.base=muon")
    assert outcome.status == 2 and not files_below(workplace)
    assert outcome.err.startswith("error: optimizer.base=muon: needs torch.optim.Muon of torch 2.9")
