"""What is measured: the cases by name, their networks and sizes, and who does the same work.

Plain values: each side reads them in a process of its own, the peers' without JAX.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

OURS = "imagen_jax"
DIFFUSERS = ("diffusers", "diffusers compiled")
TRANSFORMERS = ("transformers", "transformers compiled")
IMAGEN_PYTORCH = ("imagen-pytorch",)
CPU_PEERS = ("imagen-pytorch", "torch-fidelity")
SIZES = ("full", "small", "tiny")
# XLA's devices on a CPU, where there is only one.
SIMULATED = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}


@dataclass(frozen=True)
class Case:
    """One kind of work. full: its values for accelerators, None for those of small; small: for
    CPUs; tiny: what differs from small in a trial.

    sides: what of ours is measured, with the values of its own. peers: who does the same.
    tolerance: share by which the numbers of parameters may differ, None where they do not compare.
    device: "cpu" or "accelerator" where the case is measured by default, None on both.
    """

    kind: str
    small: dict[str, Any]
    tiny: dict[str, Any]
    full: dict[str, Any] | None = None
    sides: dict[str, dict[str, Any]] = field(default_factory=lambda: {OURS: {}})
    peers: tuple[str, ...] = ()
    tolerance: float | None = 0.0
    device: str | None = None

    def values(self, size: str) -> dict[str, Any]:
        chosen = self.full if size == "full" and self.full else self.small
        return {"kind": self.kind, **chosen, **(self.tiny if size == "tiny" else {})}


# --------------------------------------------------------------- a U-Net as DeepFloyd IF's stage I


def _if_like(channels: Sequence[int], blocks: int, text: int, attended: int, head: int) -> dict:
    """config.json of diffusers' UNet2DConditionModel."""
    deeper = len(channels) - 1
    return {
        "in_channels": 3,
        "out_channels": 6,
        "layers_per_block": blocks,
        "block_out_channels": [*channels],
        "attention_head_dim": head,
        "encoder_hid_dim": text,
        "encoder_hid_dim_type": "text_proj",
        "cross_attention_dim": attended,
        "cross_attention_norm": "group_norm",
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": min(64, text // 4),
        "resnet_time_scale_shift": "scale_shift",
        "act_fn": "gelu",
        "norm_num_groups": 32,
        "down_block_types": ["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * deeper,
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ["SimpleCrossAttnUpBlock2D"] * deeper + ["ResnetUpsampleBlock2D"],
    }


IF_FULL = {
    "diffusers": _if_like((192, 384, 576, 768), 3, 1024, 768, 64),
    "resolution": 64,
    "text": (77, 1024),
}
IF_SMALL = {
    "diffusers": _if_like((96, 192, 288), 2, 256, 288, 32),
    "resolution": 32,
    "text": (32, 256),
}
IF_TINY = {
    "diffusers": _if_like((32, 64), 1, 64, 32, 16),
    "resolution": 16,
    "text": (8, 64),
}
IF_SAMPLING = {"steps": 50, "guidance": 7.0, "percentile": 95.0, "cap": 1.5}

# ------------------------------------------------ the paper's base at two cores' size, two sides


def levels(*rows: tuple[int, int, int, str | None]) -> list[dict]:
    names = ("channels", "num_res_blocks", "stride", "attention")
    return [dict(zip(names, row, strict=True)) for row in rows]


PAPER_LEVELS = [
    {"channels": 96, "num_res_blocks": 2, "attention": None},
    {"channels": 192, "num_res_blocks": 2, "attention": "self"},
    {"channels": 288, "num_res_blocks": 2, "attention": "self"},
]
# Of about as many parameters: imagen-pytorch's usual U-Net.
PYTORCH_UNET = {
    "dim_mults": (1, 2, 3),
    "num_resnet_blocks": 2,
    "layer_attns": (False, True, True),
    "layer_cross_attns": (False, True, True),
}
UNET_32 = {
    "network": {"kind": "unet", "levels": PAPER_LEVELS},
    "imagen_pytorch": PYTORCH_UNET | {"dim": 104, "attn_heads": 6, "ff_mult": 3.0},
    "resolution": 32,
    "text": (32, 256),
}
UNET_TINY = {
    "network": {
        "kind": "unet",
        "levels": [{"channels": 64, "num_res_blocks": 1, "attention": "self"}] * 2,
    },
    "imagen_pytorch": {
        "dim_mults": (1, 1),
        "num_resnet_blocks": 1,
        "dim": 48,
        "attn_heads": 6,
        "ff_mult": 2.0,
    },
    "resolution": 16,
}
DDPM = {"steps": 8, "guidance": 3.0, "percentile": 95.0, "cap": None}

# ------------------------------------------------------------- networks of as many parameters


def _transformer(width: int, depth: int, patch_size: int) -> dict:
    """Heads of 64 channels, and no bottleneck, which only large patches need."""
    sizes = {"width": width, "depth": depth, "heads": width // 64, "patch_size": patch_size}
    return {"kind": "transformer", "bottleneck": None, **sizes}


def _efficient_unet(patch_size: int, *rows: tuple, **fields: Any) -> dict:
    return {"kind": "efficient_unet", "patch_size": patch_size, "levels": levels(*rows)} | fields


NARROW = {"attention_hidden_ratio": 1.0, "embedding_width": 384}
FEW_HEADS = {"num_heads": 4, "attention_hidden_ratio": 1.0, "embedding_width": 256}
UNET_4M = {
    "kind": "unet",
    "levels": [
        {"channels": 32, "num_res_blocks": 1, "attention": None},
        {"channels": 64, "num_res_blocks": 1, "attention": None},
        {"channels": 108, "num_res_blocks": 2, "attention": "self"},
    ],
    "head_channels": 32,
    "embedding_width": 256,
}
# U-Nets on larger patches do less work per parameter.
PATCH_2 = _efficient_unet(2, (96, 2, 1, None), (192, 2, 2, None), (288, 2, 2, "self"))
NETWORKS = {
    "networks_32_4M": {
        "unet": UNET_4M,
        "efficient_unet, patch 2": _efficient_unet(
            2, (80, 1, 1, None), (160, 2, 2, "self"), **FEW_HEADS
        ),
        "transformer, patch 4": _transformer(192, 6, 4),
    },
    "networks_64_17M": {
        "efficient_unet, patch 2": PATCH_2,
        "transformer, patch 8": _transformer(320, 9, 8),
    },
    "networks_64_23M": {
        "efficient_unet, patch 4": _efficient_unet(
            4, (192, 2, 1, None), (384, 2, 2, "self"), **NARROW
        ),
        "efficient_unet, patch 8": _efficient_unet(
            8, (320, 1, 1, "self"), (448, 1, 2, "self"), **NARROW
        ),
        "transformer, patch 8": _transformer(384, 8, 8),
    },
    "networks_64_38M": {
        "efficient_unet, patch 8": _efficient_unet(
            8, (320, 1, 1, "self"), (448, 2, 2, "self"), embedding_width=512
        ),
        "transformer, patch 8": _transformer(448, 10, 8),
    },
}


def _networks(name: str, networks: dict[str, dict]) -> Case:
    values = {"batch": 32, "resolution": int(name.split("_")[1]), "text": (20, 256)}
    sides = {side: {"network": network} for side, network in networks.items()}
    return Case("train", values, {"batch": 2}, sides=sides, tolerance=0.06, device="cpu")


# ------------------------------------------------------------------------------------- all of them


NARROW_LEVELS = {"channels": 64, "num_res_blocks": 1}


def _paper(name: str, optimizer: str, small_batch: int, stage: dict) -> Case:
    """A stage of the paper: at full size, and its small form. stage: what a trial changes."""
    full = {"config": name, "batch": 64, "text": (128, 4096), "optimizer": optimizer}
    small = {"config": f"{name}_small", "batch": small_batch, "text": (128, 1024)}
    tiny = {"levels": NARROW_LEVELS, "batch": 2, "stage": stage, "text": (8, 64)}
    return Case("train", full | small, tiny, full)


def _encoder(sizes: Sequence[int], batch: int, device: str | None) -> Case:
    """T5 v1.1's: width, heads, layers, width of the feed-forward layers."""
    names = ("d_model", "num_heads", "num_layers", "d_ff")
    encoder = dict(zip(names, sizes, strict=True)) | {"vocab_size": 32128}
    small = {"encoder": encoder, "length": 128, "batch": batch}
    tiny = {"batch": 2, "length": 8, "encoder": encoder | {"num_layers": 2, "vocab_size": 512}}
    full = small | {"batch": 64}
    return Case("encode", small, tiny, full, peers=TRANSFORMERS, device=device)


ICONS = {"config": "icons_base64_cpu", "batch": 16, "text": (32, 256)}
ICONS_PYTORCH = PYTORCH_UNET | {"dim": 80, "attn_heads": 12, "ff_mult": 4.0}
SAMPLES_TINY = {"batch": 2, "steps": 2}
CASES = {
    "if_train": Case(
        "train", IF_SMALL | {"batch": 16}, IF_TINY | {"batch": 2}, IF_FULL | {"batch": 128},
        peers=DIFFUSERS,
    ),
    "if_sample": Case(
        "sample", IF_SMALL | IF_SAMPLING | {"batch": 4, "steps": 10}, IF_TINY | SAMPLES_TINY,
        IF_FULL | IF_SAMPLING | {"batch": 16}, peers=DIFFUSERS,
    ),
    "if_sample_1": Case(
        "sample", IF_SMALL | IF_SAMPLING | {"batch": 1, "steps": 10}, IF_TINY | SAMPLES_TINY,
        IF_FULL | IF_SAMPLING | {"batch": 1}, peers=DIFFUSERS, device="accelerator",
    ),
    "unet_32": Case(
        "train", UNET_32 | {"batch": 32}, UNET_TINY | {"batch": 2},
        peers=IMAGEN_PYTORCH, tolerance=0.05, device="cpu",
    ),
    "unet_32_sample": Case(
        "sample", UNET_32 | DDPM | {"batch": 4}, UNET_TINY | SAMPLES_TINY,
        peers=IMAGEN_PYTORCH, tolerance=0.05, device="cpu",
    ),
    "base64": _paper("imagen_base64", "adafactor", 2, {"resolution": 16}),
    "sr256": _paper("imagen_sr256", "adam", 1, {"resolution": 32, "low_resolution": 8}),
    "icons_train": Case(
        "train",
        ICONS | {"imagen_pytorch": ICONS_PYTORCH},
        {"batch": 2, "levels": NARROW_LEVELS, "imagen_pytorch": UNET_TINY["imagen_pytorch"]},
        ICONS | {"config": "icons_base64", "batch": 64},
        peers=IMAGEN_PYTORCH, tolerance=0.05,
    ),
    "icons_generate": Case("generate", {"images": 8}, {"images": 1, "options": ["--steps", "2"]}),
    "t5_small": _encoder((512, 6, 8, 1024), 16, "cpu"),
    "t5_base": _encoder((768, 12, 12, 2048), 16, None),
    "t5_xl": _encoder((2048, 32, 24, 5120), 2, "accelerator"),
    "devices": Case(
        "train",
        {"network": PATCH_2, "resolution": 64, "text": (20, 256), "batch": 16},
        {"network": _transformer(64, 1, 8), "resolution": 16, "batch": 8},
        IF_FULL | {"batch": 128},
        sides={"1 device": {"devices": 1}, "all devices": {"devices": None}},
    ),
    **{name: _networks(name, networks) for name, networks in NETWORKS.items()},
    "features": Case(
        "features", {"batch": 16, "pixels": 256}, {"batch": 2},
        peers=("torch-fidelity",), tolerance=None, device="cpu",
    ),
    "tar": Case(
        "tar", {"images": 2000, "batch": 50, "resolution": 256}, {"images": 100, "batch": 10},
        sides={"decoding alone": {"bare": True}, "loader": {}}, tolerance=None, device="cpu",
    ),
    "memory": Case(
        "memory", {"images": 4096, "batch": 256, "resolution": 64}, {"images": 64, "batch": 16},
        sides={"sent": {"on_device": False}, "on the device": {"on_device": True}}, tolerance=None,
    ),
}  # fmt: skip


def default_cases(platform: str, devices: int) -> list[str]:
    """What is measured on so many devices of a platform of JAX's."""
    here = "cpu" if platform == "cpu" else "accelerator"
    alone = here == "accelerator" and devices == 1
    return [
        name
        for name, case in CASES.items()
        if case.device in (None, here) and not (alone and name == "devices")
    ]
