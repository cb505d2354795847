"""Conversion of options from other libraries to Python's own numbers, bools and strings.

numpy's float64 is a subclass of float that torch's kernels reject. numpy's other numbers are not
floats, and its bools are neither True nor False.
"""

from __future__ import annotations

import numbers
from typing import Any

from torch import Tensor

_PLAIN = frozenset((float, int, bool, str, type(None)))


def plain(value: Any) -> Any:
    """Return a scalar or 0-d array as a Python number, bool or str; a tensor is not changed."""
    if type(value) in _PLAIN or isinstance(value, Tensor):
        return value
    if isinstance(value, str):
        return str(value)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if type(value) not in _PLAIN and isinstance(value, numbers.Real):
        value = int(value) if isinstance(value, numbers.Integral) else float(value)
    return value


def number(value: Any) -> Any:
    """Return `plain(value)`, or the number in a 1-element tensor, for which the host waits."""
    return value.item() if isinstance(value, Tensor) else plain(value)


def make_plain(group: dict[str, Any], options: Any) -> None:
    """Replace a group's values of `options` by those of `plain`."""
    for option in options:
        value = group.get(option)
        if type(value) not in _PLAIN:
            group[option] = plain(value)
