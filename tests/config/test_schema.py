"""Every configuration composes, and every wrong value is reported."""

import itertools
from pathlib import Path
from typing import get_args

import pytest

from engine.config.compose import CONF
from engine.config.optimizers import Variant
from engine.config.schema import Config
from engine.errors import UserError
from lars import PRESETS
from tests.helpers.runs import composed, config

GROUPS = ("model", "data", "optimizer", "scheduler")


def members(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize(
    ("group", "member"), [(g, m) for g in GROUPS for m in members(g)], ids=lambda x: str(x)
)
def test_every_member_of_every_group_composes(group, member):
    extra = ["data.root=somewhere"] if member == "image_folder" else []
    made = config(f"{group}={member}", *extra)
    assert getattr(made, group).name == member
    assert Config.from_hydra(made.to_dict()) == made


@pytest.mark.parametrize("experiment", members("experiment"))
def test_every_experiment_composes_with_every_optimizer(experiment):
    # attempt5 has values only for large batches.
    smallest = 4096 if experiment == "attempt5" else 128
    for batch, optimizer in itertools.product((smallest, 8192), members("optimizer")):
        made = config(f"+experiment={experiment}", f"batch={batch}", f"optimizer={optimizer}")
        assert (made.batch, made.optimizer.name) == (batch, optimizer)


def test_the_command_line_overrides_an_experiment():
    assert config("+experiment=demo", "epochs=3").epochs == 3


def test_defaults_do_not_change():
    made = config()
    expected = {
        "batch": 128, "micro_batch": 1024, "epochs": 200, "eval_every": 1, "seed": 0,
        "group": "default", "device": "auto", "threads": None, "precision": "auto",
        "compile": False, "deterministic": False, "resume": True, "target_accuracy": None,
    }  # fmt: skip
    assert {key: getattr(made, key) for key in expected} == expected
    names = (made.model.name, made.data.name, made.optimizer.name, made.scheduler.name)
    assert names == ("resnet18", "cifar10", "sgd", "polynomial")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("batch", 0, "batch=0: must be a whole number at least 1"),
        ("batch", 1.5, "batch=1.5: must be a whole number at least 1"),
        ("batch", True, "batch=true: must be a whole number at least 1"),
        ("batch", "abc", "batch=abc: must be a whole number at least 1"),
        ("seed", -1, "seed=-1: must be a whole number at least 0"),
        ("epochs", None, "epochs=null: must be a whole number at least 1"),
        ("threads", 0, "threads=0: must be a whole number at least 1 and at most 1024 or null"),
        ("device", "tpu", "device=tpu: must be one of auto, cpu, cuda, mps"),
        ("compile", "yes please", "compile=yes please: must be true or false"),
        ("group", "../../escape", "group=../../escape: must be letters, digits"),
        ("group", "runs", "group=runs: must not be 'runs'"),
        ("group", "..", "group=..: must be letters"),
        ("target_accuracy", 101, "target_accuracy=101: must be a number above 0 and at most 100"),
        ("optimizer.momentum", 1.0, "must be a number at least 0 and below 1"),
        ("optimizer.momentum", "abc", "optimizer.momentum=abc: must be a number"),
        ("optimizer.base_lr", float("nan"), "optimizer.base_lr=nan: must be a number above 0"),
        ("optimizer.base_lr", float("inf"), "optimizer.base_lr=inf: must be a number above 0"),
        ("optimizer.nesterov", 1, "optimizer.nesterov=1: must be true or false"),
        ("optimizer.decay", "some", "must be one of all, weights"),
        ("optimizer.foo", 1, "optimizer.foo=1: unknown key"),
        ("bacth", 1, "bacth=1: unknown key; did you mean batch"),
        ("clip.norm", 0, "clip.norm=0: must be a number above 0 or null"),
        ("scheduler.warmup_epochs", 201, "warmup_epochs=201: must be at most epochs=200"),
        (
            "scheduler.warmup_steps",
            -1,
            "warmup_steps=-1: must be a whole number at least 0 or null",
        ),
        ("scheduler.final_fraction", 1.5, "must be a number at least 0 and at most 1 or null"),
        ("scheduler.warmup_multiplier", 2, "needs optimizer.lr_scaling=none"),
        ("scheduler.name", "linear", "scheduler.name=linear: must be one of"),
        ("model.name", "vgg", "model.name=vgg: must be one of"),
        ("model.ghost_batch", 256, "model.ghost_batch=256: must be at most"),
        ("model", "resnet8", "model=resnet8: must be a group of keys"),
    ],
)
def test_the_error_for_a_wrong_value_names_key_value_and_what_is_allowed(key, value, message):
    raw = composed()
    *path, leaf = key.split(".")
    target = raw
    for part in path:
        target = target[part]
    target[leaf] = value
    with pytest.raises(UserError) as raised:
        Config.from_hydra(raw)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_key_is_reported():
    raw = composed()
    del raw["optimizer"]["momentum"]
    with pytest.raises(UserError, match=r"optimizer\.momentum: this key is missing"):
        Config.from_hydra(raw)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.bias_lr_scale=-1", "optimizer.bias_lr_scale=-1: must be a number at least 0"),
        ("model.bn_momentum=0", "model.bn_momentum=0: must be a number above 0 and at most 1"),
        ("optimizer.variant=tim", "optimizer.variant=tim: must be one of paper, blog, quadra"),
        ("optimizer.trust_weight_decay=no", "must be one of weight_decay, momentum or a number"),
        ("optimizer.trust_weight_decay=-1", "must be a number at least 0 or null"),
        ("optimizer.zero_norm=two", "must be one of one, skip, raw or null"),
    ],
)
def test_wrong_optimizer_and_model_values_are_reported(override, message):
    with pytest.raises(UserError) as raised:
        config("optimizer=lars", override)
    assert message in str(raised.value)


def test_every_variant_of_the_package_can_be_chosen():
    names = get_args(Variant)
    assert set(names) == set(PRESETS)
    for value in (0.1, "momentum", None):
        text = "null" if value is None else value
        made = config("optimizer=lars", f"optimizer.trust_weight_decay={text}")
        assert made.optimizer.trust_weight_decay == value


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["scheduler.warmup_epochs=5", "scheduler.warmup_steps=20"],
            "scheduler.warmup_steps=20: must be null if scheduler.warmup_epochs=5 is given",
        ),
        (
            ["scheduler.min_lr=1e-5", "scheduler.final_fraction=0"],
            "scheduler.final_fraction=0: must be null if scheduler.min_lr=1e-05 sets the",
        ),
    ],
)
def test_two_keys_for_the_same_setting_are_refused(overrides, message):
    with pytest.raises(UserError) as raised:
        config(*overrides)
    assert message in str(raised.value)


def test_nesterov_needs_momentum():
    with pytest.raises(UserError, match=r"optimizer\.nesterov=true: needs"):
        config("optimizer.nesterov=true", "optimizer.momentum=0")


def test_configuration_names_no_code():
    for path in Path(CONF).rglob("*.yaml"):
        assert "_target_" not in path.read_text(), path
