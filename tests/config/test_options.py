"""The meaning, values and default of every key in `--help`, docs/options.md and conf/."""

import doctest

import pytest

import scripts.options
from engine.config import keys, optimizers, options, parse
from engine.config.compose import CONF
from engine.config.options import as_typed, group_members, help_text, list_options, values_of
from engine.config.parse import known_keys
from engine.config.schema import Config, EvaluationConfig


@pytest.mark.parametrize(("config", "name"), [(Config, "train"), (EvaluationConfig, "val")])
def test_every_key_has_a_meaning_and_a_default(config, name):
    listed = {option.key: option for option in list_options(config, name)}
    assert {key for key in known_keys(config) if not key.endswith(".name")} == set(listed)
    for option in listed.values():
        assert option.meaning and option.allowed and option.defaults, option.key
    text = help_text("usage", config, name)
    assert all(option.name in text for option in listed.values())
    assert max(map(len, text.splitlines())) <= 100


def test_a_members_own_key_and_default_are_shown():
    listed = {option.key: option for option in list_options(Config, "train")}
    assert listed["optimizer.trust_clip"].describe_members() == "lars"
    assert listed["optimizer.base_batch"].describe_members() == ""
    rate = listed["optimizer.base_lr"].describe_defaults().split(", ")
    assert {"sgd 0.1", "lars 4"} <= set(rate)
    assert listed["scheduler.warmup_fraction"].describe_defaults() == "0.1, onecycle 0.3"
    root = listed["data.root"].describe_defaults().split(", ")
    assert {"image_folder null", "synthetic .data/synthetic"} <= set(root)
    assert {".data", "cifar10 .data"} & set(root)


def test_a_key_with_another_meaning_in_another_member_is_listed_for_each():
    listed = [o for o in list_options(Config, "train") if o.key == "optimizer.eps"]
    assert [o.describe_defaults() for o in listed] == [
        "null",
        "adamw 1e-08, lamb 1e-06, muon 1e-08",
    ]
    assert listed[0].describe_members() == "lars"
    assert "adamw" in listed[1].describe_members().split(", ")
    meanings = [option.meaning for option in listed]
    texts = {path.stem: text for path, text in scripts.options.render().items()}
    assert f"eps: null  # {meanings[0]}\n" in texts["lars"]
    assert f"eps: 1e-8  # {meanings[1]}\n" in texts["adamw"]
    clipping = next(o for o in list_options(Config, "train") if o.key == "clip.norm")
    assert clipping.describe_defaults() == "null"


def test_every_member_has_a_file_and_every_file_a_member():
    for group, names in group_members(Config).items():
        assert sorted(names) == sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        for name in names:
            assert values_of(group, name)["name"] == name


def test_a_model_has_the_values_of_the_file_that_it_extends():
    assert values_of("model", "resnet8") == values_of("model", "resnet110") | {"name": "resnet8"}
    assert values_of("model", "resnet8")["bn_momentum"] == 0.1


def test_options_page_and_comments_are_up_to_date():
    for path, text in scripts.options.render().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run scripts.options"


def test_a_stale_comment_is_replaced_and_a_header_stays():
    text = "# header\nbatch: 1  # old\nother: 2  # kept\n"
    made = scripts.options.commented(text, {"batch": "new"}, "")
    assert made == "# header\nbatch: 1  # new\nother: 2  # kept\n"


def test_values_are_written_as_they_are_typed():
    assert [as_typed(v) for v in (None, True, 0.1, 4.0, "5e-4", 900)] == [
        "null", "true", "0.1", "4", "5e-4", "900",
    ]  # fmt: skip


@pytest.mark.parametrize("module", [keys, options, optimizers, parse, scripts.options])
def test_examples_in_docstrings_are_correct(module):
    assert doctest.testmod(module).failed == 0
