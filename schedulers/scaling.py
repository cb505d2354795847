"""Rules that scale the learning rate with the batch size."""

import math
from collections.abc import Callable

from schedulers.checks import check_number


def linear_scale(batch: int, base_batch: int) -> float:
    """Return batch / base_batch (Goyal et al. 2017); raise ValueError if either is not above 0."""
    return _ratio(batch, base_batch)


def sqrt_scale(batch: int, base_batch: int) -> float:
    """Return sqrt(batch / base_batch); raise ValueError if either is not above 0.

    This rule keeps the noise of an update constant (Krizhevsky 2014).
    """
    return math.sqrt(_ratio(batch, base_batch))


def _ratio(batch: int, base_batch: int) -> float:
    batch_size = check_number("batch", batch, above_zero=True)
    return batch_size / check_number("base_batch", base_batch, above_zero=True)


#: The scaling rules by name. Each takes the batch size and the base batch size.
SCALING_RULES: dict[str, Callable[[int, int], float]] = {
    "linear": linear_scale,
    "sqrt": sqrt_scale,
}
