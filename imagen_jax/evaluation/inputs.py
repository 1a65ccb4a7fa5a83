"""What scripts/evaluate.py measures with, read from its options: networks, references, prompts."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

EMOJI = Path("data/emoji/emoji.npz")
RANDOM = "random_inception"


def share_of(text: str | None) -> Any:
    """ "2/4" -> the second of four."""
    from imagen_jax.evaluation.generation import ALL, Share

    if text is None:
        return ALL
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise ValueError(f"--share is {text!r}; it must be I/N, for example 1/4 to 4/4.")
    return Share(int(number) - 1, int(count))


def read_extractors(options: argparse.Namespace) -> tuple[Any, ...]:
    """The feature networks, spread over all devices; Inception once for each way to resize."""
    directories = [name for name in options.features.split(",") if name]
    if not directories:
        return ()
    from imagen_jax.evaluation.extraction import by_name
    from imagen_jax.evaluation.feature_files import load_extractor
    from imagen_jax.evaluation.features import INCEPTION_RESIZES

    resizes = options.resize.split(",")
    if unknown := set(resizes) - set(INCEPTION_RESIZES):
        raise ValueError(f"--resize knows {', '.join(INCEPTION_RESIZES)}, not {unknown.pop()!r}.")
    found = []
    for name in directories:
        extractor = random_inception() if name == RANDOM else load_extractor(name)
        if extractor.kind == "inception":
            found += [replace(extractor, name=f"{extractor.name}, {r}", resize=r) for r in resizes]
        else:
            found.append(extractor)
    return tuple(by_name(found).values())


def random_inception() -> Any:
    """Inception with random weights: for trying things out where the true ones are not at hand."""
    import jax

    from imagen_jax.evaluation.features import make_extractor
    from imagen_jax.evaluation.report import fingerprint
    from imagen_jax.models import inception

    params = inception.init(jax.random.key(0))
    return make_extractor("random Inception", fingerprint({"inception": params}), None, params)


# ------------------------------------------------------------------------------- the reference


def check_reference(options: argparse.Namespace) -> None:
    """ValueError where the reference has no file, or no network to be made with."""
    if options.make_reference is not None and not (options.reference and options.features):
        raise ValueError("--make_reference needs --features DIR and --reference FILE to write.")
    if options.reference is not None and options.reference.is_dir():
        raise ValueError(f"--reference {options.reference} is a folder; give a file.")


def open_reference(options: argparse.Namespace) -> tuple[Any, ...]:
    """(parts, treatment, total, what they are) of the images of --make_reference, none read."""
    from imagen_jax.evaluation import protocol
    from imagen_jax.evaluation.generation import LEAST_PART
    from imagen_jax.evaluation.image_folder import (
        Treatment,
        common_size,
        list_images,
        read_parts,
        source_parts,
    )

    name, share = options.make_reference, share_of(options.share)
    about: dict[str, Any] = {"kind": name.split(":")[0]}
    if about["kind"] in ("emoji", "tfds"):
        source, named = reference_source(options)
        treatment = Treatment(options.size or min(source[0]["image"].shape[:2]))
        parts, files = source_parts(source, treatment, LEAST_PART, options.skip_broken, share), []
        about, total = about | named, len(source)
    else:
        files = list_images(name)
        treatment, total = Treatment(options.size or common_size(files)), len(files)
        parts = read_parts(files, treatment, LEAST_PART, options.skip_broken, share)
        about = {"kind": "folder", "path": name}
    about["val2014"] = protocol.is_val2014(about, [file.name for file in files])
    return parts, treatment, total, about


def make_reference(options: argparse.Namespace, opened: tuple[Any, ...], extractors: Any) -> None:
    """Writes --reference of the images of `open_reference`; of a share, its parts beside it."""
    from imagen_jax.evaluation import reference

    parts, treatment, total, about = opened
    directory = options.reference.with_name(f"{options.reference.name}.parts")
    share = share_of(options.share)
    made = reference.make_reference(extractors, parts, about, treatment, total, directory, share)
    if made is None:
        print(f"Share {options.share} of the reference is done; run without --share to write it.")
        return
    options.reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_reference(options.reference, made)
    print(f"{options.reference}: {made.count} images, fingerprint {made.fingerprint}")


def reference_source(options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """(source, what it is) of emoji:SPLIT, drawn as the prompts are, or tfds:NAME:SPLIT."""
    from imagen_jax.data.tfds_source import read_tfds
    from imagen_jax.evaluation.image_set import read_image_set
    from imagen_jax.evaluation.results import describe_emoji

    kind, _, rest = options.make_reference.partition(":")
    if kind == "emoji":
        images = read_image_set(options.data or EMOJI, rest or options.split, options.num)
        return images.source, describe_emoji(images)
    builder, _, split = rest.rpartition(":")
    if not builder:
        raise ValueError(f"--make_reference {options.make_reference} must be tfds:NAME:SPLIT.")
    return read_tfds(builder, split, None), {"name": builder, "split": split}


# ------------------------------------------------------------------------------- what to measure


def read_job(options: argparse.Namespace) -> Any:
    """Prompts, networks and the reference that is there: everything but the model and what takes
    long (`read_truth`).
    """
    from imagen_jax.evaluation import measures, runner
    from imagen_jax.evaluation.reference import read_reference
    from imagen_jax.pipeline.request import check_count, check_seed

    metrics = tuple(dict.fromkeys(name for name in options.metrics.split(",") if name))
    runner.check_known(metrics)
    check_count("batch_size", options.batch_size)
    check_count("num_images", options.num_images)
    check_seed(options.seed)
    share = share_of(options.share)
    prompts, emoji, emoji_names = read_prompts(options)
    files, true_files, named_by_ids = read_files(options, prompts)
    wanted = {"retrieval", *(() if true_files else runner.QUALITY)} & set(metrics)
    if emoji is None and wanted:
        raise ValueError(
            f"{', '.join(sorted(wanted))} look at emoji: give --prompts emoji; psnr and ssim also "
            "compare --images with --truth."
        )
    making = options.make_reference is not None
    reference = None
    if options.reference is not None and not making:
        reference = read_reference(options.reference)
    extractors = read_extractors(options)
    measures.check_extractors(metrics, extractors)
    known = [name for name in metrics if not (making and name in measures.OF_REFERENCE)]
    measures.check_inputs(known, extractors, reference, None if prompts is None else prompts.texts)
    job = runner.Job(
        metrics,
        options.size,
        prompts,
        options.num_images,
        emoji,
        emoji_names,
        files,
        true_files,
        extractors,
        measures.Truth(reference, {}, {}, None),
        options.skip_broken,
        share,
        options.batch_size,
        named_by_ids,
    )
    runner.check_files(job)
    return job


def read_truth(options: argparse.Namespace, job: Any) -> Any:
    """Statistics of the reference and features of the captions."""
    from imagen_jax.evaluation.measures import prepare_truth
    from imagen_jax.evaluation.reference import read_reference

    reference = job.truth.reference
    if options.make_reference is not None:
        reference = read_reference(options.reference)
    captions = None if job.prompts is None else job.texts
    return prepare_truth(job.metrics, job.extractors, reference, captions)


def read_files(options: argparse.Namespace, prompts: Any) -> tuple[Any, Any, bool | None]:
    """(--images in the order of the prompts, --truth in the same order, whether the names of
    --images are the prompts' ids), None where not given.
    """
    from imagen_jax.evaluation.image_folder import list_images, matching_images, order_by_ids

    if options.images is None:
        if options.truth is not None:
            raise ValueError("--truth is for --images, which are not given.")
        return None, None, None
    files, by_ids = list_images(options.images), None
    if prompts is not None:
        files, by_ids = order_by_ids(files, prompts.ids)
    true_files = None
    if options.truth is not None:
        true_files = tuple(matching_images(options.truth, files, options.images))
    return tuple(files), true_files, by_ids


def read_prompts(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """(prompts, the emoji if they are the prompts, their names one a generated image)."""
    import numpy as np

    from imagen_jax.evaluation import image_set as image_set
    from imagen_jax.evaluation.prompts import plain_list, read_prompts

    source = options.prompts or (None if options.images else "emoji")
    if source is None:
        return None, None, None
    if source != "emoji":
        return read_prompts(source, options.data).first(options.num), None, None
    emoji = image_set.read_image_set(options.data or EMOJI, options.split, options.num)
    languages = image_set.LANGUAGES if options.language is None else (options.language,)
    found = image_set.make_prompts(emoji, languages)
    rows = np.repeat(np.arange(len(found)), options.num_images)
    return plain_list("emoji", found.text), emoji, image_set.select(found, rows)
