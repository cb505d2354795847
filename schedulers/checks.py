"""Check the numeric arguments of a schedule and convert them to Python numbers.

NaN and infinity need checks: `value < 0` is false for NaN, and `value > 0` is true for infinity.
"""

import math
import numbers
from typing import Any

from torch import Tensor


def check_number(name: str, value: Any, above_zero: bool = False, most: float = math.inf) -> float:
    """Return `value` as a Python number; raise ValueError if it is out of range or not finite.

    Args:
        name: name of the argument in the error message.
        value: a number, a numpy scalar, or an array or tensor of one element.
        above_zero: if True the number must be above 0, otherwise at least 0.
        most: largest allowed number.

    """
    number = _plain(value)
    is_right = number is not None and (0.0 < number if above_zero else 0.0 <= number)
    if not is_right or not number <= most or number == math.inf:
        lowest = "above 0" if above_zero else "at least 0"
        highest = "" if most == math.inf else f" and at most {most:g}"
        raise ValueError(f"{name}={value}: must be a finite number {lowest}{highest}")
    return number


def check_count(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return `value` as an int; raise ValueError unless it is a whole number in the range.

    Args:
        name: name of the argument in the error message.
        value: as in `check_number`.
        least: smallest allowed number.
        most: largest allowed number; None is no limit.

    """
    number = _plain(value)
    is_whole = number is not None and math.isfinite(number) and number == int(number)
    if not is_whole or number < least or (most is not None and number > most):
        wanted = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name}={value}: must be a whole number {wanted}")
    return int(number)


def _plain(value: Any) -> Any:
    """Return the value as an int or float; None if it is not a real number."""
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 else None
    elif getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    return int(value) if isinstance(value, numbers.Integral) else float(value)
