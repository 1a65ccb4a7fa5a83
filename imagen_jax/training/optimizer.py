"""Optimizers: which one, its learning-rate schedule, clipping.

Imagen (2205.11487, F.1-F.3) trains the base model with Adafactor and the super-resolution models
with Adam(0.9, 0.999, 1e-8): peak rate 1e-4, 10,000 steps of linear warm-up, cosine decay to 0, no
weight decay.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import optax
from optax import contrib

from imagen_jax.typing import Params

Schedule = Callable[[jax.typing.ArrayLike], jax.typing.ArrayLike]


@dataclass(frozen=True)
class OptimizerConfig:
    """One optimizer.

    decay_steps: length of warm-up and cosine decay together; None keeps the peak rate after the
        warm-up.
    b1, b2, eps, decay_rate: None is the kind's own value, and all that a kind without it may be
        given (DEFAULTS). b1: decay of the momentum (adafactor: None has none); b2, decay_rate: of
        the squared gradients' mean, Adam's and Adafactor's way.
    clip_norm: largest global gradient norm; None never clips.
    accumulation: parts that each batch is worked off in, for want of memory: one update still, of
        the whole batch (`make_train_step`).
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

    def __post_init__(self):
        if self.kind not in OPTIMIZERS:
            raise ValueError(f"optimizer.kind {self.kind!r} is not one of {', '.join(OPTIMIZERS)}")
        for name in ("b1", "b2", "eps", "decay_rate"):
            if getattr(self, name) is not None and name not in DEFAULTS[self.kind]:
                raise ValueError(
                    f"optimizer.{name} is {getattr(self, name)!r}, but {self.kind!r} has none: "
                    f"set it to None (it has {', '.join(DEFAULTS[self.kind])})"
                )
        if self.weight_decay and self.kind in ("adam", "sgd"):
            raise ValueError(
                f"optimizer.weight_decay needs kind 'adamw': {self.kind!r} has none; set it to 0"
            )
        if not self.learning_rate > 0:
            raise ValueError(f"optimizer.learning_rate must be positive, not {self.learning_rate}")
        if self.warmup_steps < 0:
            raise ValueError(f"optimizer.warmup_steps must be 0 or more, not {self.warmup_steps}")
        if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
            raise ValueError(
                f"optimizer.decay_steps {self.decay_steps} must exceed warmup_steps "
                f"{self.warmup_steps} "
                "(it counts the warm-up too), or be None for a constant rate"
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"optimizer.clip_norm must be positive or None, not {self.clip_norm}")
        if self.accumulation < 1:
            raise ValueError(f"optimizer.accumulation must be 1 or more, not {self.accumulation}")

    def value(self, name: str) -> float | None:
        """b1, b2, eps or decay_rate as configured, else the kind's own."""
        given = getattr(self, name)
        return DEFAULTS[self.kind][name] if given is None else given


def learning_rate_schedule(config: OptimizerConfig) -> Schedule:
    """Linear warm-up from 0, then a cosine down to 0 at `decay_steps` (or constant); argument:
    update number.
    """
    if config.decay_steps is None:
        return optax.schedules.warmup_constant_schedule(
            0.0 if config.warmup_steps else config.learning_rate,
            config.learning_rate,
            config.warmup_steps,
        )
    return optax.schedules.warmup_cosine_decay_schedule(
        init_value=0.0 if config.warmup_steps else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=config.decay_steps,
    )


def _matrices(params: Params) -> Params:
    """True for kernels and tables, False for biases and norm scales, which weight decay leaves
    alone.
    """
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _adafactor(config: OptimizerConfig, rate: Schedule) -> optax.GradientTransformation:
    """Adafactor (1804.04235) with an absolute learning rate; weights decay as AdamW's do.

    The paper says "Adafactor, learning rate 1e-4" and no more. optax's default multiplies that by
    the size of each parameter (at least 1e-3): kernels that begin at zero, as the U-Nets' last ones
    do, would then move 1e-7 a step. Our choice is the rate as it stands.
    """
    momentum = config.value("b1")
    return optax.chain(
        optax.scale_by_factored_rms(decay_rate=config.value("decay_rate")),
        optax.clip_by_block_rms(1.0),
        optax.identity() if momentum is None else optax.ema(momentum, debias=False),
        optax.add_decayed_weights(config.weight_decay, mask=_matrices),
        optax.scale_by_learning_rate(rate),
    )


def _adam(config: OptimizerConfig, rate: Schedule) -> optax.GradientTransformation:
    return optax.adam(rate, config.value("b1"), config.value("b2"), config.value("eps"))


def _adamw(config: OptimizerConfig, rate: Schedule) -> optax.GradientTransformation:
    return optax.adamw(
        rate,
        config.value("b1"),
        config.value("b2"),
        config.value("eps"),
        weight_decay=config.weight_decay,
        mask=_matrices,
    )


def _lion(config: OptimizerConfig, rate: Schedule) -> optax.GradientTransformation:
    return optax.lion(
        rate,
        config.value("b1"),
        config.value("b2"),
        weight_decay=config.weight_decay,
        mask=_matrices,
    )


def _sgd(config: OptimizerConfig, rate: Schedule) -> optax.GradientTransformation:
    return optax.sgd(rate, momentum=config.value("b1"), nesterov=True)


def _muon_axes(params: Params) -> Params:
    """Kernels as matrices: every axis but the last is input. Tables, stacked layers' vectors and
    the rest: Adam.
    """

    def axes(path, leaf):
        names = jax.tree_util.keystr(path, simple=True, separator="/").lower()
        if leaf.ndim < 2 or not names.endswith("kernel"):
            return None
        first = 1 if "layers" in names.split("/") else 0  # scanned layers are stacked on axis 0
        if leaf.ndim - first < 2:
            return None
        return contrib.MuonDimensionNumbers(tuple(range(first, leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)


def _muon(config: OptimizerConfig, rate: Schedule) -> optax.GradientTransformation:
    """Muon for kernels (convolutions as [kh*kw*in, out]), AdamW for the rest.

    Updates are scaled to AdamW's usual size (2502.16982, eq. 4), so that AdamW's learning rate
    serves.
    """
    return contrib.muon(
        rate,
        weight_decay=config.weight_decay,
        weight_decay_mask=_matrices,
        adam_b1=config.value("b1"),
        adam_b2=config.value("b2"),
        eps=config.value("eps"),
        muon_weight_dimension_numbers=_muon_axes,
        consistent_rms=0.2,
    )


OPTIMIZERS = {
    "adafactor": _adafactor,
    "adam": _adam,
    "adamw": _adamw,
    "lion": _lion,
    "muon": _muon,
    "sgd": _sgd,
}
# What each kind can be given, and its value where the config has None.
DEFAULTS = {
    "adafactor": {"b1": None, "decay_rate": 0.8},
    "adam": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "adamw": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "lion": {"b1": 0.9, "b2": 0.99},
    "muon": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "sgd": {"b1": 0.9},
}


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clip the global norm -> optimizer at the scheduled rate."""
    optimizer = OPTIMIZERS[config.kind](config, learning_rate_schedule(config))
    if config.clip_norm is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    return optimizer
