"""Measures a model on pictures whose names it knows (train) or has never seen (heldout).

python scripts/prepare_emoji.py --out data/emoji
python scripts/evaluate.py --model emoji --metrics retrieval,psnr --split heldout --out results/

retrieval: a picture generated from a name counts when its nearest neighbour by mean squared error
at 32x32, among all distinct emoji, is the right one (top1), or one of five is (top5); shares in
[0, 1], for names in English and in Chinese.
psnr, ssim: of each stage that enlarges, given the true picture downsampled, beside bicubic; in dB,
and in [-1, 1].

DIR/report.json holds the figures and what decides them; DIR/retrieval.csv a line a picture;
DIR/retrieval.png the true picture beside the generated one, with its rank; DIR/<stage>.png bicubic,
model and truth.
"""

import argparse
import sys
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # to run in a clone, uninstalled

from scripts.command_line import output_folder
from scripts.generate import names, numbers


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parse.add_argument
    add("--model", default="emoji", help="shipped model, model directory or training workdir; A,B")
    add("--metrics", default="retrieval", help="of retrieval, psnr, ssim, separated by commas")
    add("--split", choices=("train", "heldout"), default="heldout")
    add("--data", type=Path, default=Path("data/emoji/emoji.npz"), help="of prepare_emoji.py")
    add("--num", type=int, help="pictures, drawn with a fixed seed (train: 200, heldout: all)")
    add("--guidance", type=numbers(float), help="weight of the text; W, or W,W,... by stage")
    add("--steps", type=numbers(int), help="of the sampler; N, or N,N,... by stage")
    add("--sampler", type=names, help="ddpm, ddim, dpmpp_2m or heun; or S,S,... by stage")
    add("--aug_level", type=float, help="noise on what enlarging stages are given, in [0, 1]")
    add("--size", type=int, help="of the pictures for retrieval (default: the smallest from 32 on)")
    add("--seed", type=int, default=0, help="of the noise")
    add("--batch_size", type=int, default=16, help="pictures at a time")
    add("--out", type=Path, required=True, metavar="DIR", help="directory for report.json")
    return parse


def run(options: argparse.Namespace) -> dict:
    # After the command line is read: a wrong option need not wait for JAX.
    import numpy as np

    from imagen_jax import load_model
    from imagen_jax.arguments import check_count, check_seed, last_stage
    from imagen_jax.evaluation import report as report_room
    from imagen_jax.evaluation import runner
    from imagen_jax.evaluation.picture_set import read_picture_set
    from imagen_jax.evaluation.retrieval import SIZE
    from imagen_jax.sampling_settings import with_overrides

    metrics = list(dict.fromkeys(name for name in options.metrics.split(",") if name))
    runner.check_known(metrics)
    check_count("batch_size", options.batch_size)
    check_seed(options.seed)
    pictures = read_picture_set(options.data, options.split, options.num)
    sources = options.model.split(",")
    pipeline = load_model(sources if len(sources) > 1 else sources[0])
    settings = with_overrides(
        pipeline.cascade.sampling,
        guidance=options.guidance,
        steps=options.steps,
        sampler=options.sampler,
    )
    if options.aug_level is not None:
        settings = tuple(replace(entry, aug_level=options.aug_level) for entry in settings)
    last_stage(pipeline.cascade, pipeline.name, options.size)  # a size that no stage makes
    size = options.size or min(
        (size for size in pipeline.sizes if size >= SIZE), default=pipeline.sizes[-1]
    )

    def generate(prompts, first):
        made = pipeline.generate_images(
            prompts,
            1,
            size,
            seed=options.seed,
            batch_size=options.batch_size,
            progress=False,
            settings=settings,
            first_index=first,
        )
        return np.stack([np.asarray(picture) for picture in made])

    subject = runner.Subject(
        pipeline.name,
        pipeline.cascade,
        pipeline.params,
        generate,
        settings,
        options.seed,
        options.batch_size,
    )
    runner.check_metrics(metrics, subject, pictures)
    begin = time.monotonic()
    result = runner.evaluate(metrics, subject, pictures)
    report = {
        **result.values,
        "model": {
            "name": pipeline.name,
            "source": options.model,
            "fingerprint": pipeline.fingerprint or report_room.fingerprint(pipeline.params),
            "notes": pipeline.notes,
        },
        "data": {
            "path": pictures.path,
            "fingerprint": pictures.fingerprint,
            "split": pictures.split,
            "pictures": len(pictures),
            "distinct_in_all_splits": len(pictures.gallery.classes),
        },
        "settings": {
            "metrics": metrics,
            "num": options.num,
            "size": size,
            "seed": options.seed,
            "batch_size": options.batch_size,
            "sampling": {
                stage.name: asdict(entry)
                for stage, entry in zip(pipeline.cascade.stages, settings, strict=True)
            },
        },
        "versions": report_room.versions(),
        "device": report_room.device(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "total_seconds": round(time.monotonic() - begin, 2),
    }
    for path in runner.write_tables_and_sheets(result, options.out):
        print(path)
    report_room.write_report(options.out / "report.json", report)
    print(options.out / "report.json")
    return report


def summary(report: dict) -> str:
    """The figures in a few lines."""
    lines = []
    if found := report.get("retrieval"):
        groups = {"all": found, **found["by_language"], "variants": found["variants"]}
        for name, scores in groups.items():
            if scores["n"]:
                top1, top5 = scores["top1"], scores["top5"]
                lines.append(f"{name:9s} top-1 {top1:6.1%}  top-5 {top5:6.1%}  n {scores['n']}")
    for metric, unit in (("psnr", " dB"), ("ssim", "")):
        for stage, value in report.get(metric, {}).items():
            if value["n"]:
                lines.append(
                    f"{stage}: {metric} {value['model']:.3f}{unit}, bicubic "
                    f"{value['bicubic']:.3f}{unit}, gain {value['gain']:+.3f}{unit}"
                )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    warnings.showwarning = lambda message, *rest: print(f"Warning: {message}", file=sys.stderr)
    try:
        with output_folder(options.out):
            print(summary(run(options)))
    except (ValueError, OSError) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
