"""Power-law averages of parameters, and how those of one width are put together from others (Karras
et al., arXiv 2312.02696, section 3 and appendix C).

After step t the average weighs the parameters of step s by p(s) = (gamma + 1) s^gamma / t^(gamma +
1): its memory grows with training. It is named by its relative width: the standard deviation of
p, divided by t. 0.1 is an average over about the last tenth.

Reconstruction works on the profiles alone: the wanted p is fitted by a sum of stored ones, and the
same weights then apply to the parameters.
"""

from collections.abc import Sequence

import numpy as np

Values = np.ndarray | float

MAX_WIDTH = 12**-0.5  # of gamma = 0, the plain mean of all steps
# Root mean square by which a fitted profile may differ, as a share of its own: with 32 snapshots it
# is 0.001 between the stored widths.
MAX_MISFIT = 0.1


def exponent(width: float) -> float:
    """gamma of a relative width: the real root of eq. 126.

    Raises:
        ValueError: the width is not in (0, 0.2887).
    """
    if not 0 < width < MAX_WIDTH:
        raise ValueError(f"a relative width must be above 0 and below {MAX_WIDTH:.4f}, not {width}")
    inverse = float(width) ** -2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def relative_width(gamma: float) -> float:
    """The standard deviation of p over t (eq. 123): the inverse of `exponent`."""
    return float(np.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))))


def inner_products(
    steps: Values, gammas: Values, others: Values, other_gammas: Values
) -> np.ndarray:
    """The integrals of p(s) q(s) ds of two profiles each (eq. 151), in float64; shapes broadcast.

    With the update of training they are exact for parameters that change from step to step.
    """
    given = steps, gammas, others, other_gammas
    steps, gammas, others, other_gammas = (np.asarray(each, np.float64) for each in given)
    # (shorter / longer) ** gamma of the longer: no power of a step itself, which would overflow.
    power = np.where(steps < others, other_gammas, -gammas)
    top = (gammas + 1) * (other_gammas + 1) * (steps / others) ** power
    return np.asarray(top / ((gammas + other_gammas + 1) * np.maximum(steps, others)))


def solve_weights(
    steps: Sequence[int], widths: Sequence[float], step: int, width: float
) -> tuple[np.ndarray, float]:
    """(weights, misfit): how to sum the stored averages, one after each of `steps` with the width
    of the same place in `widths`, to get that of `width` after `step`.

    The weights sum to 1 and minimize the squared difference of the profiles. The paper's algorithm
    3 divides by the sum instead, which is the same for many snapshots and worse for few. misfit:
    the root of what is left, as a share of the wanted profile's own root mean square.

    Raises:
        ValueError: a width is out of range.
    """
    times, time = np.asarray(steps, np.float64), float(step)
    gammas, gamma = np.asarray([exponent(each) for each in widths]), exponent(width)
    products = inner_products(times[:, None], gammas[:, None], times, gammas)
    wanted = inner_products(times, gammas, time, gamma)
    free, ones = np.linalg.solve(products, np.stack([wanted, np.ones_like(wanted)], axis=1)).T
    weights = free + ones * (1 - free.sum()) / ones.sum()
    own = inner_products(time, gamma, time, gamma)
    left = own - 2 * weights @ wanted + weights @ products @ weights
    return weights, float(np.sqrt(max(left / own, 0)))


def reachable_widths(
    steps: Sequence[int], widths: Sequence[float], step: int
) -> tuple[float, float] | None:
    """The smallest and the largest width, to 0.005, that the stored averages give, if any."""
    tried = np.arange(1, int(MAX_WIDTH * 200) + 1) / 200
    fits = [float(w) for w in tried if solve_weights(steps, widths, step, w)[1] <= MAX_MISFIT]
    return (min(fits), max(fits)) if fits else None
