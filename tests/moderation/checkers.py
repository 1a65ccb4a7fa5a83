"""A safety checker and a CLIP model of random weights, as their own libraries save them."""

import json
from pathlib import Path

import numpy as np
import pytest

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
VISION = {**SIZES, "image_size": 32, "patch_size": 8}
WIDTH = 16


def make_checker(directory: Path, rng: np.random.Generator, images: np.ndarray, level: float = 0.0):
    """Saves a checker; gives diffusers' own of the same weights.

    Its concepts point where some of the images do, and its thresholds lie among their cosines:
    some are found and some are not. `level` is added to all thresholds.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    checkers = pytest.importorskip("diffusers.pipelines.stable_diffusion.safety_checker")
    config = transformers.CLIPConfig(vision_config=VISION, text_config=SIZES, projection_dim=WIDTH)
    checker = checkers.StableDiffusionSafetyChecker(config).eval()
    with torch.no_grad():
        for name, value in checker.named_parameters():
            if "concept" not in name and "special" not in name:
                value.normal_(0, 0.3)
        found = checker.visual_projection(checker.vision_model(pixel_values(images))[1]).numpy()
        unit = found / np.linalg.norm(found, axis=1, keepdims=True)
        for name in ("concept", "special_care"):
            embeddings = getattr(checker, f"{name}_embeds")
            values = rng.normal(size=embeddings.shape) * 3
            values[::2] += 4 * found[rng.integers(0, len(found), len(values[::2]))]
            cosines = unit @ (values / np.linalg.norm(values, axis=1, keepdims=True)).T
            # Each finds few of the images, and all together about half.
            thresholds = [np.quantile(column, rng.uniform(0.9, 1)) for column in cosines.T]
            embeddings.copy_(torch.tensor(values))
            getattr(checker, f"{name}_embeds_weights").copy_(torch.tensor(thresholds) + level)
    checker.save_pretrained(directory)
    return checker


def pixel_values(images: np.ndarray):
    """What diffusers feeds the checker: by transformers' own processor."""
    transformers = pytest.importorskip("transformers")
    side = VISION["image_size"]
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    return processor(list(images), return_tensors="pt").pixel_values


def old_names(directory: Path) -> None:
    """Renames the tensors as releases before transformers 5 did, and adds their buffer."""
    from safetensors.numpy import load_file, save_file

    file = directory / "model.safetensors"
    tensors = load_file(file)
    renamed = {
        f"vision_model.{name}" if name.startswith("vision_model.") else name: value
        for name, value in tensors.items()
    }
    places = (VISION["image_size"] // VISION["patch_size"]) ** 2 + 1
    name = "vision_model.vision_model.embeddings.position_ids"
    save_file({**renamed, name: np.arange(places, dtype=np.int64)[None]}, file)


def make_clip(directory: Path):
    """Saves a CLIP model with a tokenizer of letters; gives transformers' own model."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    names = [*letters, *(f"{letter}</w>" for letter in letters)]
    names += ["<|startoftext|>", "<|endoftext|>"]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.json").write_text(json.dumps({name: n for n, name in enumerate(names)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    text = {**SIZES, "vocab_size": len(names), "eos_token_id": len(names) - 1,
            "bos_token_id": len(names) - 2}  # fmt: skip
    config = transformers.CLIPConfig(vision_config=VISION, text_config=text, projection_dim=WIDTH)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.normal_(0, 0.3)
    model.save_pretrained(directory)
    return model
