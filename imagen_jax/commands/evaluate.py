"""Measures a model, or a folder of images: FID, KID, CMMD, CLIP score and more, with a report.

python scripts/evaluate.py --make_reference val2014/ --size 256 --features inception/,clip/ \\
    --reference coco.safetensors
python scripts/evaluate.py --model runs/mine --prompts coco30k --metrics fid,kid,cmmd,clip \\
    --features inception/,clip/ --reference coco.safetensors --out results/coco
python scripts/evaluate.py --model emoji --metrics retrieval,psnr --split heldout --out results/

--make_reference with --out makes the reference first and then measures.
fid, kid: distance of Inception's features from the reference's. cmmd: of CLIP's.
clip: mean cosine of image and caption. r_precision: whether an image's own caption is the
nearest of 100.
retrieval: an image generated from an emoji's name counts when its nearest neighbour by mean
squared error at 32x32, among all distinct emoji, is the right one (top1), or one of five is (top5).
psnr, ssim: of each stage that enlarges, given the true emoji downsampled, beside bicubic; or of
--images beside --truth. In dB, and in [-1, 1].
images: no figure, the images alone.

Several weights or levels (--guidance 1,1.35,2 --aug_level 0,0.1) are a sweep: sweep.csv and
sweep.png set distance against alignment. DIR/report.json and DIR/report.html hold the figures, what
decides them, and why a figure does not compare with published ones. Images and features stay in
DIR: a run that was killed goes on where it was. docs/evaluation.md explains the protocols.
"""

import argparse
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from imagen_jax.commands.command_line import EXTRAS, names, numbers
from imagen_jax.evaluation import inputs as evaluation_inputs
from imagen_jax.evaluation.inputs import RANDOM
from imagen_jax.storage.folders import output_folder


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parse.add_argument
    add(
        "--model",
        type=names,
        default="emoji",
        help="shipped model, model directory or training workdir; A,B",
    )
    add("--dtype", default="float32", help="of the parameters: float32 (default) or bfloat16")
    add("--variant", help="of DeepFloyd IF's weights, such as fp16")
    add("--images", type=Path, metavar="DIR", help="measure these images instead of a model's: "
        "named after the prompts' ids, else in the order of their names, 2 before 10")  # fmt: skip
    add("--truth", type=Path, metavar="DIR", help="true images, of the same names, for psnr, ssim")
    add("--prompts", help="emoji, coco30k, drawbench or a file (default: emoji for a model)")
    add("--data", type=Path, help="file of emoji (prepare_emoji.py), coco30k or drawbench")
    add("--metrics", default="retrieval", help="of fid, kid, cmmd, clip, r_precision, ...: A,B")
    add("--features", default="", metavar="DIR,DIR", help="converted Inception or CLIP weights, "
        f"or {RANDOM}: random ones, whose figures are no FID")  # fmt: skip
    add("--resize", default="legacy_tensorflow", help="for Inception, of legacy_tensorflow, "
        "pytorch_fid, clean: A,B")  # fmt: skip
    add("--reference", type=Path, metavar="FILE", help="features of the true images")
    add("--make_reference", metavar="DIR", help="write --reference of a folder, emoji:SPLIT or "
        "tfds:NAME:SPLIT")  # fmt: skip
    add("--split", choices=("train", "heldout"), default="heldout", help="of emoji")
    add("--language", choices=("en", "zh"), help="of emoji's names (default: both)")
    add("--num", type=int, help="the first N prompts; of emoji, N images drawn with a fixed seed")
    add("--num_images", type=int, default=1, help="images a prompt")
    add("--guidance", type=points, default=[], help="weights of the text: W,W,...; W:W by stage")
    add("--aug_level", type=points, default=[], help="noise on what stages enlarge, in [0, 1]: "
        "A,A,...; A:A by stage")  # fmt: skip
    add("--steps", type=numbers(int), help="of the sampler; N, or N,N,... by stage")
    add("--sampler", type=names, help="ddpm, ddim, dpmpp_2m or heun; or S,S,... by stage")
    add("--size", type=int, help="of the images (default: emoji: the smallest from 32 on; coco30k"
        ": 256; else the largest)")  # fmt: skip
    add("--seed", type=int, default=0, help="of the noise")
    add("--batch_size", type=int, default=16, help="images at a time")
    add("--share", metavar="I/N", help="do this share of the work alone, from 1; then run without")
    add("--skip_broken", action="store_true", help="leave images out that cannot be read")
    add("--out", type=Path, metavar="DIR", help="directory for report.json and all else")
    return parse


def points(text: str) -> list[float | tuple[float, ...]]:
    """ "1,2:8" -> [1.0, (2.0, 8.0)]: commas between points, colons between stages."""
    values = [tuple(float(part) for part in point.split(":")) for point in text.split(",")]
    return [value[0] if len(value) == 1 else value for value in values]


# ------------------------------------------------------------------------------- the model


def all_devices() -> Any:
    """A mesh over all devices, which share each batch; None where there is one."""
    import jax

    from imagen_jax.devices.sharding import MeshConfig, make_mesh

    return make_mesh(MeshConfig()) if jax.device_count() > 1 else None


def load_pipeline(options: argparse.Namespace) -> tuple[Any, Any, int]:
    """(the pipeline, its settings, the size of its images)."""
    from imagen_jax.diffusion.overrides import with_overrides
    from imagen_jax.evaluation.protocol import SIZE
    from imagen_jax.evaluation.retrieval import SIZE as EMOJI_SIZE
    from imagen_jax.pipeline.loading import load_model
    from imagen_jax.pipeline.request import last_stage

    files = {"dtype": options.dtype, "variant": options.variant}
    pipeline = load_model(options.model, mesh=all_devices(), **files)
    settings = with_overrides(
        pipeline.cascade.sampling, steps=options.steps, sampler=options.sampler
    )
    size, sizes = options.size, pipeline.sizes
    last_stage(pipeline.cascade, pipeline.name, size)  # a size that no stage makes
    if size is None and options.prompts in (None, "emoji"):
        size = min((size for size in sizes if size >= EMOJI_SIZE), default=sizes[-1])
    elif size is None:
        size = SIZE if options.prompts == "coco30k" and SIZE in sizes else sizes[-1]
    return pipeline, settings, size


def describe_model(pipeline: Any, options: argparse.Namespace) -> dict[str, Any]:
    from imagen_jax.evaluation.report import fingerprint

    return {
        "name": pipeline.name,
        "source": options.model,
        "dtype": options.dtype,
        "fingerprint": pipeline.fingerprint or fingerprint(pipeline.params),
        "notes": pipeline.notes,
    }


def make_subject(
    pipeline: Any, about: Any, settings: Any, size: int, options: argparse.Namespace
) -> Any:
    """The model at these settings, as the evaluation sees it."""
    from imagen_jax.evaluation.runner import Subject
    from imagen_jax.pipeline.generation import spread

    reads_text = any(stage.conditioning == "text" for stage in pipeline.cascade.stages)

    def generate(subjects, first):
        what = {"prompt": list(subjects)} if reads_text else {"label": [int(x) for x in subjects]}
        return pipeline.generate_images(
            num_images=1,
            size=size,
            seed=options.seed,
            batch_size=options.batch_size,
            progress=False,
            sampling=settings,
            first_index=first,
            **what,
        )

    return Subject(
        pipeline.name,
        about,
        pipeline.cascade,
        pipeline.params,
        generate,
        settings,
        options.seed,
        spread(options.batch_size, pipeline.mesh)[1],
    )


def check_model(job: Any, subject: Any) -> None:
    """ValueError where the model cannot be measured in this way."""
    from imagen_jax.evaluation import runner

    stages = subject.cascade.stages
    if job.emoji is not None:
        runner.check_quality(job.metrics, subject, job.emoji)
    kinds = {stage.conditioning for stage in stages}
    if "text" in kinds or set(job.metrics) <= set(runner.QUALITY):
        return
    if "label" not in kinds:
        raise ValueError(f"{subject.name!r} reads neither text nor classes: give its --images.")
    if not all(text.isdigit() for text in job.prompts.texts):
        raise ValueError(
            f"{subject.name!r} reads classes, not text: give --prompts FILE with a class a line."
        )


def check_sweep(
    options: argparse.Namespace, job: Any, grid: list[Any], subjects: list[Any]
) -> None:
    """ValueError where several points are asked for and something is missing to compare them."""
    from imagen_jax.evaluation.runner import QUALITY

    if len(grid) > 1:
        if options.images is not None:
            raise ValueError("--images are what they are: several --guidance or --aug_level need "
                             "a model that draws them.")  # fmt: skip
        import matplotlib  # noqa: F401  (an error before the work, not after it)
    if not options.aug_level or set(job.metrics) & set(QUALITY):
        return
    stages = subjects[0].cascade.stages if subjects else ()
    if not any(s.low_resolution is not None and s.resolution <= job.size for s in stages):
        raise ValueError(
            f"--aug_level changes nothing: no stage that enlarges makes images of {job.size}."
        )


# ------------------------------------------------------------------------------- measuring


def run(options: argparse.Namespace) -> None:
    """Measures every point and writes the report; of a share of the work, images and features."""
    from imagen_jax.evaluation import results, runner, sweep
    from imagen_jax.pipeline.generation import spread

    making = options.make_reference is not None
    opened = evaluation_inputs.open_reference(options) if making else None
    job, grid = (
        evaluation_inputs.read_job(options),
        sweep.make_points(options.guidance, options.aug_level),
    )
    subjects = []
    if job.files is None or (job.true_files is None and set(job.metrics) & set(runner.QUALITY)):
        pipeline, settings, size = load_pipeline(options)
        batch_size, _ = spread(options.batch_size, pipeline.mesh)
        job = replace(job, batch_size=batch_size, size=size if job.files is None else job.size)
        chosen = [sweep.settings_at(settings, point) for point in grid]
        model = describe_model(pipeline, options)
        subjects = [make_subject(pipeline, model, entry, size, options) for entry in chosen]
        check_model(job, subjects[0])
    check_sweep(options, job, grid, subjects)
    if making:
        evaluation_inputs.make_reference(options, opened, job.extractors)
    if options.share is None:
        job = replace(job, truth=evaluation_inputs.read_truth(options, job))
    begin, done = time.monotonic(), []
    about = results.describe(job, subjects[0] if subjects else None, options.images)
    for row, point in enumerate(grid):
        directory = options.out if len(grid) == 1 else options.out / "points" / point.name
        subject = subjects[row] if subjects else None
        kept = results.image_settings(job, subject) if job.files is None else None
        result = runner.evaluate(job, subject, directory, settings=kept)
        results.write_point(result, directory)
        done.append(result if len(grid) == 1 else results.keep_strip(result))
    if options.share is not None:
        print(f"Share {options.share} is done; the figures are for a run without --share.")
        return
    about["total_seconds"] = round(time.monotonic() - begin, 2)
    report, paths = results.write_results(options.out, about, grid, done, subjects)
    print(*paths, sep="\n")
    print(results.summary(report))


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    warnings.showwarning = lambda message, *rest: print(f"Warning: {message}", file=sys.stderr)
    try:
        evaluation_inputs.check_reference(options)
        if options.out is None:
            if options.make_reference is None:
                raise ValueError("Say with --out DIR where the report is to go.")
            opened = evaluation_inputs.open_reference(options)
            extractors = evaluation_inputs.read_extractors(options)
            evaluation_inputs.make_reference(options, opened, extractors)
        else:
            with output_folder(options.out):
                run(options)
    except ImportError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        print(f"evaluate.py: {error}: pip install -e '.[{extra}]'", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
