"""Fit the steps to a target accuracy against the batch size by the critical batch size.

The model is that of McCandlish et al. 2018 (arXiv 1812.06162, section 2.3), with B the batch:

    S(B) = S_min (1 + B_crit / B)        steps to the target
    E(B) = S(B) B = E_min (1 + B / B_crit), E_min = S_min B_crit        examples to the target

The fit is least squares on log S, and each run is one point. For a given B_crit the best log S_min
is a mean, so only B_crit is searched.

The 90 % interval of B_crit contains every value at which the sum of squares exceeds its minimum by
no more than t^2 s^2, t being Student's 95 % quantile. s^2 is estimated twice: from the distances of
the runs from the curve (runs - 2 degrees of freedom), and from those of the batches' means
(batches - 2). The larger t^2 s^2 counts. If seeds alone scatter, both agree. If batches scatter
more, since their rates are not equally good or the curve is another one, only the second is right.
Unlike a bootstrap, the interval needs no random numbers and holds for one seed per batch.

Measured over 1,000 made-up groups of eight batches (64 to 8192) and three seeds with 5 % noise: at
a B_crit of 100, 1,000 and 10,000 the interval contains the truth in 91.5, 94.3 and 93.3 % of them.
docs/critical-batch.md has more such figures.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

LEAST_BATCHES = 3
# The search for B_crit covers the range of the batches, and this factor beyond both of its ends.
BEYOND = 1000.0
# Ratio of neighboring candidates for B_crit.
RATIO = 1.02
# Student's 95 % quantiles for 1 to 10 degrees of freedom.
QUANTILES = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812)


@dataclass(frozen=True)
class Fit:
    """The fitted curve.

    Attributes:
        b_crit: the critical batch size in examples.
        low: lower end of its 90 % interval; None if it is open.
        high: upper end; None if it is open.
        s_min: steps to the target in the limit of large batches.

    """

    b_crit: float
    low: float | None
    high: float | None
    s_min: float

    @property
    def e_min(self) -> float:
        """Return the examples to the target in the limit of small batches."""
        return self.s_min * self.b_crit

    def steps(self, batch: float) -> float:
        """Return the steps to the target at a batch size."""
        return self.s_min * (1 + self.b_crit / batch)


def fit_steps(batches: Sequence[int], steps: Sequence[float]) -> Fit | str:
    """Return the fit, or one sentence that says why these runs have none.

    Args:
        batches: the batch size of each run.
        steps: its steps to the target, above 0.

    """
    sizes = sorted(set(batches))
    if len(sizes) < LEAST_BATCHES:
        return f"A fit needs {LEAST_BATCHES} batch sizes, not {len(sizes)}."
    points = _Points(np.array(batches, dtype=float), np.log(np.array(steps, dtype=float)))
    width = math.log(sizes[-1] / sizes[0] * BEYOND**2)
    start = math.log(sizes[0] / BEYOND)
    grid = np.linspace(start, start + width, math.ceil(width / math.log(RATIO)) + 1)
    best = int(points.squares(grid[:, None]).argmin())
    center = _smallest(points.squares, grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    limit = float(points.squares(center)) + points.tolerance(center)
    low = _end(points.squares, limit, center, grid[:best][::-1])
    high = _end(points.squares, limit, center, grid[best + 1 :])
    return _judged(sizes, Fit(math.exp(center), low, high, math.exp(points.level(center))))


def _judged(sizes: Sequence[int], fit: Fit) -> Fit | str:
    """Return the fit, or the reason why the data do not determine B_crit.

    Args:
        sizes: the batch sizes, smallest first.
        fit: the best curve, with the ends that the data bound.

    """
    between = f"From batch {sizes[0]:,} to {sizes[-1]:,} the steps"
    if fit.low is not None and fit.high is not None:
        return fit
    # If one end is open, the other one must exclude a part of the measured range.
    if (fit.low or 0.0) < sizes[0] and (fit.high or math.inf) > sizes[-1]:
        return f"{between} scatter too much about the curve to determine a critical batch size."
    if fit.high is None and fit.b_crit > sizes[-1]:
        return (
            f"{between} fall almost in proportion to the batch, which is perfect scaling: the "
            f"critical batch size is above {rounded(fit.low or 0.0)}."
        )
    if fit.low is None and fit.b_crit < sizes[0]:
        return (
            f"{between} hardly fall, which is the floor: the critical batch size is below "
            f"{rounded(fit.high or 0.0)}."
        )
    return fit


def rounded(value: float, digits: int = 2) -> str:
    """Return a positive number as text, rounded to some significant digits.

    >>> [rounded(value) for value in (0.1234, 12.34, 1874.0)]
    ['0.12', '12', '1,900']
    """
    return f"{float(f'{value:.{digits}g}'):,}".removesuffix(".0")


class _Points:
    """The runs: batch sizes and logarithms of steps."""

    def __init__(self, batches: Array, logs: Array) -> None:
        self.batches, self.logs = batches, logs

    def distances(self, place: float | Array) -> Array:
        """Return the runs' log S minus log(1 + B_crit / B), for logarithms of B_crit, [..., 1]."""
        return self.logs - np.logaddexp(0.0, place - np.log(self.batches))

    def level(self, place: float) -> float:
        """Return the best log S_min."""
        return float(self.distances(place).mean())

    def squares(self, place: float | Array) -> Array:
        """Return the sum of squares of the residuals, for logarithms of B_crit, [..., 1]."""
        distances = self.distances(place)
        return ((distances - distances.mean(-1, keepdims=True)) ** 2).sum(-1)

    def tolerance(self, place: float) -> float:
        """Return t^2 s^2: how far the sum of squares may exceed its minimum, see the module."""
        residuals = self.distances(place) - self.level(place)
        means = [residuals[self.batches == batch] for batch in np.unique(self.batches)]
        between = sum(len(runs) * float(runs.mean()) ** 2 for runs in means)
        return max(
            _quantile(freedom) ** 2 * squares / freedom
            for squares, freedom in (
                (float((residuals**2).sum()), len(residuals) - 2),
                (between, len(means) - 2),
            )
        )


def _quantile(freedom: int) -> float:
    """Return Student's 95 % quantile."""
    if freedom <= len(QUANTILES):
        return QUANTILES[freedom - 1]
    # The expansion about the normal distribution; its error is below 0.001 here.
    return 1.6449 + 1.5238 / freedom + 1.4203 / freedom**2


def _smallest(function: Callable[[float], Array], low: float, high: float) -> float:
    """Return where a function with one minimum between two places is smallest."""
    for _ in range(60):
        third = (high - low) / 3
        if function(low + third) < function(high - third):
            high -= third
        else:
            low += third
    return (low + high) / 2


def _end(
    function: Callable[[float], Array], limit: float, center: float, outward: Array
) -> float | None:
    """Return B_crit at an end of the interval; None if the interval is open there.

    Args:
        function: the sum of squares by the logarithm of B_crit.
        limit: its largest value in the interval.
        center: its minimum's place.
        outward: the places to search, from the center to the end of the range.

    """
    inside = center
    for place in outward:
        if function(place) > limit:
            break
        inside = place
    else:
        return None
    outside = place
    for _ in range(40):
        middle = (inside + outside) / 2
        if function(middle) > limit:
            outside = middle
        else:
            inside = middle
    return math.exp(inside)
