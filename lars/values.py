"""Options as numbers, flags and names of Python's own, whatever library made them.

numpy's float64 is a Python float and still no float to torch's kernels; its other numbers are no
floats at all, and its bools are neither True nor False.
"""

from __future__ import annotations

import numbers
from typing import Any

from torch import Tensor

_PLAIN = frozenset((float, int, bool, str, type(None)))


def plain(value: Any) -> Any:
    """A Python number, bool or str in place of a scalar or 0-d array; a tensor as it is."""
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
    """`plain`, and the number in a tensor of one element, which the host waits for."""
    return value.item() if isinstance(value, Tensor) else plain(value)


def make_plain(group: dict[str, Any], options: Any) -> None:
    """Replace a group's values of these options by `plain` ones."""
    for option in options:
        value = group.get(option)
        if type(value) not in _PLAIN:
            group[option] = plain(value)
