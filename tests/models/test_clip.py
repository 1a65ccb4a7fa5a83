"""CLIP's towers against transformers', on random weights."""

import jax.numpy as jnp
import numpy as np
import pytest
from feature_references import relative_error

from imagen_jax.convert.clip import config_from_huggingface, read_clip
from imagen_jax.models import clip

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

END = 59
# OpenAI's kind and OpenCLIP's; patches that do not divide the image; the old end mark.
KINDS = {
    "openai": {"hidden_act": "quick_gelu", "eos_token_id": 2},
    "openclip": {"hidden_act": "gelu", "eos_token_id": END},
}


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """transformers' model, and our config and parameters read from what it saved."""
    values = KINDS[request.param]
    config = transformers.CLIPConfig(
        text_config={
            "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
            "num_attention_heads": 3, "vocab_size": 60, "max_position_embeddings": 12, **values,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2,
            "num_attention_heads": 4, "image_size": 34, "patch_size": 8,
            "hidden_act": values["hidden_act"],
        },
        projection_dim=20,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    place = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(place)
    return model, *read_clip(place)


def output(features) -> np.ndarray:
    return getattr(features, "pooler_output", features).detach().numpy()


def test_image_embeddings(pair, rng):
    model, config, params = pair
    images = rng.random((5, 34, 34, 3), np.float32)
    normalized = (images - np.asarray(clip.IMAGE_MEAN)) / np.asarray(clip.IMAGE_STD)
    pixels = torch.tensor(normalized.transpose(0, 3, 1, 2), dtype=torch.float32)
    theirs = output(model.get_image_features(pixel_values=pixels))
    assert relative_error(clip.embed_images(config, params, jnp.asarray(images)), theirs) < 1e-5


def test_text_embeddings(pair, rng):
    model, config, params = pair
    ids = rng.integers(3, END, (4, 12))
    for row, length in enumerate((1, 5, 8, 11)):
        ids[row, length:] = END
    theirs = output(model.get_text_features(input_ids=torch.tensor(ids)))
    ours = clip.embed_texts(config, params, jnp.asarray(ids, jnp.int32))
    assert relative_error(ours, theirs) < 1e-5


def test_what_follows_the_end_mark_does_not_matter(pair, rng):
    _, config, params = pair
    ids = rng.integers(3, END, (3, 12)).astype(np.int32)
    ids[:, 6] = END
    changed = ids.copy()
    changed[:, 7:] = 0
    first, second = (
        np.asarray(clip.embed_texts(config, params, jnp.asarray(each))) for each in (ids, changed)
    )
    np.testing.assert_allclose(first, second, rtol=1e-6, atol=1e-6)


def test_the_published_sizes():
    """The config.json of OpenAI's ViT-L/14 names what differs from ViT-B/32, twice over."""
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    vision = {
        "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
        "num_hidden_layers": 24, "patch_size": 14, "image_size": 336,
    }  # fmt: skip
    values = {"model_type": "clip", "projection_dim": 768, "text_config_dict": text}
    config = config_from_huggingface(values | {"vision_config": vision, "vision_config_dict": None})
    assert config.text == clip.TowerConfig(768, 12, 12, 3072)
    assert config.vision == clip.TowerConfig(1024, 16, 24, 4096)
    assert (config.embedding_dim, config.image_size, config.patch_size) == (768, 336, 14)
    assert (config.vocab_size, config.max_length, config.eos_id) == (49408, 77, 49407)
    plain = config_from_huggingface({"model_type": "clip"})
    assert plain == clip.ClipConfig(
        clip.TowerConfig(768, 12, 12, 3072), clip.TowerConfig(512, 8, 12, 2048)
    )
