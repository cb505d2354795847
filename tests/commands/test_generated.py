"""Random overrides from the schema, valid and invalid, as a user might type them.

Any command either trains, or prints one line to stderr and exits with status 2. None gives a
traceback.
"""

import math
from collections import Counter
from dataclasses import is_dataclass
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.config.options import group_members
from engine.config.parse import Pattern, key_types, known_keys
from engine.config.schema import Config
from engine.data import sources, synthetic

EXAMPLES = 48
# Values for keys whose type allows more than is useful here: an example must be fast, and must not
# write outside of its directory.
QUICK = {
    "batch": st.integers(1, EXAMPLES + 1),
    "compile": st.just(False),
    "data.cache": st.sampled_from(["null", "cache", "'a b'", "${data.root}"]),
    "data.holdout": st.integers(0, EXAMPLES),
    "data.root": st.sampled_from(["null", "here", "'a, b'", "${data.name}"]),
    "data.test_size": st.integers(0, 12),
    "data.train_size": st.integers(1, EXAMPLES),
    "device": st.sampled_from(["auto", "cpu"]),
    "epochs": st.just(1),
    "group": st.from_regex(r"[A-Za-z0-9._-]{1,12}", fullmatch=True),
    "threads": st.just(1),
}
# The members of groups, and choices that do not exist.
CHOICES = {group: group_members(Config)[group] for group in ("optimizer", "scheduler")}
ABSENT = ["optimizer=adam", "scheduler=", "scheduler=../sgd", "model=resnet9", "data=mnist",
        "hydra/launcher=nowhere", "+experiment=nowhere", "+model=resnet8"]  # fmt: skip
ODD = [
    "", " ", "null", "None", "~", "abc", "-1", "0", "1.5", "1e400", "-0.0", "1e-320", ".nan", "nan",
    "inf", "-inf", "true", "yes", "0x10", "1_0", "+3", "1,2", "[1,2]", "[]", "{}", "{a: 1}", "'1'",
    "???", "${batch}", "${nowhere}", "${oc.env:HOME}", "${times_k:1}", "${", "}", "a b", "a=b", '"',
    "9" * 400, "range(1,3)", "é", "\n", "\\", "a: b", "%", "<b>", "|", "$(id)", "`id`", "#",
]  # fmt: skip
TEXT = st.text("ab1.-_=,:{}[]()'\"$\\+*%&|<>!?@^`é\n\t #;", max_size=6)


def leaves(cls, chosen, prefix=""):
    """Yield each dotted key and its type, for the chosen members of the groups."""
    for name, hint in key_types(cls).items():
        groups = [m for m in get_args(hint) or (hint,) if isinstance(m, type) and is_dataclass(m)]
        if not groups:
            yield prefix + name, hint
        named = [g for g in groups if chosen.get(name) in get_args(get_type_hints(g).get("name"))]
        for group in (named or groups)[:1]:
            yield from leaves(group, chosen, f"{prefix}{name}.")


def values(key, hint):
    """Return a strategy for the values that a key's type allows."""
    if key in QUICK:
        return QUICK[key]
    if get_origin(hint) is Annotated:
        base, bounds = get_args(hint)
        if isinstance(bounds, Pattern):
            return st.sampled_from(["1min", "10min", "999999min", "0min"])
        return numbers(base, bounds)
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if args := get_args(hint):
        return st.one_of(*(values(key, arg) for arg in args))
    return {
        bool: st.booleans(),
        type(None): st.none(),
        str: st.sampled_from(["a", "b c"]),
    }[hint]


def numbers(base, bounds):
    low = None if math.isinf(bounds.low) else bounds.low
    high = None if math.isinf(bounds.high) else bounds.high
    if base is int:
        # Small numbers are more frequent, and any number is fast.
        return st.one_of(st.integers(int(low or 0), 64), st.integers(int(low or 0), high))
    return st.one_of(
        st.sampled_from([value for value in (0.0, 0.1, 0.5, 1.0, 2.0) if value in bounds]),
        st.floats(low, high, allow_nan=False, allow_infinity=False).filter(bounds.__contains__),
    )


def typed(value):
    if value is None or isinstance(value, bool):
        return str(value).lower() if isinstance(value, bool) else "null"
    return repr(value) if isinstance(value, float) else str(value)


UNKNOWN = ["hydra.launcher", "hydra.run.dir", "optimizer", "x", "data.x", "batch.x", "a..b"]
WRONG = st.one_of(
    st.sampled_from(ABSENT),
    st.builds(
        lambda sign, key, value: f"{sign}{key}={value}",
        st.sampled_from(["", "", "", "+", "++", "~"]),
        st.sampled_from([*sorted(known_keys(Config)), *UNKNOWN]),
        st.one_of(st.sampled_from(ODD), TEXT),
    ),
)


@st.composite
def commands(draw):
    """Draw overrides that are valid separately, and in half of the cases invalid ones too."""
    chosen = {group: draw(st.sampled_from(names)) for group, names in CHOICES.items()}
    keys = [leaf for leaf in leaves(Config, chosen) if not leaf[0].endswith(".name")]
    overrides = [f"{group}={name}" for group, name in chosen.items()]
    for key, hint in draw(st.lists(st.sampled_from(keys), max_size=4)):
        overrides.append(f"{key}={typed(draw(values(key, hint)))}")
    if draw(st.booleans()):
        overrides += draw(st.lists(WRONG, min_size=1, max_size=2))
    return overrides


@pytest.fixture
def generated(workplace, monkeypatch):
    """Use few images, generated once, and a home directory inside the test's directory."""

    def draw():
        drawn = {"classes": list(synthetic.CLASSES)}
        for split, size in (("train", EXAMPLES), ("test", 12)):
            images, labels = synthetic.make_split(split == "train", size)
            drawn[f"{split}_images"] = torch.from_numpy(np.array(images))
            drawn[f"{split}_labels"] = torch.from_numpy(np.array(labels))
        return drawn

    drawn = draw()
    monkeypatch.setattr(sources, "_read_known", lambda *_: dict(drawn))
    monkeypatch.setenv("HOME", str(workplace))
    return Counter()


def check(command, counts, overrides):
    base = ["data=synthetic", "model=resnet8", "batch=24", "epochs=1", "threads=1"]
    given = {override.partition("=")[0] for override in overrides}
    kept = [override for override in base if override.partition("=")[0] not in given]
    outcome = command("train.py", *kept, *overrides)
    assert "Traceback" not in outcome.err
    assert outcome.status in (0, 2), outcome
    if outcome.status == 2:
        assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1, outcome
        assert len(outcome.err) < 2000
    trained = "steps  " in outcome.out and " accuracy " in outcome.out
    counts["refused" if outcome.status else "trained" if trained else "shown"] += 1


def examples(count):
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        max_examples=count, deadline=None, suppress_health_check=quiet, derandomize=count < 100,
        database=None, print_blob=True,
    )  # fmt: skip


def test_any_command_trains_or_is_refused(generated, command):
    @examples(25)
    @given(commands())
    def run(overrides):
        check(command, generated, overrides)

    run()
    assert generated["trained"] >= 5 and generated["refused"] >= 5, generated


@pytest.mark.stress
def test_many_commands_train_or_are_refused(generated, command):
    @examples(500)
    @given(commands())
    def run(overrides):
        check(command, generated, overrides)

    run()
    print(dict(generated))
