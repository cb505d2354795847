"""Decay curves: pure functions that return a factor for the learning rate.

`polynomial` and `cosine` take the progress of the decay: 0 at the peak, 1 at the last step.
`multistep` takes the optimizer step, `tvlars` the epochs since the start of the run.
"""

import math


def polynomial(progress: float, power: float) -> float:
    """Return (1 - progress) ** power."""
    return (1.0 - progress) ** power


def cosine(progress: float) -> float:
    """Return half a cosine wave, from 1 to 0 (Loshchilov & Hutter 2017, without restarts)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def multistep(step: int, step_size: float, gamma: float) -> float:
    """Return gamma ** n after n whole intervals of `step_size` optimizer steps."""
    # If step_size is a rounded fraction, 1e-9 keeps a step on a boundary from falling below it.
    return gamma ** math.floor(step / step_size + 1e-9)


def tvlars(epochs: float, alpha: float, steepness: float, delay: float, gamma_min: float) -> float:
    """Return 1 / (alpha + exp(steepness * (epochs - delay))) + gamma_min.

    Source: Do et al., "Revisiting LARS for Large Batch Training Generalization of Neural Networks",
    arXiv 2309.14053. It falls from almost 1 / alpha + gamma_min to gamma_min and is halfway at
    `delay`, if alpha is 1.
    """
    # Beyond 700, exp exceeds the largest float, and the first term is 0 to all digits.
    return 1.0 / (alpha + math.exp(min(steepness * (epochs - delay), 700.0))) + gamma_min
