"""DINOv2 against transformers', and its positions against PyTorch's interpolation."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from feature_references import relative_error

from imagen_jax.convert.dinov2 import read_dinov2
from imagen_jax.models import dinov2

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

KINDS = {
    "plain": (transformers.Dinov2Config, transformers.Dinov2Model, False),
    "giant": (transformers.Dinov2Config, transformers.Dinov2Model, True),
    "registers": (
        transformers.Dinov2WithRegistersConfig, transformers.Dinov2WithRegistersModel, False,
    ),
    "giant with registers": (
        transformers.Dinov2WithRegistersConfig, transformers.Dinov2WithRegistersModel, True,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """transformers' model, and our config and parameters read from what it saved."""
    config, model, swiglu = KINDS[request.param]
    torch.manual_seed(0)
    model = model(
        config(
            hidden_size=48, num_hidden_layers=3, num_attention_heads=3, image_size=518,
            patch_size=14, use_swiglu_ffn=swiglu,
        )
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    place = tmp_path_factory.mktemp("dinov2")
    model.save_pretrained(place)
    return model, *read_dinov2(place)


def class_tokens(model, images: np.ndarray) -> np.ndarray:
    normalized = (images - np.asarray(dinov2.IMAGE_MEAN)) / np.asarray(dinov2.IMAGE_STD)
    pixels = torch.tensor(normalized.transpose(0, 3, 1, 2), dtype=torch.float32)
    with torch.no_grad():
        return model(pixel_values=pixels).last_hidden_state[:, 0].numpy()


def test_class_tokens_at_224_pixels(pair, rng):
    """transformers adds no offset to the new grid's size, where Meta's code adds 0.1."""
    model, config, params = pair
    assert config.position_offset == (0 if config.registers else 0.1)
    images = rng.random((2, 224, 224, 3), np.float32)
    ours = replace(config, position_offset=0.0)
    found = dinov2.embed_images(ours, params, jnp.asarray(images))
    theirs = class_tokens(model, images)
    assert found.shape == theirs.shape == (2, config.embedding_dim)
    assert relative_error(found, theirs) < 1e-5


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("old", "new"), [(37, 16), (37, 37), (16, 37), (7, 1)])
@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_positions_are_pytorchs(old, new, offset, antialias, rng):
    """With an offset as Meta's code does it: by the ratio of the sizes instead of the size."""
    grid = rng.normal(size=(old, old, 3)).astype(np.float32)
    size = {"scale_factor": (new + offset) / old} if offset else {"size": (new, new)}
    theirs = torch.nn.functional.interpolate(
        torch.tensor(grid.transpose(2, 0, 1)[None]), mode="bicubic", antialias=antialias, **size
    )[0]
    if old == new:  # where the code does not interpolate at all
        theirs = torch.tensor(grid.transpose(2, 0, 1))
    weights = dinov2.position_weights(old, new, offset, antialias)
    ours = np.einsum("yi,xj,ijw->wyx", weights, weights, grid)
    assert relative_error(ours, theirs.numpy()) < 1e-5


def test_impossible_sizes_are_named():
    for change, said in (
        ({"heads": 3}, "1024 does not split into 3 heads"),
        ({"image_size": 13}, "patch of 14 pixels does not fit into 13"),
        ({"position_size": 13}, "patch of 14 pixels does not fit into 13"),
        ({"registers": -1}, "registers is -1"),
        ({"position_offset": 2.0}, r"position_offset is 2\.0"),
    ):
        with pytest.raises(ValueError, match=said):
            dinov2.Dinov2Config(**change)
