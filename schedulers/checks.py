"""The numbers of a schedule: Python's own, whatever library made them, and none that ruins a run.

NaN passes each comparison that looks for what is wrong, and infinity passes "above 0".
"""

import math
import numbers
from typing import Any

from torch import Tensor


def check_number(name: str, value: Any, above_zero: bool = False, most: float = math.inf) -> float:
    """Return a finite number of at least 0, or above it; raise ValueError, naming it, otherwise.

    Args:
        name: what the error calls it.
        value: a number, a numpy scalar, or an array or tensor of one element.
        above_zero: whether 0 is wrong too.
        most: the largest that is right.

    """
    number = _plain(value)
    is_right = number is not None and (0.0 < number if above_zero else 0.0 <= number)
    if not is_right or not number <= most or number == math.inf:
        lowest = "above 0" if above_zero else "at least 0"
        highest = "" if most == math.inf else f" and at most {most:g}"
        raise ValueError(f"{name}={value}: must be a finite number {lowest}{highest}")
    return number


def check_count(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return a whole number from `least` to `most`; raise ValueError, naming it, otherwise."""
    number = _plain(value)
    is_whole = number is not None and math.isfinite(number) and number == int(number)
    if not is_whole or number < least or (most is not None and number > most):
        wanted = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"{name}={value}: must be a whole number, {wanted}")
    return int(number)


def _plain(value: Any) -> Any:
    """The value as Python's own number; None if it is none."""
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 else None
    elif getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    return int(value) if isinstance(value, numbers.Integral) else float(value)
