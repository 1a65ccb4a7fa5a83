"""The transformer in PyTorch, in float64, written from the paper's equations."""

import math

import numpy as np
import torch
from torch.nn import functional as F

from imagen_jax.storage.trees import flatten


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
        keys = torch.ones(len(x), patches + sum(y.shape[1] for y in others), dtype=bool)
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
        out = self.linear(h, "patch_out").unflatten(1, grid)
        out = out.unflatten(3, (cfg.patch_size, cfg.patch_size, cfg.out_channels))
        return out.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)
