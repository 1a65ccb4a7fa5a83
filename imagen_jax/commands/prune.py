r"""A smaller model: weights of the least magnitude set to zero, or whole blocks left out.

    imagen-jax prune --model icons --sparsity 0.5 --out runs/half
    imagen-jax prune --model icons --stage base64 --blocks 1 --out runs/shallower \
        --prompts "red heart, 3d style" "police officer, twemoji style"

--sparsity zeroes this share of the kernels' weights, --scope layer the same share of each kernel.
--blocks leaves out pairs of residual blocks of a base stage, one on the way down and the one on the
way up that reads its skip: those without which the network's output changes least, on images that
it makes of the prompts. The model is then trained further, pruned weights staying zero:

    imagen-jax train --config fine_tune --init_from runs/half \
        --workdir runs/tuned --config.data.path=IMAGES --config.optimizer.keep_zeros=True
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from imagen_jax.commands.command_line import make_parser, path, run_parsed, source
from imagen_jax.storage.codec import require
from imagen_jax.storage.folders import output_folder

if TYPE_CHECKING:
    from imagen_jax.pipeline.pipeline import Pipeline

SCORED_TIMES = 8


def parser() -> argparse.ArgumentParser:
    parse = make_parser(__doc__)
    add = parse.add_argument
    add(
        "--model", type=source, required=True, help="a model directory, a workdir or a model's name"
    )
    add("--out", type=path, required=True, metavar="DIR", help="directory of the pruned model")
    add("--stage", help="which of several stages to prune (default: the first)")
    add("--sparsity", type=float, metavar="SHARE", help="of the kernels' weights, to become zero")
    add("--scope", choices=("global", "layer"), help="of --sparsity: the least weights of all "
        "kernels together, or of each (default: global)")  # fmt: skip
    add("--blocks", type=int, metavar="N", help="pairs of residual blocks to leave out")
    add("--prompts", nargs="+", help="of the images by which blocks are scored, for --blocks")
    add("--dtype", default="float32", choices=("float32", "float16", "bfloat16"),
        help="of the weights on disk")  # fmt: skip
    return parse


def prune(options: argparse.Namespace) -> None:
    # After the options are read: a wrong one need not wait for JAX.
    from imagen_jax.cascade.cascade import stage_index
    from imagen_jax.compress import blocks, pruning
    from imagen_jax.pipeline.loading import load_model
    from imagen_jax.pipeline.model_directory import Stored, write_model

    model = load_model(options.model)
    stages = model.cascade.stages
    index = stage_index(model.cascade, options.stage or stages[0].name)
    stage = stages[index]
    if options.sparsity is not None:
        scope = options.scope or "global"
        pruning.check_pruning(options.sparsity, scope)
        params = pruning.prune(model.params[stage.name], options.sparsity, scope)
        print(f"{stage.name}: {pruning.sparsity(params):.1%} of the kernels' weights are zero")
    else:
        blocks.check_blocks(stage.network, options.blocks)
        given = stage.network, model.params[stage.name], options.blocks
        network, params, dropped = blocks.drop_blocks(*given, scored_output(model, index, options))
        for name, score in dropped.items():
            print(f"{stage.name} without {name}: the output is {score:.3f} away")
        stage = replace(stage, network=network)
    cascade = replace(model.cascade, stages=(*stages[:index], stage, *stages[index + 1 :]))
    every = {name: model.params[name] for name in model.params} | {stage.name: params}
    write_model(options.out, cascade, every, Stored(options.dtype), notes=model.notes)


def scored_output(
    model: "Pipeline", index: int, options: argparse.Namespace
) -> Callable[[Any], Any]:
    """The network's output, of its parameters, at noisy images of the prompts.

    Raises:
        ValueError: there are no prompts, or the stage upsamples images.
    """
    import jax
    import jax.numpy as jnp

    from imagen_jax.cascade.cascade import TEXT_ENCODER
    from imagen_jax.cascade.stage import apply_network
    from imagen_jax.diffusion.process import add_noise
    from imagen_jax.images.pixels import to_float
    from imagen_jax.text.encoder import encode

    stage, encoder, prompts = model.cascade.stages[index], model.cascade.encoder, options.prompts
    require(
        (
            index == 0 and stage.low_resolution is None and stage.conditioning == "text",
            f"--blocks is for a base stage of text, which {stage.name!r} is not",
        ),
        (prompts, "--blocks needs --prompts, of images by which blocks are scored"),
    )
    images = model.generate_images(prompts, 1, stage.resolution, seed=0)
    x0 = to_float(jnp.stack([jnp.asarray(image) for image in images]))
    text = encode(encoder, model.params[TEXT_ENCODER], prompts)
    times = jnp.linspace(0.05, 0.95, SCORED_TIMES)
    rows = jnp.arange(max(SCORED_TIMES, len(prompts)))
    x0, text = jax.tree.map(lambda leaf: leaf[rows % len(prompts)], (x0, text))
    t = times[rows % SCORED_TIMES]
    x_t = add_noise(x0, jax.random.normal(jax.random.key(0), x0.shape), stage.schedule.logsnr(t))
    return jax.jit(lambda params: apply_network(stage, params, x_t, t, text=text))


def run(options: argparse.Namespace) -> None:
    require(
        (
            (options.sparsity is None) != (options.blocks is None),
            "give one of --sparsity and --blocks",
        ),
        (options.scope is None or options.blocks is None, "--scope is for --sparsity"),
        (options.prompts is None or options.blocks is not None, "--prompts is for --blocks"),
    )
    with output_folder(options.out):
        prune(options)


def main(arguments: list[str] | None = None) -> None:
    run_parsed(parser(), run, arguments)
