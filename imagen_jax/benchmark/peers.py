"""The peers' side of the benchmark, in an environment that has them: PyTorch on the same work.

    python -m venv PEERS
    PEERS/bin/pip install torch==2.13.0 diffusers==0.42.1 transformers
    PEERS/bin/pip install einops beartype tqdm            # and, on CPUs, without what it asks for:
    PEERS/bin/pip install --no-deps imagen-pytorch torch-fidelity

Their networks and samplers run unchanged. What imagen-pytorch and torch-fidelity import and this
never calls (torchvision, kornia, ...) is replaced by empty modules. Nothing is downloaded.
"""

import importlib
import importlib.util
import os
import sys
import tempfile
import types
from collections.abc import Callable
from importlib.metadata import version
from typing import Any
from unittest import mock

import torch

from imagen_jax.benchmark.child import Work, serve

LEARNING_RATE, EMA_DECAY = 1e-4, 0.9999
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
DTYPE = torch.bfloat16 if CUDA else torch.float32
UNUSED = (
    *("torchvision", "torchvision.transforms", "kornia", "kornia.augmentation"),
    *("transformers", "accelerate", "ema_pytorch", "pytorch_warmup", "datasets"),
)


def wait(_: Any) -> None:
    if CUDA:
        torch.cuda.synchronize()


def figures() -> dict[str, int]:
    return {"device_bytes": torch.cuda.max_memory_allocated()} if CUDA else {}


def work(spec: dict[str, Any], call: Callable, network: torch.nn.Module) -> Work:
    """What the parent is told; the first call is made here, and its memory is given back."""
    library = spec["side"].partition(" ")[0]
    facts = {
        "library": library,
        "versions": {name: version(name) for name in ("torch", library)},
        "device": torch.cuda.get_device_name() if CUDA else f"CPU, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in network.parameters()),
        "batch": spec["batch"],
        "dtype": str(DTYPE).removeprefix("torch."),
    }
    call()
    wait(None)
    if CUDA:
        torch.cuda.empty_cache()
    return Work(call, spec["batch"], facts, wait, started=True, figures=figures)


def compiled(spec: dict[str, Any], network: torch.nn.Module) -> Callable:
    return torch.compile(network) if spec["side"].endswith("compiled") else network


def step_of(loss_of: Callable[[], torch.Tensor], network: torch.nn.Module, kind: Any) -> Callable:
    """A train step: gradients, the optimizer, the moving average of the weights."""
    weights = [p for p in network.parameters() if p.requires_grad]
    averages = [p.detach().clone() for p in weights]
    optimizer = kind(weights, lr=LEARNING_RATE, **({"fused": True} if CUDA else {}))

    def step() -> torch.Tensor:
        loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(averages, [p.detach() for p in weights], 1 - EMA_DECAY)
        return loss

    return step


# -------------------------------------------------------------------------------------- diffusers


def diffusers_unet(spec: dict[str, Any], dtype: torch.dtype) -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    network = UNet2DConditionModel(sample_size=spec["resolution"], **spec["diffusers"])
    return network.to(DEVICE, dtype).to(memory_format=torch.channels_last)


def scheduler(**options: Any) -> Any:
    from diffusers import DDPMScheduler

    return DDPMScheduler(beta_schedule="squaredcos_cap_v2", **options)


def diffusers_train(spec: dict[str, Any]) -> Work:
    """eps as the target, in bfloat16 autocast on GPUs."""
    n, side, (length, width) = spec["batch"], spec["resolution"], spec["text"]
    network, noising = diffusers_unet(spec, torch.float32), scheduler()
    forward = compiled(spec, network)
    images = torch.randn(n, 3, side, side, device=DEVICE).to(memory_format=torch.channels_last)
    text = torch.randn(n, length, width, device=DEVICE)

    def loss() -> torch.Tensor:
        noise, t = torch.randn_like(images), torch.randint(0, 1000, (n,), device=DEVICE)
        noisy = noising.add_noise(images, noise, t)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=CUDA):
            output = forward(noisy, t, encoder_hidden_states=text).sample[:, :3]
        return torch.nn.functional.mse_loss(output.float(), noise)

    return work(spec, step_of(loss, network, torch.optim.AdamW), network)


def diffusers_sample(spec: dict[str, Any]) -> Work:
    """Guided DDPM with the learned variance and dynamic thresholding, as IF's pipelines do."""
    n, side, (length, width) = spec["batch"], spec["resolution"], spec["text"]
    network = diffusers_unet(spec, DTYPE).eval()
    forward = compiled(spec, network)
    ddpm = scheduler(
        variance_type="learned_range",
        thresholding=True,
        dynamic_thresholding_ratio=spec["percentile"] / 100,
        sample_max_value=spec["cap"],
    )
    text = torch.randn(2 * n, length, width, device=DEVICE, dtype=DTYPE)

    @torch.no_grad()
    def sample() -> torch.Tensor:
        ddpm.set_timesteps(spec["steps"], device=DEVICE)
        x = torch.randn(n, 3, side, side, device=DEVICE, dtype=DTYPE)
        for t in ddpm.timesteps:
            away, towards = forward(torch.cat([x, x]), t, encoder_hidden_states=text).sample.chunk(
                2
            )
            (away, _), (towards, variance) = away.split(3, 1), towards.split(3, 1)
            guided = away + spec["guidance"] * (towards - away)
            x = ddpm.step(torch.cat([guided, variance], 1), t, x).prev_sample
        return x

    return work(spec, sample, network)


# --------------------------------------------------------------------------------- imagen-pytorch


def without_init(package: str) -> None:
    """Lets modules of a package be imported without its __init__, which asks for more."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"{package} is missing: pip install --no-deps {package}")
    sys.modules[package] = types.ModuleType(package)
    sys.modules[package].__path__ = list(spec.submodule_search_locations)


def imagen_pytorch(spec: dict[str, Any]) -> tuple[Any, tuple]:
    """Its `Imagen`, and (images, text, mask)."""
    n, side, (length, width) = spec["batch"], spec.get("resolution", 64), spec["text"]
    sys.modules.update({name: mock.MagicMock(name=name) for name in UNUSED})
    sys.modules["transformers"].T5Config.from_pretrained.return_value.d_model = width
    without_init("imagen_pytorch")
    module = importlib.import_module("imagen_pytorch.imagen_pytorch")
    unet = module.Unet(**spec["imagen_pytorch"], text_embed_dim=width, max_text_len=length)
    steps = {"timesteps": spec.get("steps", 1000)}
    imagen = module.Imagen(unet, image_sizes=side, text_embed_dim=width, **steps)
    mask = torch.ones(n, length, dtype=torch.bool)
    return imagen, (torch.rand(n, 3, side, side), torch.randn(n, length, width), mask)


def imagen_pytorch_train(spec: dict[str, Any]) -> Work:
    imagen, (images, text, mask) = imagen_pytorch(spec)
    loss = lambda: imagen(images, text_embeds=text, text_masks=mask, unet_number=1)  # noqa: E731
    return work(spec, step_of(loss, imagen, torch.optim.AdamW), imagen)


def imagen_pytorch_sample(spec: dict[str, Any]) -> Work:
    imagen, (_, text, mask) = imagen_pytorch(spec)
    given = {"text_embeds": text, "text_masks": mask, "cond_scale": spec["guidance"]}
    imagen.eval()
    return work(spec, lambda: imagen.sample(**given, use_tqdm=False), imagen)


# --------------------------------------------------------------------------------- other networks


def transformers_encode(spec: dict[str, Any]) -> Work:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(**spec["encoder"], feed_forward_proj="gated-gelu", dropout_rate=0.0)
    network = T5EncoderModel(config).to(DEVICE, DTYPE).eval()
    forward, shape = compiled(spec, network), (spec["batch"], spec["length"])
    ids = torch.randint(1, config.vocab_size, shape, device=DEVICE)
    mask = torch.ones_like(ids)

    @torch.no_grad()
    def encode() -> torch.Tensor:
        return forward(input_ids=ids, attention_mask=mask).last_hidden_state

    return work(spec, encode, network)


def torch_fidelity_features(spec: dict[str, Any]) -> Work:
    """Its Inception with the original FID's resize, from uint8 images; random weights."""
    without_init("torch_fidelity")
    sys.modules["torch_fidelity.utils"] = mock.MagicMock()
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    extractor = module.FeatureExtractorInceptionV3
    unread = mock.patch.object(extractor, "load_state_dict", return_value=None)
    with tempfile.NamedTemporaryFile(suffix=".pth") as file, unread:
        torch.save({}, file.name)
        network = extractor("peer", ["2048"], file.name)
    shape = (spec["batch"], 3, spec["pixels"], spec["pixels"])
    images = torch.randint(0, 256, shape, dtype=torch.uint8)

    @torch.inference_mode()
    def extract() -> torch.Tensor:
        return network(images)[0]

    return work(spec, extract, network)


BUILD = {
    ("diffusers", "train"): diffusers_train,
    ("diffusers", "sample"): diffusers_sample,
    ("imagen-pytorch", "train"): imagen_pytorch_train,
    ("imagen-pytorch", "sample"): imagen_pytorch_sample,
    ("transformers", "encode"): transformers_encode,
    ("torch-fidelity", "features"): torch_fidelity_features,
}

if __name__ == "__main__":
    torch.manual_seed(0)
    if CUDA:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    serve(lambda spec: BUILD[spec["side"].partition(" ")[0], spec["kind"]](spec))
