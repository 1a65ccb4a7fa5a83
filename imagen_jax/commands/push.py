r"""A model and its card to the Hugging Face hub, where load_model("USER/NAME") finds them.

    hf auth login
    imagen-jax push models/mine me/mine --license apache-2.0
    imagen-jax push runs/base64,runs/sr256 me/icons --private --dtype float16
    imagen-jax push runs/if me/if --to diffusers
    imagen-jax push models/mine me/mine --dry_run

MODEL is a model directory, which goes there as it is; or training workdirs (A,B chains their
stages) or a shipped model. The card is the README.md in the folder; without one, a card is written
with what the model says of itself. Pickles are refused. To be repeated after an interruption: what
has arrived is not sent again.
"""

import argparse
import re
import shutil
import tempfile
from pathlib import Path

from imagen_jax.commands.command_line import make_parser, path, run_parsed, sources
from imagen_jax.convert import hub_upload
from imagen_jax.pipeline.shipped import MODEL_FILE, PRETRAINED, list_models
from imagen_jax.storage.codec import require
from imagen_jax.storage.disk import size_text


def parser() -> argparse.ArgumentParser:
    parse = make_parser(__doc__)
    add = parse.add_argument
    add("model", type=sources, metavar="MODEL", help="directory, workdir, shipped model, or A,B")
    add("name", metavar="NAME", help="of the repository: user/model or organization/model")
    add("--to", choices=("imagen_jax", "diffusers"), default="imagen_jax", help="whose layout")
    add("--stage", help="which of several stages to upload, for --to diffusers")
    add("--dtype", choices=("bfloat16", "float16", "float32"), help="of the weights "
        "(default: those of a model directory as they are, else bfloat16)")  # fmt: skip
    add("--quantize", help="the kernels, for --to imagen_jax: int8, int4 or int8_dynamic")
    add("--variant", help="of diffusers' weights: fp16 in model.fp16.safetensors")
    add("--license", help="for a card that is written: apache-2.0, mit, cc-by-4.0, ...")
    add("--private", action="store_true", help="a new repository that only you see")
    add("--branch", help="of the repository (default: main)")
    add("--message", default="Upload a model of imagen_jax", help="of the commit")
    add("--dry_run", action="store_true", help="list the files and their sizes, and stop")
    return parse


def push(options: argparse.Namespace) -> None:
    hub_upload.check_name(options.name)
    ours = options.to == "imagen_jax"
    require(
        (ours or options.quantize is None, "--quantize is for --to imagen_jax"),
        (not ours or options.stage is None, "--stage is for --to diffusers"),
        (not ours or options.variant is None, "--variant is for --to diffusers"),
        (options.message.strip() != "", "--message must not be empty"),
        (
            re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", options.license or "other") is not None,
            f"--license is {options.license!r}; it must be as the hub abbreviates it: apache-2.0",
        ),
    )
    found = folder(options.model)
    has_card = found is not None and (found / hub_upload.CARD).is_file()
    require(
        (
            not has_card or options.license is None,
            f"--license is for a card that is written; {found}/{hub_upload.CARD} says it itself",
        )
    )
    if not options.dry_run:
        hub_upload.check_rights(options.name)
    with tempfile.TemporaryDirectory(prefix="imagen_jax-push-") as temporary:
        files = prepared(options, found, Path(temporary))
        for name, file in files.items():
            print(f"{size_text(file.stat().st_size):>10}  {name}")
        size = sum(file.stat().st_size for file in files.values())
        print(f"{size_text(size):>10}  in all", flush=True)
        if not options.dry_run:
            given = {name: getattr(options, name) for name in ("message", "private", "branch")}
            # A card that was written here does not replace one that its author wrote there.
            kept = () if has_card else (hub_upload.CARD,)
            print(hub_upload.upload(options.name, files, kept=kept, **given))


def folder(model: str | list[str]) -> Path | None:
    """The one folder that a model is in; None for chained ones, and for names on the hub."""
    if not isinstance(model, str):
        return None
    found = PRETRAINED / model if model in list_models() else path(model)
    return found if found.is_dir() else None


def prepared(options: argparse.Namespace, found: Path | None, temporary: Path) -> dict[str, Path]:
    """The files to upload: of the model's own directory, or written into a temporary one."""
    # After the name and the rights are checked: a wrong one need not wait for JAX.
    from imagen_jax.pipeline import conversion
    from imagen_jax.pipeline.card import write_card
    from imagen_jax.pipeline.loading import load_model

    alone = isinstance(options.model, str)
    require((found is not None or not alone, f"there is no folder {options.model}"))
    ours, calls = options.to == "imagen_jax", None
    chosen = {"dtype": options.dtype, "quantize": options.quantize}
    as_it_is = ours and found is not None and (found / MODEL_FILE).is_file()
    model = load_model(options.model)
    if as_it_is and not any(chosen.values()):
        files = hub_upload.model_files(found)
    else:
        if ours:
            chosen["dtype"] = options.dtype or "bfloat16"
            conversion.to_model_directory(
                options.model, temporary, name=options.name.split("/")[1], **chosen
            )
        else:
            kept = {"stage": options.stage, "dtype": options.dtype, "variant": options.variant}
            calls = conversion.to_diffusers(options.model, temporary, **kept)
        if found is not None and (found / hub_upload.CARD).is_file():
            shutil.copy(found / hub_upload.CARD, temporary / hub_upload.CARD)
        files = hub_upload.model_files(temporary)
    if hub_upload.CARD not in files:
        card = temporary / hub_upload.CARD
        write_card(card, model, options.name, license=options.license, diffusers=calls)
        files[hub_upload.CARD] = card
    return files


def main(arguments: list[str] | None = None) -> None:
    run_parsed(parser(), push, arguments)
