"""Name a row by the choices in which it differs from other rows of its group.

A row's choices are a dictionary by dotted key, and a group is the list of its rows' choices. Rows
of one optimizer, batch, model, data and epochs are in the same cell. LARS with a base is another
optimizer than LARS. The setting of a row is what it differs in from the other rows of its cell.
"""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from engine.config.optimizers import label_in
from engine.config.schema import default_choices

Choices = Mapping[str, Any]

# Only rows that are equal in these are compared with a target derived from a baseline.
SCOPE = ("model.name", "data.name", "epochs")
CELL = ("optimizer.name", "batch", *SCOPE)
# How long a run may take that ends at its target, and how often it is evaluated, are no settings.
BOUNDS = ("epochs", "max_steps", "eval_every")
# If a cell varies more keys than this, a setting names only those in which it differs from most.
MOST_NAMED = 3
# Name of the setting that has the most common value of every key.
COMMON = "(what most rows share)"


def without_bounds(choices: Choices) -> Choices:
    """Return choices in which those of `BOUNDS` are None if the run ends at its target.

    >>> without_bounds({"epochs": 15, "stop_at_target": True})
    {'epochs': None, 'stop_at_target': True, 'max_steps': None, 'eval_every': None}
    """
    return {**choices, **dict.fromkeys(BOUNDS)} if choices.get("stop_at_target") else choices


def differences(own: Choices, group: Sequence[Choices], keys: Iterable[str]) -> str:
    """Return those of `keys` in which rows of the group differ, with the row's values.

    >>> short, long = {"data.name": "cifar10", "epochs": 15}, {"data.name": "cifar10", "epochs": 45}
    >>> differences(short, [short, long], ("data.name", "epochs"))
    'epochs=15'

    A key that is None in a row, as `without_bounds` leaves it, is not compared with that row.

    >>> differences(short, [short, short | {"epochs": None}], ("data.name", "epochs"))
    ''
    """
    known = [key for key in keys if own[key] is not None]
    return _named(own, [k for k in known if any(row[k] not in (own[k], None) for row in group)])


def cell_of(choices: Choices) -> tuple[Any, ...]:
    """Return what rows in the same cell have in common.

    >>> cell_of(dict(zip(CELL, ("sgd", 128, "resnet8", "cifar10", 15))) | {"clip.norm": 1.0})
    ('sgd', 128, 'resnet8', 'cifar10', 15)
    """
    return (label_in(choices), *(choices[key] for key in CELL[1:]))


def setting(own: Choices, group: Sequence[Choices]) -> str:
    """Return the choices in which the row differs from other rows in the same cell.

    >>> slow = dict(zip(CELL, ("sgd", 128, "resnet8", "cifar10", 15))) | {"optimizer.base_lr": 0.1}
    >>> fast, large = slow | {"optimizer.base_lr": 0.2}, slow | {"batch": 512}
    >>> [setting(row, [slow, fast, large]) for row in (slow, fast, large)]
    ['optimizer.base_lr=0.1', 'optimizer.base_lr=0.2', '']

    An ablation changes many keys, few in each row. A row names only what it changes.

    >>> base = slow | dict.fromkeys("abcd", 1)
    >>> ablation = [base, *(base | {key: 2} for key in "abcd"), base | {"a": 2, "b": 2}]
    >>> [setting(row, ablation) for row in ablation]
    ['(what most rows share)', 'a=2', 'b=2', 'c=2', 'd=2', 'a=2 b=2']
    """
    cell = [row for row in group if cell_of(row) == cell_of(own)]
    keys = _varied(cell)
    if len(keys) <= MOST_NAMED:
        return _named(own, keys)
    changed = {k for k in keys if own.get(k) != statistics.mode(row.get(k) for row in cell)}
    # A schedule's keys mean nothing without its name.
    if "scheduler.name" in keys and any(key.startswith("scheduler.") for key in changed):
        changed.add("scheduler.name")
    return _named(own, sorted(changed)) or COMMON


def line_setting(own: Choices, group: Sequence[Choices]) -> str:
    """Return the setting of the row's line, which leads to other batches or epochs.

    It is the row's setting. A row that is alone in its cell has none. It lies on the line of the
    rows that have the same values of the keys that vary within other cells.

    >>> paper = dict(zip(CELL, ("lars", 512, "resnet8", "cifar10", 15))) | {"optimizer.eps": 0.0}
    >>> other, small = paper | {"optimizer.eps": 1e-8}, paper | {"batch": 128}
    >>> [line_setting(row, [paper, other, small]) for row in (paper, other, small)]
    ['optimizer.eps=0.0', 'optimizer.eps=1e-08', 'optimizer.eps=0.0']
    """
    if named := setting(own, group):
        # Other cells have the setting that most rows of an ablation share.
        return "" if named == COMMON else named
    cells: dict[tuple[Any, ...], list[Choices]] = {}
    for row in group:
        if label_in(row) == label_in(own):
            cells.setdefault(cell_of(row), []).append(row)
    keys = {key for cell in cells.values() for key in _varied(cell)}
    # A recipe gives each batch a separate rate.
    keys.discard("optimizer.base_lr")
    return _named(own, sorted(keys)) if len(keys) <= MOST_NAMED else ""


def cell_setting(own: Choices, group: Sequence[Choices]) -> str:
    """Return what all rows of the cell have in common and other rows of the optimizer do not.

    The base rate is left out, because it has a separate column.

    >>> small = dict(zip(CELL, ("sgd", 128, "resnet8", "cifar10", 15))) | {"clip.norm": None}
    >>> large = small | {"batch": 512, "clip.norm": 1.0}
    >>> [cell_setting(row, [small, large]) for row in (small, large)]
    ['clip.norm=null', 'clip.norm=1.0']
    """
    varied = _varied([row for row in group if cell_of(row) == cell_of(own)])
    same_optimizer = [row for row in group if label_in(row) == label_in(own)]
    keys = [
        key
        for key in _varied(same_optimizer)
        if key not in (*CELL, "optimizer.base_lr", *varied)
        # The setting already names the schedule with its keys.
        and not ("scheduler.name" in varied and key.startswith("scheduler."))
    ]
    return _named(own, keys)


def mixed_provenance(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return a note on provenance in which the averaged runs of one row differ.

    >>> mixed_provenance([{"commit": "abc", "device": "cpu"}, {"commit": "def", "device": "cpu"}])
    '(mixed commit)'
    """
    keys = ("commit", "device", "precision", "torch", "world_size", "threads")
    mixed = [key for key in keys if len({run.get(key) for run in runs}) > 1]
    return f"(mixed {', '.join(mixed)})" if mixed else ""


def _varied(rows: Sequence[Choices]) -> list[str]:
    """Return the keys in which these rows differ."""
    keys = sorted({key for row in rows for key in row})
    return [key for key in keys if any(row.get(key) != rows[0].get(key) for row in rows)]


def _named(own: Choices, keys: Iterable[str]) -> str:
    """Return `key=value` of each key; keys that only other schedules have are left out."""
    known = {**default_choices(own), **own}
    values = {key: known[key] for key in keys if key in known}
    return " ".join(
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in values.items()
    )
