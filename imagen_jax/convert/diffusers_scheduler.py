"""A scheduler's file in diffusers' layout: its schedule, and how images are sampled with it."""

import math
import sys
from collections.abc import Mapping
from typing import Any

from imagen_jax.convert.fields import Fields, known_fields
from imagen_jax.diffusion.schedules import BETAS, MAX_TIME_STEPS, DiscreteBeta

DDPM, SOLVER = "DDPMScheduler", "DPMSolverMultistepScheduler"
UNIPC = "UniPCMultistepScheduler"

# What a field that scheduler_config.json leaves out stands for.
_COMMON = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "steps_offset": 0,
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
}
_MULTISTEP = {
    "timestep_spacing": "linspace",
    "solver_order": 2,
    "final_sigmas_type": "zero",
    "lower_order_final": True,
    # Of a kind of prediction that is refused.
    "flow_shift": 1.0,
    "time_shift_type": "exponential",
}
DEFAULTS = {
    DDPM: {
        **_COMMON,
        "variance_type": "fixed_small",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "timestep_spacing": "leading",
    },
    SOLVER: {
        **_COMMON,
        **_MULTISTEP,
        "variance_type": None,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lambda_min_clipped": -math.inf,
        # As lower_order_final, of no effect with final_sigmas_type "zero": that ends with a step of
        # first order.
        "euler_at_final": False,
    },
    UNIPC: {
        **_COMMON,
        **_MULTISTEP,
        "solver_type": "bh2",
        "predict_x0": True,
        "disable_corrector": [],
        "solver_p": None,
    },
}
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_OF_SOLVERS = {"leading": "dpm_leading", "trailing": "trailing", "linspace": "dpm_linspace"}
SPACINGS = {
    DDPM: {"leading": "leading", "trailing": "trailing", "linspace": "linspace"},
    SOLVER: _OF_SOLVERS,
    UNIPC: _OF_SOLVERS,
}
# Whether the network's own variance is taken, and the gamma of ddpm otherwise.
VARIANCES = {
    "learned_range": (True, 0.0),
    "fixed_small": (False, 0.0),
    "fixed_small_log": (False, 0.0),
    "fixed_large": (False, 1.0),
}


def scheduler_fields(
    values: Mapping[str, Any], owner: str, known: tuple[str, ...] = (DDPM, SOLVER, UNIPC)
) -> tuple[str, Fields]:
    """(the scheduler's class, its fields). ValueError: another class, or a field that is unknown.

    Args:
        owner: what the file is called in messages.
        known: classes that will do here.
    """
    name = values.get("_class_name", DDPM)
    Fields(owner, {"_class_name": name}).choice("_class_name", dict.fromkeys(known))
    # A file written after a change of scheduler keeps the other one's fields, of no effect.
    idle = {field for fields in DEFAULTS.values() for field in fields}
    fields = known_fields(owner, values, DEFAULTS[name], idle, name)
    if fields.values["trained_betas"] is not None:
        fields.refuse("trained_betas", "null")
    if fields.flag("rescale_betas_zero_snr"):
        fields.refuse("rescale_betas_zero_snr", "false")
    return name, fields


def schedule_of(fields: Fields) -> DiscreteBeta:
    """The schedule of a scheduler's fields."""
    kind = fields.choice("beta_schedule", {name: name for name in BETAS})
    start, end = fields.positive("beta_start"), fields.positive("beta_end")
    if not start <= end < 1:
        fields.refuse("beta_end", "a number from beta_start to below 1")
    return DiscreteBeta(kind, start, end, fields.count("num_train_timesteps", MAX_TIME_STEPS))


def _threshold(name: str, fields: Fields) -> dict[str, Any]:
    if fields.flag("thresholding"):
        ratio = fields.positive("dynamic_thresholding_ratio", most=1.0)
        cap = fields.positive("sample_max_value")
        if cap < 1:
            fields.refuse("sample_max_value", "a number from 1")
        return {"threshold": "dynamic", "percentile": 100 * ratio, "cap": cap}
    if name != DDPM or not fields.flag("clip_sample"):
        return {"threshold": "none"}
    if fields.positive("clip_sample_range") != 1:
        fields.refuse("clip_sample_range", "1")
    return {"threshold": "static"}


def _unipc(fields: Fields) -> dict[str, Any]:
    """UniPC (arXiv 2302.04867) with B_2."""
    for field, value in {"solver_type": "bh2", "final_sigmas_type": "zero"}.items():
        fields.choice(field, {value: value})
    for field in ("predict_x0", "lower_order_final"):
        if not fields.flag(field):
            fields.refuse(field, "true")
    samplers = {2: "unipc", 3: "unipc_3"}
    if fields.count("solver_order") not in samplers:
        fields.refuse("solver_order", "2 or 3")
    for field, value in {"disable_corrector": [], "solver_p": None}.items():
        if fields.values[field] != value:
            fields.refuse(field, repr(value))
    return {"sampler": samplers[fields.count("solver_order")]}


def _solver(fields: Fields) -> dict[str, Any]:
    """DPM-Solver++ (2M) (arXiv 2211.01095) and the same for the SDE. The file's order 3 is not
    ours, which has the whole of its last term.
    """
    for field, value in {"solver_type": "midpoint", "final_sigmas_type": "zero"}.items():
        fields.choice(field, {value: value})
    samplers = {"dpmsolver++": "dpmpp_2m", "sde-dpmsolver++": "dpmpp_2m_sde"}
    sampler = fields.choice("algorithm_type", samplers)
    if fields.count("solver_order") != 2:
        fields.refuse("solver_order", "2")
    fields.choice("variance_type", {None: None, "learned_range": None})
    lowest = fields.values["lambda_min_clipped"]
    if lowest == -math.inf:
        return {"sampler": sampler, "lambda_min": None}
    if type(lowest) not in (int, float) or not abs(lowest) <= sys.float_info.max:
        fields.refuse("lambda_min_clipped", "a number")
    if fields.values["timestep_spacing"] == "trailing":
        fields.refuse("timestep_spacing", "leading or linspace, with lambda_min_clipped")
    return {"sampler": sampler, "lambda_min": float(lowest)}


def settings_of(name: str, fields: Fields, learns_variance: bool) -> dict[str, Any]:
    """The part of Sampling that a scheduler's file holds."""
    if fields.values["steps_offset"] != 0:
        fields.count("steps_offset")
    if name in (SOLVER, UNIPC):
        own = _solver(fields) if name == SOLVER else _unipc(fields)
    else:
        learned, gamma = fields.choice("variance_type", VARIANCES)
        own = {"sampler": "ddpm", "learned_variance": learned, "gamma": gamma}
        if learned and not learns_variance:
            fields.refuse("variance_type", "one that is not learned, as the U-Net gives none")
    return {
        **own,
        "spacing": fields.choice("timestep_spacing", SPACINGS[name]),
        "steps_offset": fields.values["steps_offset"],
        **_threshold(name, fields),
    }
