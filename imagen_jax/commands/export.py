r"""A model as ONNX or StableHLO, which run without this package.

    imagen-jax export --model icons --format onnx --out exported/icons
    imagen-jax export --model icons --format onnx --dtype float16 --out exported/half \
        --parts text_encoder,base64_steps
    imagen-jax export --model icons --format stablehlo --out exported/stablehlo

DIR then holds a file for each part (the text encoder; of each stage the network, and its steps as
a loop; the whole cascade), the tokenizer, and export.json, which says what each input is. See
docs/export.md.
"""

import argparse

from imagen_jax.commands.command_line import (
    EMA,
    entries,
    make_parser,
    path,
    run_parsed,
    sources,
    whole_number,
)
from imagen_jax.storage.codec import require
from imagen_jax.storage.folders import output_folder


def parser() -> argparse.ArgumentParser:
    parse = make_parser(__doc__)
    add = parse.add_argument
    add("--model", type=sources, required=True, help="name, model directory or workdir; A,B joined")
    add("--format", required=True, choices=("onnx", "stablehlo"), help="of the files")
    add("--out", type=path, required=True, metavar="DIR", help="directory of the export")
    add(
        "--dtype",
        choices=("float32", "float16", "int8"),
        default="float32",
        help="of weights and networks; int8: of the weights alone",
    )
    add(
        "--parts",
        type=entries,
        metavar="P,P",
        help="such as text_encoder,base64_steps (default: all)",
    )
    add("--opset", type=whole_number, metavar="N", help="of ONNX (default: 20)")
    add("--compare", action="store_true", help="then run each part in ONNX Runtime and in jax")
    add("--ema", default=True, **EMA)
    return parse


def export(options: argparse.Namespace) -> None:
    # After the options are read: a wrong one need not wait for JAX.
    from imagen_jax.pipeline.loading import load_model

    given = {"parts": options.parts, "dtype": options.dtype}
    if options.format == "onnx":
        from imagen_jax.export.onnx_file import OPSET
        from imagen_jax.export.onnx_file import export_onnx as write

        given["opset"] = OPSET if options.opset is None else options.opset
    else:
        from imagen_jax.export.stablehlo_file import export_stablehlo as write

        require(
            (options.opset is None, "--opset is for --format onnx"),
            (not options.compare, "--compare is for --format onnx"),
        )
    pipeline = load_model(options.model, ema=options.ema)
    for file in write(pipeline, options.out, **given):
        size = sum(each.stat().st_size for each in options.out.glob(f"{file.stem}.*"))
        print(f"{file}: {size / 1e6:.1f} MB")
        if options.compare:
            from imagen_jax.export.compare import compare
            from imagen_jax.export.parts import make_part

            print(f"  {compare(make_part(pipeline, file.stem), file)}")


def run(options: argparse.Namespace) -> None:
    with output_folder(options.out):
        export(options)


def main(arguments: list[str] | None = None) -> None:
    run_parsed(parser(), run, arguments)
