"""The study's attempts: the rates of every row as literals, computed by hand from its text."""

import itertools
import json

import numpy as np
import pytest
from omegaconf import OmegaConf

from engine.config.compose import plain_config
from engine.errors import UserError
from engine.training.build import build_optimizer
from engine.training.plan import make_plan
from models import resnet8
from tests.helpers import PROJECT
from tests.helpers.runs import config

SEARCHED = PROJECT / "results" / "tune-resnet8" / "runs.jsonl"
BATCHES = (128, 256, 512, 1024, 2048, 4096, 8192)
# Initial, peak and final learning rate, in one row per batch.
RATES = {
    "attempt1": (
        (0.05, 0.1, 1e-5), (0.05, 0.2, 1e-5), (0.05, 0.4, 1e-5), (0.05, 0.8, 1e-5),
        (0.05, 1.6, 1e-5), (0.05, 3.2, 1e-5), (0.05, 6.4, 1e-5),
    ),
    "attempt2": (
        (0.05, 0.1, 1e-5), (0.1, 0.2, 2e-5), (0.2, 0.4, 4e-5), (0.4, 0.8, 8e-5),
        (0.8, 1.6, 1.6e-4), (1.6, 3.2, 3.2e-4), (3.2, 6.4, 6.4e-4),
    ),
    "attempt3": (
        (0.05, 0.05, 5e-5), (0.1, 0.1, 1e-4), (0.2, 0.2, 2e-4), (0.4, 0.4, 4e-4),
        (0.8, 0.8, 8e-4), (1.6, 1.6, 1.6e-3), (3.2, 3.2, 3.2e-3),
    ),
    "attempt4": (
        (0.05, 0.05, 5e-5), (0.1, 0.1, 1e-4), (0.2, 0.2, 2e-4), (0.4, 0.4, 4e-4),
        (0.8, 0.8, 8e-4), (1.6, 1.6, 1.6e-3), (3.2, 3.2, 3.2e-3),
    ),
}  # fmt: skip
ROWS = [
    (attempt, optimizer, batch, rates)
    for attempt, optimizer in itertools.product(RATES, ("sgd", "lars"))
    for batch, rates in zip(BATCHES, RATES[attempt], strict=True)
]


def attempt(name, *overrides):
    return config(f"+experiment={name}", *overrides)


@pytest.mark.parametrize(
    ("name", "optimizer", "batch", "rates"), ROWS, ids=lambda value: str(value)
)
def test_every_row_of_the_study_has_its_rates(name, optimizer, batch, rates):
    made = attempt(name, f"optimizer={optimizer}", f"batch={batch}")
    plan = make_plan(made, 50_000)
    assert (plan.base_lr, plan.peak_lr, plan.final_lr) == pytest.approx(rates, rel=1e-12)
    warmup_epochs = 5 if name in ("attempt1", "attempt2") else 0
    assert (plan.warmup_steps, plan.epochs) == (warmup_epochs * plan.steps_per_epoch, 200)
    weight_decay = {"sgd": 5e-4, "lars": 5e-3}[optimizer]
    assert (made.optimizer.momentum, made.optimizer.weight_decay) == (0.9, weight_decay)
    assert made.optimizer.decay == "all" and made.group == name
    if optimizer == "lars":
        assert (made.optimizer.adapt, made.optimizer.trust_coefficient) == ("all", 0.1)
        assert made.optimizer.variant == "paper"
    assert made.scheduler.name == ("polynomial" if warmup_epochs else "multistep")
    if warmup_epochs:
        assert made.scheduler.power == 2
    assert made.model.init == ("he" if name in ("attempt2", "attempt4") else "default")


@pytest.mark.parametrize("name", ["attempt3", "attempt4"])
def test_the_step_schedule_drops_after_every_50_epochs(name):
    made = attempt(name, "batch=128")
    assert (made.scheduler.step_size, made.scheduler.step_fraction * made.epochs) == (None, 50)
    assert made.scheduler.gamma == 0.1


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("variant", [None, "pytorch-lars", "pytorch-lars-v1"])
def test_an_attempt_uses_the_papers_rule_or_the_studys_faulty_one(name, variant):
    chosen = [f"optimizer.variant={variant}"] if variant else []
    made = attempt(name, "optimizer=lars", "batch=1024", *chosen)
    optimizer = build_optimizer(made.optimizer, made.clip, resnet8(), 0.8)
    # In the trust ratio's denominator the study's code uses momentum in place of weight decay.
    rule = {
        None: ("weight_decay", "classic", "one"),
        "pytorch-lars": ("momentum", "none", "raw"),
        "pytorch-lars-v1": ("momentum", "classic", "raw"),
    }[variant]
    for group in optimizer.param_groups:
        options = ("trust_weight_decay", "momentum_scaling", "zero_norm")
        assert tuple(group[option] for option in options) == rule
        assert (group["trust_norm"], group["trust_clip"], group["eps"]) == ("separate", False, 0)
        assert (group["trust_coefficient"], group["weight_decay"]) == (0.1, 5e-3)
        assert (group["momentum"], group["adapt"], group["lr"]) == (0.9, True, 0.8)


def test_fewer_epochs_shrink_warmup_and_steps_in_proportion():
    # 20 epochs of 391 steps: warm-up over half an epoch, and the rate drops after every 5 epochs.
    plan = make_plan(attempt("attempt2", "epochs=20"), 50_000)
    assert (plan.warmup_steps, plan.total_steps) == (196, 7820)
    assert (plan.peak_lr, plan.final_lr) == (0.1, pytest.approx(1e-5))
    made = attempt("attempt3", "epochs=20")
    assert made.scheduler.step_fraction * made.epochs == 5
    assert make_plan(made, 50_000).final_lr == pytest.approx(5e-5)


def test_the_command_line_overrides_an_attempt():
    made = attempt("attempt2", "optimizer=lars", "optimizer.weight_decay=0", "batch=1024",
                   "scheduler.min_lr=0", "model.init=default", "group=mine",
                   "optimizer.trust_coefficient=0.001")  # fmt: skip
    assert (made.optimizer.weight_decay, made.scheduler.min_lr) == (0, 0)
    assert (made.model.init, made.group) == ("default", "mine")
    assert made.optimizer.trust_coefficient == 0.001 and made.optimizer.base_lr == 0.4


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_the_ladder_has_the_searched_rates_and_interpolates_between_them(optimizer):
    trials = [json.loads(line) for line in open(SEARCHED)]
    made = {
        batch: config("+experiment=ladder", f"optimizer={optimizer}", f"batch={batch}").optimizer
        for batch in BATCHES
    }
    tuned = {}
    for batch in (128, 1024, 4096, 8192):
        cell = [t for t in trials if (t["optimizer"], t["batch"]) == (optimizer, batch)]
        assert len(cell) == 8
        best = max(cell, key=lambda t: (t["holdout_accuracy"], -t["base_lr"]))
        tuned[batch] = best["base_lr"]
        assert made[batch].lr_scaling == best["choices"]["optimizer.lr_scaling"]
    rates = [made[batch].base_lr for batch in BATCHES]
    expected = np.interp(np.log(BATCHES), np.log(list(tuned)), np.log(list(tuned.values())))
    assert np.log(rates) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("batch", ["abc", "0", "1.5", "null"])
def test_the_error_for_a_wrong_batch_names_its_key(batch):
    with pytest.raises(UserError, match=f"^batch={batch}: must be a whole number at least 1"):
        attempt("attempt2", f"batch={batch}")


def test_the_error_of_by_batch_names_the_known_batches():
    raw = {"batch": 1024, "rate": "${by_batch:{128: 0.1, 1024: 0.8}}"}
    assert plain_config(OmegaConf.create(raw))["rate"] == 0.8
    refused = r"^batch=256: .* has rate only for 128, 1024; give rate=VALUE$"
    with pytest.raises(UserError, match=refused):
        plain_config(OmegaConf.create(raw | {"batch": 256}))


def test_a_value_listed_only_for_lars_adds_no_key_to_sgd():
    with pytest.raises(UserError, match=r"optimizer\.adapt=all: unknown key"):
        attempt("attempt1", "optimizer.adapt=all")


@pytest.mark.parametrize(
    ("optimizer", "clip", "peaks"),
    [("sgd", 0.25, {4096: 1.6, 8192: 3.2}), ("lars", None, {4096: 16.0, 8192: 45.2548})],
)
def test_attempt_5_peaks_at_the_searched_rates(optimizer, clip, peaks):
    for batch, peak in peaks.items():
        made = attempt("attempt5", f"optimizer={optimizer}", f"batch={batch}")
        assert make_plan(made, 50_000).peak_lr == pytest.approx(peak, rel=1e-5)
        assert made.clip.norm == clip and made.optimizer.nesterov
    refused = r"^batch=128: this experiment has optimizer\.base_lr only for 4096, 8192; give "
    with pytest.raises(UserError, match=refused):
        attempt("attempt5", f"optimizer={optimizer}", "batch=128")
    given = ("optimizer.base_lr=1", "optimizer.momentum=0.9")
    assert attempt("attempt5", f"optimizer={optimizer}", "batch=128", *given).batch == 128


def test_an_optimizer_that_an_experiment_does_not_list_keeps_its_own_defaults():
    alone = config("optimizer=adamw")
    for name in ("ladder", "attempt5"):
        made = config(f"+experiment={name}", "optimizer=adamw", "batch=4096")
        assert made.optimizer.base_lr == alone.optimizer.base_lr == 1e-3
        assert made.optimizer.weight_decay == 0.05
        assert made.clip.norm is None
    # The study's attempts give one rate for every optimizer.
    made = config("+experiment=attempt1", "optimizer=adamw")
    assert (made.optimizer.base_lr, made.optimizer.weight_decay) == (0.05, 0.05)
