"""The times that a sampler goes through, made on the host before anything is compiled.

Spacings of continuous time; spacings of time steps as diffusers' schedulers have them; and the
lists of time steps that DeepFloyd IF was published with. A step n lies at time t = (n + 1) /
num_steps of the schedule, and after the last one comes t = 0.
"""

from collections.abc import Sequence
from math import ceil
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from imagen_jax.diffusion.sampling import Sampling, Spacing
from imagen_jax.diffusion.schedules import TIME_UNITS, Schedule, network_time

# Time grids are padded to this many steps, so that the number of steps is a traced value.
MAX_STEPS = 1024


class TimeGrid(NamedTuple):
    """Decreasing times, padded: step i, from `start` to `stop` - 1, goes from times[i] to
    times[i + 1].
    """

    times: Float[Array, " padded"] | Float[np.ndarray, " padded"]
    start: Int[Array, ""] | int
    stop: Int[Array, ""] | int


def _uniform_in_logsnr(
    schedule: Schedule, start: float, stop: float, fraction: np.ndarray
) -> np.ndarray:
    first, last = jnp.clip(schedule.logsnr(jnp.float32([start, stop])), -20.0, 20.0)
    times = np.asarray(schedule.time(first + (last - first) * fraction))
    return np.select([fraction == 0.0, fraction == 1.0], [start, stop], times)


def _flow_match(schedule: Schedule, start: float, stop: float, fraction: np.ndarray) -> np.ndarray:
    """Evenly to the noise level of the first of 1000 time steps, and from there to the end.

    As diffusers' FlowMatchEulerDiscreteScheduler, which takes that level, of a schedule that may be
    shifted, for a time of the same schedule: the lowest steps are shifted twice.
    """
    lowest = float(network_time(schedule, jnp.float32(1.0 / TIME_UNITS))) / TIME_UNITS
    way, count = np.zeros(len(fraction)), int(np.sum(fraction < 1.0))
    way[:count] = np.linspace(1.0, lowest, count)
    return stop + (start - stop) * way


# Time at a fraction of the way from start to stop.
SPACINGS = {
    "flow_match": _flow_match,
    "time": lambda schedule, start, stop, fraction: start * (1.0 - fraction) + stop * fraction,
    "logsnr": _uniform_in_logsnr,
}

# sigma / alpha at a fraction of the way from the largest to the smallest.
SIGMA_SPACINGS = {
    # rho = 7 of arXiv 2206.00364, eq. 5.
    "karras": lambda largest, smallest, fraction: (
        ((1.0 - fraction) * largest ** (1 / 7) + fraction * smallest ** (1 / 7)) ** 7
    ),
    # "logsnr" between other ends, and then the step to clean data.
    "exponential": lambda largest, smallest, fraction: (
        largest ** (1.0 - fraction) * smallest**fraction
    ),
}
SIGMA_TIMES = 1e-4, 1.0  # the times that these spacings may reach

# Time steps from the noisiest on, of `total` steps of which the `usable` lowest may be visited.
# See arXiv 2305.08891, table 2. Those of DPM-Solver leave out the step at which they would end.
STEP_SPACINGS = {
    "leading": lambda count, total, usable: np.arange(count)[::-1] * (total // count),
    "trailing": lambda count, total, usable: (
        np.round(np.arange(total, 0, -total / count))[:count] - 1
    ),
    "linspace": lambda count, total, usable: np.linspace(0, total - 1, count).round()[::-1],
    "dpm_leading": lambda count, total, usable: (
        np.arange(1, count + 1)[::-1] * (usable // (count + 1))
    ),
    "dpm_linspace": lambda count, total, usable: np.linspace(0, usable - 1, count + 1).round()[
        :0:-1
    ],
}

# DeepFloyd IF's own lists for a schedule of 1000 steps; the number in the name is their length.
# fmt: off
STEP_LISTS = {
    "fast27": (
        999, 800, 799, 600, 599, 500, 400, 399, 377, 355, 333, 311, 288, 266, 244, 222, 200,
        199, 177, 155, 133, 111, 88, 66, 44, 22, 0,
    ),
    "smart27": (
        999, 976, 952, 928, 905, 882, 858, 857, 810, 762, 715, 714, 572, 429, 428, 286, 285,
        238, 190, 143, 142, 118, 95, 71, 47, 24, 0,
    ),
    "smart50": (
        999, 988, 977, 966, 955, 944, 933, 922, 911, 900, 899, 879, 859, 840, 820, 800, 799,
        766, 733, 700, 699, 650, 600, 599, 500, 499, 400, 399, 350, 300, 299, 266, 233, 200,
        199, 179, 159, 140, 120, 100, 99, 88, 77, 66, 55, 44, 33, 22, 11, 0,
    ),
    "smart100": (
        999, 995, 992, 989, 985, 981, 978, 975, 971, 967, 964, 961, 957, 956, 951, 947, 942,
        937, 933, 928, 923, 919, 914, 913, 908, 903, 897, 892, 887, 881, 876, 871, 870, 864,
        858, 852, 846, 840, 834, 828, 827, 820, 813, 806, 799, 792, 785, 784, 777, 770, 763,
        756, 749, 742, 741, 733, 724, 716, 707, 699, 698, 688, 677, 666, 656, 655, 645, 634,
        623, 613, 612, 598, 584, 570, 569, 555, 541, 527, 526, 505, 484, 483, 462, 440, 439,
        396, 395, 352, 351, 308, 307, 264, 263, 220, 219, 176, 132, 88, 44, 0,
    ),
    "smart185": (
        999, 997, 995, 992, 990, 988, 986, 984, 981, 979, 977, 975, 972, 970, 968, 966, 964,
        961, 959, 957, 956, 954, 951, 949, 946, 944, 941, 939, 936, 934, 931, 929, 926, 924,
        921, 919, 916, 914, 913, 910, 907, 905, 902, 899, 896, 893, 891, 888, 885, 882, 879,
        877, 874, 871, 870, 867, 864, 861, 858, 855, 852, 849, 846, 843, 840, 837, 834, 831,
        828, 827, 824, 821, 817, 814, 811, 808, 804, 801, 798, 795, 791, 788, 785, 784, 780,
        777, 774, 770, 766, 763, 760, 756, 752, 749, 746, 742, 741, 737, 733, 730, 726, 722,
        718, 714, 710, 707, 703, 699, 698, 694, 690, 685, 681, 677, 673, 669, 664, 660, 656,
        655, 650, 646, 641, 636, 632, 627, 622, 618, 613, 612, 607, 602, 596, 591, 586, 580,
        575, 570, 569, 563, 557, 551, 545, 539, 533, 527, 526, 519, 512, 505, 498, 491, 484,
        483, 474, 466, 457, 449, 440, 439, 428, 418, 407, 396, 395, 381, 366, 352, 351, 330,
        308, 307, 286, 264, 263, 242, 220, 219, 176, 175, 132, 131, 88, 44, 0,
    ),
    "super27": (
        999, 991, 982, 974, 966, 958, 950, 941, 933, 925, 916, 908, 900, 899, 874, 850, 825,
        800, 799, 700, 600, 500, 400, 300, 200, 100, 0,
    ),
    "super40": (
        999, 992, 985, 978, 971, 964, 957, 949, 942, 935, 928, 921, 914, 907, 900, 899, 879,
        859, 840, 820, 800, 799, 766, 733, 700, 699, 650, 600, 599, 500, 499, 400, 399, 300,
        299, 200, 199, 100, 99, 0,
    ),
    "super100": (
        999, 996, 992, 989, 985, 982, 979, 975, 972, 968, 965, 961, 958, 955, 951, 948, 944,
        941, 938, 934, 931, 927, 924, 920, 917, 914, 910, 907, 903, 900, 899, 891, 884, 876,
        869, 861, 853, 846, 838, 830, 823, 815, 808, 800, 799, 788, 777, 766, 755, 744, 733,
        722, 711, 700, 699, 688, 677, 666, 655, 644, 633, 622, 611, 600, 599, 585, 571, 557,
        542, 528, 514, 500, 499, 485, 471, 457, 442, 428, 414, 400, 399, 379, 359, 340, 320,
        300, 299, 279, 259, 240, 220, 200, 199, 166, 133, 100, 99, 66, 33, 0,
    ),
}
# fmt: on


def sampling_grid(schedule: Schedule, sampling: Sampling) -> TimeGrid:
    """The times of a stage's sampling.

    Raises:
        ValueError: the spacing counts time steps and the schedule has none, or too few.
    """
    if sampling.spacing in SPACINGS:
        return time_grid(schedule, sampling.steps, sampling.spacing)
    if sampling.spacing in SIGMA_SPACINGS:
        ends = sampling.sigma_min, sampling.sigma_max
        return sigma_grid(schedule, sampling.steps, sampling.spacing, *ends)
    steps = spaced_steps(
        schedule, sampling.spacing, sampling.steps, sampling.steps_offset, sampling.lambda_min
    )
    return step_grid(schedule, steps)


def time_grid(
    schedule: Schedule,
    num_steps: int,
    spacing: str = "time",
    start: float = 1.0,
    stop: float = 0.0,
) -> TimeGrid:
    """1 ... MAX_STEPS steps from time `start` to `stop`; `spacing` is a key of SPACINGS."""
    # Of one length for every number of steps, since JAX compiles for each length.
    fraction = np.arange(MAX_STEPS + 1, dtype=np.float32) / np.float32(num_steps)
    times = SPACINGS[spacing](schedule, start, stop, np.minimum(fraction, 1.0))
    return padded_grid(times[: num_steps + 1])


def sigma_grid(
    schedule: Schedule,
    num_steps: int,
    spacing: str = "karras",
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
) -> TimeGrid:
    """Steps between levels of sigma / alpha from `sigma_max` to `sigma_min`, then to clean data.

    As EDM has them (arXiv 2206.00364), and diffusers' and k-diffusion's schedules of these names,
    except that the first level is t = 1, where the image is noise. `spacing` is a key of
    SIGMA_SPACINGS. Levels that the schedule does not have are left out.

    Raises:
        ValueError: it has none of them.
    """
    latest, first = np.exp(-0.5 * np.asarray(schedule.logsnr(np.float32(SIGMA_TIMES)), np.float64))
    largest, smallest = min(sigma_max, first), max(sigma_min, latest)
    if not smallest < largest:
        raise ValueError(
            f"levels from sigma_max {sigma_max} to sigma_min {sigma_min} are none of the schedule, "
            f"which has those from {first:.3g} to {latest:.3g}"
        )
    # Of one length for every number of steps, as above.
    fraction = np.minimum(np.arange(MAX_STEPS) / max(num_steps - 1, 1), 1.0)
    sigmas = SIGMA_SPACINGS[spacing](largest, smallest, fraction)
    times = np.asarray(schedule.time(jnp.float32(-2.0 * np.log(sigmas))))
    return padded_grid(np.concatenate([[1.0], times[1:num_steps], [0.0]]))


def padded_grid(times: Sequence[float] | np.ndarray, start: int = 0) -> TimeGrid:
    """A grid of these times in [0, 1], padded to a multiple of MAX_STEPS: one program for all."""
    stop = len(times) - 1
    padding = MAX_STEPS * ceil(stop / MAX_STEPS) - stop
    padded = np.pad(np.asarray(times, np.float32), (0, padding), "edge")
    return TimeGrid(padded, np.int32(start), np.int32(stop))


def fixed_steps(spacing: Any) -> tuple[int, ...] | None:
    """The time steps of a list or of its name; None for a spacing of any number of steps."""
    return tuple(spacing) if isinstance(spacing, list | tuple) else STEP_LISTS.get(spacing)


def spaced_steps(
    schedule: Schedule,
    spacing: Spacing,
    num_steps: int,
    offset: int = 0,
    lambda_min: float | None = None,
) -> np.ndarray:
    """Decreasing time steps that a sampler visits, int.

    Args:
        spacing: a key of STEP_SPACINGS, one of STEP_LISTS, or the time steps themselves.
        num_steps: their number; a list has its own.
        offset: added to every step of "leading" and "dpm_leading" (diffusers' `steps_offset`).
        lambda_min: the spacings of DPM-Solver start at the first step whose log(alpha / sigma)
            reaches it (diffusers' `lambda_min_clipped`; -5.1 for DeepFloyd IF); None: at the last.

    Raises:
        ValueError: a schedule that counts no steps, or has too few; a list that does not fit it.
    """
    total = getattr(schedule, "num_steps", None)
    if total is None:
        raise ValueError(
            f"spacing {spacing!r} counts time steps, and {type(schedule).__name__} has none: "
            "it needs a schedule such as discrete_beta"
        )
    listed = fixed_steps(spacing)
    if listed is not None:
        steps = np.asarray(listed)
    else:
        usable = total
        if lambda_min is not None:
            logsnr = np.asarray(schedule.logsnr(jnp.arange(1, total + 1) / total))
            usable = int(np.sum(0.5 * logsnr >= lambda_min))
        if not 1 <= num_steps <= usable:
            raise ValueError(
                f"spacing {spacing!r} of {usable} time steps cannot have {num_steps} steps"
            )
        steps = np.asarray(STEP_SPACINGS[spacing](num_steps, total, usable)).astype(np.int64)
        steps = steps + (offset if "leading" in spacing else 0)
    whole = steps.ndim == 1 and steps.size and np.issubdtype(steps.dtype, np.integer)
    if not (whole and np.all(np.diff(steps) < 0) and steps[0] < total and steps[-1] >= 0):
        raise ValueError(
            f"time steps must be whole numbers that fall from below {total} to at least 0; "
            f"spacing {spacing!r} gives {steps.tolist()}"
        )
    return steps


def step_grid(schedule: Schedule, steps: Sequence[int] | np.ndarray) -> TimeGrid:
    """The grid of a sampler that visits these time steps and ends at clean data."""
    return padded_grid(np.append((np.asarray(steps) + 1) / schedule.num_steps, 0.0))
