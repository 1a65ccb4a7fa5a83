"""Images drawn while a super-resolution stage is trained: which, and under which text."""

import numpy as np
import pytest
from PIL import Image
from tiny_cascade import ENCODER, SR, random_params, tiny_pipeline

from imagen_jax.data.folder import read_folder
from imagen_jax.data.sources import ArraySource
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.images.provenance import COMPOSITE, source_of
from imagen_jax.text import encoder as text
from imagen_jax.training.run_config import DataConfig, RunConfig, SampleConfig, TextConfig
from imagen_jax.training.samples import make_sample_fn
from imagen_jax.training.state import Frozen

PROMPTS = ("dog", "cat", "bird")


def drawn_under(source, monkeypatch, **data):
    """(the grid, the prompts that were encoded) for a source."""
    config = RunConfig(
        SR,
        DataConfig("folder", **data),
        batch_size=1,
        num_steps=1,
        text=TextConfig(ENCODER.config),
        sample=SampleConfig(prompts=PROMPTS, sampling=Sampling("ddim", steps=1)),
    )
    params = random_params(tiny_pipeline().cascade)
    sample = make_sample_fn(config, ENCODER, source, Frozen(None, params["text_encoder"]))
    encoded, encode = [], text.encode

    def spy(encoder, weights, prompts):
        encoded.extend(prompts)
        return encode(encoder, weights, prompts)

    monkeypatch.setattr(text, "encode", spy)
    return sample({"network": params["sr"]}), encoded


def fill(folder, captions):
    for i, caption in enumerate(captions):
        Image.new("RGB", (8, 8), (80 * i, 0, 0)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(caption)


def test_images_of_a_folder_are_drawn_under_their_own_captions(tmp_path, monkeypatch):
    fill(tmp_path, ["a red cat", "no image", "a blue cat"])
    (tmp_path / "0.png").write_bytes(b"no image")
    grid, encoded = drawn_under(read_folder(tmp_path), monkeypatch)
    assert encoded == ["no image", "a blue cat", "no image"]  # fewer images than prompts
    assert grid.width == grid.height  # inputs, results and truths, three of each
    assert source_of(grid) == COMPOSITE


def test_a_folder_without_a_image_that_can_be_read_is_an_error(tmp_path, monkeypatch):
    fill(tmp_path, ["a cat"])
    (tmp_path / "0.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"can be read; the last: .*0\.png"):
        drawn_under(read_folder(tmp_path), monkeypatch)


def test_images_in_memory_are_found_by_the_prompts(monkeypatch):
    images = np.zeros((4, 8, 8, 3), np.uint8)
    captions = [[("horse", 1.0)], [("a cat", 1.0), ("cat", 1.0)], [("dog", 1.0)], [("dog", 1.0)]]
    _, encoded = drawn_under(ArraySource(images, captions), monkeypatch)
    assert encoded == ["dog", "cat", "horse"]


def test_the_prompt_of_a_set_without_captions_is_the_one_of_its_images(monkeypatch):
    source = ArraySource(np.zeros((2, 8, 8, 3), np.uint8))
    assert drawn_under(source, monkeypatch, prompt="a toy")[1] == ["a toy"] * 3
