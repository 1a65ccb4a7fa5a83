"""The command `imagen-jax VERB`: each verb is a file of this folder, with `parser` and `main`."""

import argparse
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from imagen_jax import __version__
from imagen_jax.commands.command_line import make_parser, run_parsed, use_tolerant_output
from imagen_jax.storage.codec import nearest
from imagen_jax.training.config import config_names

# By what they are for, in the order of their use; what each does in a line.
VERBS = {
    "Images": {
        "generate": "make images from text; edit, inpaint, upscale",
        "app": "the same on a web page of this machine",
        "verify": "tell where an image comes from, and whether it was changed",
    },
    "Training": {
        "train": "train one stage",
        "pretrain_text": "train a text encoder from scratch, before the base model",
        "train_tokenizer": "train the tokenizer of such an encoder",
        "embed_text": "embed the captions of a data set ahead of training",
        "prepare_icons": "make the data set of icons",
        "dataset": "make a data set of generated images",
        "plan": "memory and time of a run on TPUs or GPUs you do not have",
        "compare_recipes": "train a grid of recipes at equal compute",
        "sweep": "train with several values of some keys, and compare",
    },
    "Models": {
        "save_model": "write training runs as one model directory",
        "convert": "convert to and from diffusers, Hugging Face and T5X",
        "push": "upload a model and its card to the Hugging Face hub",
        "prune": "set small weights to zero, or leave blocks out",
        "export": "write ONNX or StableHLO, which run without this package",
    },
    "Measuring": {
        "evaluate": "measure FID, KID, CLIP score and more",
        "make_prompts": "choose the captions of COCO-30K",
        "human_eval": "run a study: which of two images do people prefer",
        "benchmark": "measure the speed of this machine, beside other projects",
        "benchmark_icons": "measure the quality of a model of icons",
        "bias": "report whom a model shows: gender, skin tone and the like",
        "scaling": "in a clone: make the tables of docs/scaling.md",
    },
}
SHELLS = ("bash", "zsh", "tcsh", "fish")
COMPLETION = f"""Prints what completes the verbs and options of imagen-jax in a shell.

    source <(imagen-jax completion bash)                # in ~/.bashrc
    imagen-jax completion zsh > ~/.zfunc/_imagen-jax    # a folder of $fpath

Shells: {", ".join(SHELLS)}."""


def verbs() -> dict[str, str]:
    """Each verb, with what it does in a line."""
    return {verb: line for group in VERBS.values() for verb, line in group.items()}


def overview() -> str:
    """What `imagen-jax --help` says."""
    width = max(map(len, verbs()))
    lines = ["Usage: imagen-jax VERB [options]; imagen-jax VERB --help explains one."]
    for group, members in VERBS.items():
        lines += ["", f"{group}:", *(f"  {verb:{width}}  {line}" for verb, line in members.items())]
    return "\n".join([*lines, "", "  --version", "  completion SHELL    for " + ", ".join(SHELLS)])


def module(verb: str) -> ModuleType:
    """The file of a verb."""
    return import_module(f"imagen_jax.commands.{verb}")


def whole_parser() -> argparse.ArgumentParser:
    """All verbs in one parser, for the completion of a shell."""
    import shtab

    kinds = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY, "FOLDER": shtab.DIRECTORY}
    root = argparse.ArgumentParser(prog="imagen-jax")
    add = root.add_subparsers(dest="verb").add_parser
    for verb, line in verbs().items():
        own: Any = module(verb).parser()
        for action in own._actions:
            if action.dest == "config":
                action.choices = config_names()
            elif action.metavar in kinds:
                action.complete = kinds[action.metavar]
        add(verb, parents=[own], add_help=False, help=line)
    add("completion", help="for a shell").add_argument("shell", choices=SHELLS)
    return root


def print_completion(options: argparse.Namespace) -> None:
    """The script that a shell reads, on standard output."""
    import shtab

    script = shtab.complete(whole_parser(), shell=options.shell)
    # What is none of ours, such as a value that is a path, stays bash's own matter.
    print(script.replace("complete -o bashdefault", "complete -o bashdefault -o default"))


def completion(arguments: list[str]) -> None:
    """The verb `completion`."""
    parse = make_parser(COMPLETION)
    parse.add_argument("shell", choices=SHELLS, metavar="SHELL", help="whose completion")
    run_parsed(parse, print_completion, arguments)


def main(arguments: list[str] | None = None) -> None:
    """Runs the verb that the first argument names, with the others."""
    use_tolerant_output()
    verb, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if verb == "help" and rest:
        verb, rest = rest[0], ["--help"]
    verb = verb if verb.startswith("-") else verb.lower().replace("-", "_")
    sys.argv = [f"imagen-jax {verb}", *rest]  # the name by which argparse calls the program
    if verb in ("--help", "-h", "help"):
        print(overview())
    elif verb == "--version":
        print(f"imagen_jax {__version__}")
    elif verb == "completion":
        completion(rest)
    elif verb in verbs():
        try:
            module(verb).main(rest)
        except KeyboardInterrupt:  # while modules are imported
            sys.exit(130)
    elif verb.startswith("-"):
        sys.exit(f"error: unknown option {verb!r}; see imagen-jax --help")
    else:
        sys.exit(f"error: there is no command {verb!r}{nearest(verb, [*verbs(), 'completion'])}")


if __name__ == "__main__":
    main()
