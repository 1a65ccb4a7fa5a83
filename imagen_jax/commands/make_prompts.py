"""The caption list of COCO-30K, drawn with a seed, as a file of ids and captions.

imagen-jax make_prompts --annotations captions_val2014.json --out data/coco/coco30k.json
imagen-jax make_prompts --tfds --out data/coco/coco30k.json

The 30,000 are the captions whose id and seed have the smallest hash: the same everywhere. TFDS's
coco_captions (its splits restval, val and test together are val2014) is downloaded if need be.
"""

import argparse
import hashlib
import sys

from imagen_jax.commands.command_line import count, make_parser, path, run_parsed


def parser() -> argparse.ArgumentParser:
    parse = make_parser(__doc__)
    source = parse.add_mutually_exclusive_group(required=True)
    source.add_argument("--annotations", type=path, metavar="FILE", help="captions_val2014.json")
    source.add_argument("--tfds", action="store_true", help="TensorFlow Datasets' coco_captions")
    parse.add_argument("--data_dir", type=path, metavar="DIR", help="where TFDS keeps its data")
    parse.add_argument("--num", type=count, default=30_000, help="how many captions")
    parse.add_argument("--seed", type=int, default=0, help="of the choice")
    parse.add_argument("--out", type=path, required=True, metavar="FILE", help="the list to write")
    return parse


def make(options: argparse.Namespace) -> None:
    from imagen_jax.data import coco
    from imagen_jax.evaluation.prompts import read_prompts, write_coco

    if options.tfds:
        captions = coco.read_tfds_captions(options.data_dir)
        source = {"tfds": f"{coco.TFDS_NAME}:{coco.TFDS_SPLITS}"}
    else:
        captions = coco.read_annotations(options.annotations)
        digest = hashlib.sha256(options.annotations.read_bytes()).hexdigest()
        source = {"file": options.annotations.name, "sha256": digest}
    sampled = coco.sample(captions, options.num, options.seed)
    images = len({caption.image_id for caption in captions})
    counts = {"seed": options.seed, "captions": len(captions), "pictures": images}
    write_coco(options.out, sampled, source | counts)
    made = read_prompts("coco30k", options.out)
    if images != coco.VAL2014_IMAGES:
        print(
            f"Warning: the captions are of {images} images, not of the "
            f"{coco.VAL2014_IMAGES} of val2014.",
            file=sys.stderr,
        )
    print(f"{options.out}: {len(made)} of {len(captions)} captions, list {made.fingerprint}")


def main(arguments: list[str] | None = None) -> None:
    run_parsed(parser(), make, arguments)
