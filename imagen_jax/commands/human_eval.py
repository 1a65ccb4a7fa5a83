r"""Asks people which of two models' images they prefer: sheets, a local web page, the analysis.

imagen-jax evaluate --model A --prompts drawbench --num_images 8 --metrics images \
    --out results/a
imagen-jax evaluate --model B --prompts drawbench --num_images 8 --metrics images \
    --out results/b
imagen-jax human_eval sheets --a results/a --b results/b --prompts drawbench --out study
imagen-jax human_eval serve study          # http://127.0.0.1:8000, answers.jsonl in study
imagen-jax human_eval analyse study

Studies: drawbench (two sets of 8, which is better and which fits), photorealism (a model's image
beside the true one, --b), captions (does the caption describe the image; yes, somewhat, no).
"""

import argparse
import contextlib
import shutil

from imagen_jax.commands.command_line import make_parser, path, run_parsed
from imagen_jax.storage.folders import make_folder

PER_PROMPT = {"drawbench": 8, "photorealism": 1, "captions": 1}


def parser() -> argparse.ArgumentParser:
    parse = make_parser(__doc__)
    commands = parse.add_subparsers(dest="command", required=True)
    add = commands.add_parser("sheets", help="make the trials").add_argument
    add("--study", choices=tuple(PER_PROMPT), default="drawbench", help="its kind")
    add("--a", type=path, required=True, metavar="DIR", help="of imagen-jax evaluate, or a folder")
    add("--b", type=path, required=True, metavar="DIR", help="the other model's, or true images")
    add("--name_a", help="of the models, for the analysis (default: their folders')")
    add("--name_b", help="the same of --b")
    add("--prompts", required=True, help="drawbench, coco30k or a file, as for imagen-jax evaluate")
    add("--data", type=path, help="file of drawbench or coco30k")
    add("--num", type=int, help="the first N prompts")
    add("--num_images", type=int, help="images a prompt (default: drawbench 8, else 1)")
    add("--size", type=int, help="of the images, where those of a folder differ")
    add("--controls", type=int, help="trials with a known answer (default: a tenth)")
    add("--seed", type=int, default=0, help="of sides, order and controls")
    add("--out", type=path, required=True, metavar="DIR", help="folder of the study")
    add = commands.add_parser("serve", help="the web page, for this machine only").add_argument
    add("study", type=path, metavar="DIR", help="folder of the study")
    add("--port", type=int, default=8000, help="of the page on this machine; 0 takes a free one")
    add("--answers", type=path, metavar="FILE", help="default: answers.jsonl in DIR")
    add = commands.add_parser("analyse", help="preferences with 95 % intervals").add_argument
    add("study", type=path, metavar="DIR", help="folder of the study")
    add("--answers", type=path, metavar="FILE", help="default: answers.jsonl in DIR")
    add("--out", type=path, metavar="FILE", help="also write the analysis as JSON")
    return parse


def make_sheets(options: argparse.Namespace) -> None:
    from imagen_jax.evaluation.prompts import read_prompts
    from imagen_jax.human_study.sheets import make_study, read_set
    from imagen_jax.human_study.study import write_study
    from imagen_jax.pipeline.request import check_count

    known = read_prompts(options.prompts, options.data)
    prompts = known.first(options.num)
    per_prompt = PER_PROMPT[options.study] if options.num_images is None else options.num_images
    check_count("num_images", per_prompt)
    if options.study != "drawbench" and per_prompt != 1:
        raise ValueError(f"--study {options.study} shows one image a prompt, not {per_prompt}.")
    sets = [
        read_set(folder, known, len(prompts), per_prompt, options.size)
        for folder in (options.a, options.b)
    ]
    controls = -(-len(prompts) // 10) if options.controls is None else options.controls
    names = (options.name_a or options.a.resolve().name, options.name_b or options.b.resolve().name)
    make_folder(options.out, "--out")
    if any(options.out.iterdir()):
        raise ValueError(f"--out {options.out} is not empty: a study stays as it was made.")
    try:
        study = make_study(
            options.study, prompts, *sets, names, options.out, controls=controls, seed=options.seed
        )
        write_study(study, options.out)
    except BaseException:  # half a study would be in the way
        shutil.rmtree(options.out / "sheets", ignore_errors=True)
        raise
    print(f"{options.out}: {len(study.trials)} trials, {controls} of them controls")
    for folder, images in zip((options.a, options.b), sets, strict=True):
        if not images.named:
            print(f"{folder}: paired with the prompts by the order of the names, 2 before 10")


def serve(options: argparse.Namespace) -> None:
    from imagen_jax.human_study.server import ADDRESS, AnswerFile, StudyServer
    from imagen_jax.human_study.study import read_study

    study = read_study(options.study)
    answers = AnswerFile(options.answers or options.study / "answers.jsonl", study)
    with (
        contextlib.closing(answers),
        StudyServer(options.study, study, answers, options.port) as server,
    ):
        print(
            f"http://{ADDRESS}:{server.server_address[1]}  (answers in {answers.path})", flush=True
        )
        server.serve_forever()


def analyse(options: argparse.Namespace) -> None:
    from imagen_jax.human_study import study as human
    from imagen_jax.storage.json_file import write_object

    study = human.read_study(options.study)
    answers = human.read_answers(options.answers or options.study / "answers.jsonl", study)
    result = human.analyse(study, answers)
    print(human.text_table(result))
    if options.out is not None:
        write_object(options.out, result)


def run(options: argparse.Namespace) -> None:
    {"sheets": make_sheets, "serve": serve, "analyse": analyse}[options.command](options)


def main(arguments: list[str] | None = None) -> None:
    run_parsed(parser(), run, arguments)
