"""The transformer: its blocks against public modules, the whole against PyTorch written from the
paper's equations, and properties that hold for any parameters.
"""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from imagen_jax import models
from imagen_jax.models import TransformerConfig
from imagen_jax.models.transformer import (
    size,
)
from imagen_jax.storage.trees import flatten
from imagen_jax.typing import TextEmbeddings

ROWS, COLUMNS, PATCH, BATCH, LENGTH, TEXT, CLASSES = 2, 3, 4, 2, 4, 24, 3
TINY = TransformerConfig(width=32, depth=3, heads=2, patch_size=PATCH, bottleneck=12)
CONFIGS = {
    "text": TINY,
    "text as tokens": replace(TINY, conditioning="tokens", condition_tokens=2),
    "label": replace(TINY, num_classes=CLASSES, class_tokens=5, class_start=1, low_res_channels=3),
    "label as tokens": replace(
        TINY,
        num_classes=CLASSES,
        class_tokens=5,
        class_start=1,
        low_res_channels=3,
        conditioning="tokens",
        bottleneck=None,
    ),
}
KINDS = sorted(CONFIGS)
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
apply = jax.jit(models.apply, static_argnums=0, compiler_options=QUICK)


def random_params(config, seed: int = 0):
    """Parameters that are nowhere zero: in a fresh network most of it has no influence."""
    rng = np.random.default_rng(seed)
    text_width = None if config.num_classes else TEXT
    shapes = jax.eval_shape(
        lambda key: models.init(config, key, resolution=8, text_width=text_width),
        jax.random.key(0),
    )
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0, x.shape[-2] ** -0.5 if x.ndim > 1 else 0.5, x.shape),
                              jnp.float32),
        shapes,
    )  # fmt: skip


def inputs_of(config, rng, rows=ROWS, columns=COLUMNS) -> dict:
    def images():
        shape = (BATCH, rows * PATCH, columns * PATCH, 3)
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    values = jnp.asarray(rng.normal(size=(BATCH, LENGTH, TEXT)), jnp.float32)
    inputs = {"x": images(), "time": jnp.array([700.0, 20.0])}
    if config.num_classes:
        inputs["label"] = jnp.array([0, CLASSES])
    else:
        inputs["text"] = TextEmbeddings(values, jnp.arange(LENGTH) < jnp.array([[2], [LENGTH]]))
    if config.low_res_channels:
        inputs |= {"low_res": images(), "aug_level": jnp.array([100.0, 300.0])}
    return inputs


def call(config, params, inputs):
    conditions = {name: value for name, value in inputs.items() if name not in ("x", "time")}
    return apply(config, params, inputs["x"], inputs["time"], **conditions)


def error(out, expected) -> float:
    """Relative L2."""
    out, expected = np.asarray(out, np.float64), np.asarray(expected, np.float64)
    return np.linalg.norm(out - expected) / np.linalg.norm(expected)


# ------------------------------------------------------- the whole, in PyTorch from the equations


class Reference:
    """arXiv 2511.13720, figure 3 and appendix A, with one loop over layers and no modules."""

    def __init__(self, config, params):
        self.config = config
        self.params = {
            name: torch.tensor(np.asarray(x, np.float64)) for name, x in flatten(params).items()
        }

    def linear(self, x, name, layer=...):
        out = x @ self.params[f"{name}/kernel"][layer]
        bias = self.params.get(f"{name}/bias")
        return out if bias is None else out + bias[layer]

    def norm(self, x, name, layer=...):
        scale = self.params[f"{name}/scale"][layer]
        return F.rms_norm(x, scale.shape, scale, eps=1e-6)

    def vector(self, x, name):
        name = f"conditions/{name}"
        return self.linear(F.silu(self.linear(x, f"{name}_in")), f"{name}_out")

    def waves(self, t):
        angles = t[:, None] * torch.exp(-math.log(10_000) * torch.arange(128).double() / 128)
        return torch.cat([angles.cos(), angles.sin()], -1)

    def turn(self, x, rows, columns):
        """Each head's channel pairs as complex numbers times exp(i angle); tokens without a place
        stay.
        """
        half = x.shape[-1] // 2
        pairs = torch.complex(x[..., :half], x[..., half:])
        frequencies = 10_000.0 ** (-torch.arange(half // 2).double() / (half // 2))
        row = torch.arange(rows).double()[:, None, None] * frequencies
        column = torch.arange(columns).double()[None, :, None] * frequencies
        shape = (rows, columns, half // 2)
        angles = torch.cat([row.expand(shape), column.expand(shape)], -1).flatten(0, 1)
        angles = F.pad(angles, (0, 0, 0, x.shape[1] - len(angles)))
        turned = pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
        return torch.cat([turned.real, turned.imag], -1)

    def layer(self, x, condition, keys, grid, name, i):
        modulation = [0, 0, 1] * 2
        if condition is not None:
            modulation = self.linear(F.silu(condition), f"{name}/modulation", i)[:, None]
            modulation = modulation.chunk(6, dim=-1)
        shift, scale, gate = modulation[:3]
        h = self.norm(x, f"{name}/attention_norm", i) * (1 + scale) + shift
        part, heads = f"{name}/attention", self.config.heads
        query, key, value = (
            self.linear(h, f"{part}/{which}", i).unflatten(-1, (heads, -1))
            for which in ("query", "key", "value")
        )
        query, key = (
            self.turn(self.norm(y, f"{part}/{which}_norm", i), *grid)
            for y, which in ((query, "query"), (key, "key"))
        )
        query, key, value = (y.transpose(1, 2) for y in (query, key, value))
        out = F.scaled_dot_product_attention(query, key, value, keys[:, None, None])
        x = x + gate * self.linear(out.transpose(1, 2).flatten(2), f"{part}/out", i)
        shift, scale, gate = modulation[3:]
        h = self.norm(x, f"{name}/mlp_norm", i) * (1 + scale) + shift
        gated, up = (self.linear(h, f"{name}/mlp/{which}", i) for which in ("gate", "up"))
        return x + gate * self.linear(F.silu(gated) * up, f"{name}/mlp/out", i)

    def embed(self, x):
        """Patches by a convolution, and the fixed embedding: columns first, sines first."""
        cfg = self.config
        name = "patch_in" if cfg.bottleneck is None else "bottleneck"
        kernel = self.params[f"{name}/kernel"]
        kernel = kernel.reshape(cfg.patch_size, cfg.patch_size, -1, kernel.shape[-1])
        h = F.conv2d(x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), stride=cfg.patch_size)
        rows, columns = h.shape[2:]
        h = h.flatten(2).transpose(1, 2)
        if cfg.bottleneck is None:
            h = h + self.params["patch_in/bias"]
        else:
            h = self.linear(h, "patch_in")
        quarter = cfg.width // 4
        frequencies = 10_000.0 ** (-torch.arange(quarter).double() / quarter)
        waves = [
            wave(place[:, None] * frequencies)
            for place in (
                torch.arange(columns).double().repeat(rows),
                torch.arange(rows).double().repeat_interleave(columns),
            )
            for wave in (torch.sin, torch.cos)
        ]
        return h + torch.cat(waves, -1), (rows, columns)

    def __call__(self, inputs):
        cfg = self.config
        given = {
            name: torch.tensor(np.asarray(value, np.float64))
            for name, value in inputs.items()
            if name not in ("text", "label")
        }
        x = given["x"]
        if cfg.low_res_channels:
            x = torch.cat([x, given["low_res"]], -1)
        h, grid = self.embed(x)
        patches = h.shape[1]
        vectors = {"time": self.vector(self.waves(given["time"]), "time")}
        if cfg.low_res_channels:
            vectors["aug_level"] = self.vector(self.waves(given["aug_level"]), "aug_level")
        others = [
            vector[:, None] + self.params[f"conditions/{name}_tokens"]
            for name, vector in vectors.items()
            if cfg.conditioning == "tokens"
        ]
        keys = torch.ones(BATCH, patches + sum(y.shape[1] for y in others), dtype=bool)
        classes = None
        if cfg.num_classes:
            vectors["label"] = self.params["conditions/label/embedding"][
                torch.tensor(np.asarray(inputs["label"])).long()
            ]
            classes = vectors["label"][:, None] + self.params["conditions/label_tokens"]
        else:
            mask = torch.tensor(np.asarray(inputs["text"].mask))
            values = torch.tensor(np.asarray(inputs["text"].values, np.float64))
            values = self.norm(values, "conditions/text_norm")
            others.append(self.linear(values, "conditions/text_projection"))
            keys = torch.cat([keys, mask], 1)
            if cfg.conditioning == "adaln":
                mean = torch.stack([v[m].mean(0) for v, m in zip(values, mask, strict=True)])
                vectors["text"] = self.vector(mean, "text")
        condition = sum(vectors.values()) if cfg.conditioning == "adaln" else None
        h = torch.cat([h, *others], 1)
        early = cfg.class_start if cfg.num_classes else 0
        for i in range(cfg.depth):
            if i == early and classes is not None:
                h = torch.cat([h, classes], 1)
                keys = F.pad(keys, (0, classes.shape[1]), value=True)
            name, number = ("early_layers", i) if i < early else ("layers", i - early)
            h = self.layer(h, condition, keys, grid, name, number)
        h = self.norm(h[:, :patches], "norm_out")
        if condition is not None:
            shift, scale = self.linear(F.silu(condition), "modulation")[:, None].chunk(2, dim=-1)
            h = h * (1 + scale) + shift
        out = self.linear(h, "patch_out").reshape(BATCH, *grid, PATCH, PATCH, cfg.out_channels)
        return out.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_it_equals_the_equations_in_pytorch(kind, rng):
    """Labels and text, adaLN and tokens, class tokens that join late, a low-resolution input."""
    config = CONFIGS[kind]
    params, inputs = random_params(config), inputs_of(config, rng)
    out = call(config, params, inputs)
    expected = Reference(config, params)(inputs).reshape(out.shape)
    assert error(out, expected) < 1e-5


# ------------------------------------------------------------------------------- the networks


@pytest.mark.parametrize(
    ("name", "patch_size", "millions"),
    [("B", 16, 131), ("B", 32, 133), ("L", 16, 459), ("H", 16, 953), ("G", 16, 2007)],
)
def test_published_numbers_of_parameters(name, patch_size, millions):
    """arXiv 2511.13720, tables 5, 7 and 8 (there "2B")."""
    config = size(name, patch_size=patch_size, num_classes=1000)
    shapes = jax.eval_shape(
        lambda key: models.init(config, key, resolution=16 * patch_size), jax.random.key(0)
    )
    assert round(sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6) == millions


def test_padding_does_not_matter_wherever_it_is(rng):
    params, inputs = random_params(TINY), inputs_of(TINY, rng)
    values, mask = inputs["text"]
    out = call(TINY, params, inputs)
    padded = TextEmbeddings(jnp.where(mask[..., None], values, 1e3), mask)
    np.testing.assert_array_equal(out, call(TINY, params, {**inputs, "text": padded}))
    turned = TextEmbeddings(padded.values[:, ::-1], mask[:, ::-1])
    np.testing.assert_allclose(
        out, call(TINY, params, {**inputs, "text": turned}), atol=1e-5 * float(jnp.abs(out).max())
    )


def test_a_fresh_network_gives_zeros(rng):
    inputs = inputs_of(TINY, rng)
    params = models.init(TINY, jax.random.key(0, impl="rbg"), resolution=8, text_width=TEXT)
    np.testing.assert_array_equal(call(TINY, params, inputs), 0)
