"""A model's card: a README.md with the header that the Hugging Face hub reads, from what the model
itself says. What it cannot know, such as its data, is left to its author.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import jax

from imagen_jax.cascade.cascade import TEXT_ENCODER, Cascade, part_shapes
from imagen_jax.pipeline.pipeline import Pipeline

PIPELINE_TAGS = {"text": "text-to-image", None: "unconditional-image-generation"}
MADE_FROM = {"text": "text", "label": "a class", None: "noise"}


def write_card(
    path: Path,
    model: Pipeline,
    name: str,
    *,
    license: str | None = None,
    diffusers: Sequence[str] | None = None,
) -> None:
    """Writes the card of a model.

    Args:
        name: under which others load it: "user/model".
        license: as the hub abbreviates it, such as apache-2.0; None says nothing of it.
        diffusers: of one in diffusers' layout, how it is called; None for ours.
    """
    base, last = model.cascade.stages[0], model.cascade.stages[-1]
    header = [f"license: {license}"] if license else []
    header.append(f"library_name: {'imagen_jax' if diffusers is None else 'diffusers'}")
    tag = PIPELINE_TAGS.get(base.conditioning)
    if base.low_resolution is not None:
        tag = "image-to-image"
    header += [f"pipeline_tag: {tag}"] if tag else []
    header += ["tags:", "- imagen", "- diffusion", "- imagen_jax", "- jax"]
    made = f"{MADE_FROM[base.conditioning]} to images of {last.resolution}x{last.resolution} pixels"
    lines = [
        "---", *header, "---", "", f"# {name.split('/')[-1]}", "",
        f"A diffusion model of imagen_jax (arXiv 2205.11487): {made}.", "",
        "```python", *_how_to_load(name, base.low_resolution, diffusers), "```", "",
        "| part | network | parameters | sampled with |", "| --- | --- | --- | --- |",
        *_parts(model.cascade),
    ]  # fmt: skip
    if diffusers:
        lines += ["", *diffusers]
    if model.notes:
        lines += ["", f"Notes: `{json.dumps(dict(model.notes), ensure_ascii=False)}`"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _how_to_load(
    name: str, low_resolution: int | None, diffusers: Sequence[str] | None
) -> list[str]:
    if diffusers is not None:
        kind = "IFPipeline" if low_resolution is None else "IFSuperResolutionPipeline"
        return [f"from diffusers import {kind}", "", f'pipeline = {kind}.from_pretrained("{name}")']
    return ["import imagen_jax", "", f'pipeline = imagen_jax.load_model("{name}")']


def _parts(cascade: Cascade) -> list[str]:
    """A row of the table for each part."""
    rows = []
    for stage, settings in zip(cascade.stages, cascade.sampling, strict=True):
        how = f"{settings.sampler}, {settings.steps} steps, guidance {float(settings.guidance):g}"
        network = f"{type(stage.network).__name__.removesuffix('Config')}, {stage.resolution}x"
        rows.append((stage.name, f"{network}{stage.resolution}", how))
    if cascade.encoder is not None:
        rows.append((TEXT_ENCODER, "T5 encoder", ""))
    return [
        f"| {part} | {network} | {_size(cascade, part):,} | {how} |" for part, network, how in rows
    ]


def _size(cascade: Cascade, part: str) -> int:
    """How many parameters a part has."""
    return sum(leaf.size for leaf in jax.tree.leaves(part_shapes(cascade, part)))
