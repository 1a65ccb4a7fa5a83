"""Optimizers: which one, its learning-rate schedule, clipping.

Imagen (2205.11487, F.1-F.3) trains the base model with Adafactor and the super-resolution models
with Adam(0.9, 0.999, 1e-8): peak rate 1e-4, 10,000 steps of linear warm-up, cosine decay to 0, no
weight decay.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from imagen_jax.devices.sharding import STACKED
from imagen_jax.storage.codec import require
from imagen_jax.typing import Params

Schedule = Callable[[jax.typing.ArrayLike], jax.typing.ArrayLike]


@dataclass(frozen=True)
class OptimizerConfig:
    """One optimizer.

    decay_steps: length of warm-up and cosine decay together; None keeps the peak rate after the
        warm-up.
    b1, b2, eps, decay_rate: None is the kind's own value, and must be left where the kind has none
        (DEFAULTS). b1: decay of the momentum (adafactor: None for no momentum); b2, decay_rate: of
        the mean of squared gradients, as in Adam and in Adafactor.
    weight_decay: of kernels and tables; biases and norm scales, also of stacked layers, do not
        decay.
    clip_norm: largest global gradient norm; None never clips.
    accumulation: micro-batches that each batch is split into, to save memory; there is still one
        update, of the whole batch (`make_train_step`).
    keep_zeros: weights of kernels that are zero stay zero, as of a pruned model
        (imagen-jax prune).
    """

    kind: str = "adam"
    learning_rate: float = 1e-4
    warmup_steps: int = 10_000
    decay_steps: int | None = None
    b1: float | None = None
    b2: float | None = None
    eps: float | None = None
    decay_rate: float | None = None
    weight_decay: float = 0.0
    clip_norm: float | None = None
    accumulation: int = 1
    keep_zeros: bool = False

    def __post_init__(self):
        if self.kind not in OPTIMIZERS:
            raise ValueError(f"optimizer.kind {self.kind!r} is not one of {', '.join(OPTIMIZERS)}")
        for name in ("b1", "b2", "eps", "decay_rate"):
            if getattr(self, name) is not None and name not in DEFAULTS[self.kind]:
                raise ValueError(
                    f"optimizer.{name} is {getattr(self, name)!r}, but {self.kind!r} has none: "
                    f"set it to None (it has {', '.join(DEFAULTS[self.kind])})"
                )
        rate, warmup, norm = self.learning_rate, self.warmup_steps, self.clip_norm
        require(
            (
                not self.weight_decay or "weight_decay" in DEFAULTS[self.kind],
                f"optimizer.weight_decay needs kind 'adamw': {self.kind!r} has none; set it to 0",
            ),
            (rate > 0, f"optimizer.learning_rate must be positive, not {rate}"),
            (warmup >= 0, f"optimizer.warmup_steps must be 0 or more, not {warmup}"),
            (
                norm is None or norm > 0,
                f"optimizer.clip_norm must be positive or None, not {norm}",
            ),
            (
                self.accumulation >= 1,
                f"optimizer.accumulation must be 1 or more, not {self.accumulation}",
            ),
            (
                self.decay_steps is None or self.decay_steps > warmup,
                f"optimizer.decay_steps {self.decay_steps} must exceed warmup_steps {warmup} (it "
                "counts the warm-up too), or be None for a constant rate",
            ),
        )


def learning_rate_schedule(config: OptimizerConfig) -> Schedule:
    """Linear warm-up from 0, then a cosine down to 0 at `decay_steps` (or constant); argument:
    update number.
    """
    start = 0.0 if config.warmup_steps else config.learning_rate
    rates = (start, config.learning_rate, config.warmup_steps)
    if config.decay_steps is None:
        return optax.schedules.warmup_constant_schedule(*rates)
    return optax.schedules.warmup_cosine_decay_schedule(*rates, config.decay_steps)


def _matrices(params: Params) -> Params:
    """True for kernels and tables, False for biases and norm scales, which weight decay leaves
    alone.
    """

    def matrix(path, leaf):
        return leaf.ndim - bool(STACKED.search(_name(path))) > 1

    return jax.tree_util.tree_map_with_path(matrix, params)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _adafactor(
    rate: Schedule, b1: float | None, decay_rate: float, weight_decay: float
) -> optax.GradientTransformation:
    """Adafactor (1804.04235) with an absolute learning rate; weights decay as AdamW's do.

    The paper says "Adafactor, learning rate 1e-4" and no more. optax's default multiplies that by
    the size of each parameter (at least 1e-3): kernels that begin at zero, as the U-Nets' last ones
    do, would then move 1e-7 a step. Our choice is the rate as it stands.
    """
    return optax.chain(
        optax.scale_by_factored_rms(decay_rate=decay_rate),
        optax.clip_by_block_rms(1.0),
        optax.identity() if b1 is None else optax.ema(b1, debias=False),
        optax.add_decayed_weights(weight_decay, mask=_matrices),
        optax.scale_by_learning_rate(rate),
    )


def _sgd(rate: Schedule, b1: float) -> optax.GradientTransformation:
    return optax.sgd(rate, momentum=b1, nesterov=True)


def _muon_axes(params: Params) -> Params:
    """Kernels as matrices: every axis but the last is input. Tables, stacked layers' vectors and
    the rest: Adam.
    """

    def axes(path, leaf):
        first = 1 if STACKED.search(_name(path)) else 0
        if leaf.ndim - first < 2 or not _name(path).lower().endswith("kernel"):
            return None
        return contrib.MuonDimensionNumbers(tuple(range(first, leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)


def _muon(
    rate: Schedule, b1: float, b2: float, eps: float, weight_decay: float
) -> optax.GradientTransformation:
    """Muon for kernels (convolutions as [kh*kw*in, out]), AdamW for the rest.

    Updates are scaled to AdamW's usual size (2502.16982, eq. 4), so that AdamW's learning rate can
    be used.
    """
    return contrib.muon(
        rate,
        weight_decay=weight_decay,
        weight_decay_mask=_matrices,
        adam_b1=b1,
        adam_b2=b2,
        eps=eps,
        muon_weight_dimension_numbers=_muon_axes,
        consistent_rms=0.2,
    )


# Called with the rate, and with what DEFAULTS says by name.
OPTIMIZERS = {
    "adafactor": _adafactor,
    "adam": optax.adam,
    "adamw": partial(optax.adamw, mask=_matrices),
    "lion": partial(optax.lion, mask=_matrices),
    "muon": _muon,
    "sgd": _sgd,
}
# What each kind can be given, and its value where the config has None.
DEFAULTS = {
    "adafactor": {"b1": None, "decay_rate": 0.8, "weight_decay": 0.0},
    "adam": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "adamw": {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.0},
    "lion": {"b1": 0.9, "b2": 0.99, "weight_decay": 0.0},
    "muon": {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.0},
    "sgd": {"b1": 0.9},
}


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clip the global norm -> optimizer at the scheduled rate."""
    given = {name: getattr(config, name) for name in DEFAULTS[config.kind]}
    chosen = {name: value for name, value in given.items() if value is not None}
    values = DEFAULTS[config.kind] | chosen
    optimizer = OPTIMIZERS[config.kind](learning_rate_schedule(config), **values)
    if config.clip_norm is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    return optax.chain(optimizer, optax.stateless(_zeros_kept)) if config.keep_zeros else optimizer


def _zeros_kept(updates: Params, params: Params) -> Params:
    """No update where a kernel's weight is zero."""

    def kept(path, update, weight):
        return jnp.where(weight == 0, 0, update) if _name(path).endswith("/kernel") else update

    return jax.tree_util.tree_map_with_path(kept, updates, params)
