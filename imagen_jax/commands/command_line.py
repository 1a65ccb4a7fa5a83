"""What the commands share: how options are read and how mistakes are reported."""

import argparse
import atexit
import contextlib
import dataclasses
import gc
import io
import itertools
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NoReturn

from imagen_jax.commands.other_names import suggestion
from imagen_jax.devices.memory import shortage
from imagen_jax.storage.disk import describe
from imagen_jax.storage.folders import expand_home, user_path
from imagen_jax.training.config import config_file, split_overrides

# Which extra of pyproject.toml brings a package that is imported only when it is needed.
EXTRAS = {
    "grain": "train",
    "tensorboardX": "train",
    "wandb": "wandb",
    "matplotlib": "train",
    "google_crc32c": "train",
    "google": "train",
    "array_record": "train",
    "fsspec": "remote",
    "tensorflow": "tfds",
    "tensorflow_datasets": "tfds",
    "seqio": "seqio",
    "huggingface_hub": "hub",
    "tokenizers": "eval",
    "resvg_py": "icons",
    "qwix": "quantize",
    "gradio": "app",
    "onnx": "export",
    "optuna": "sweep",
    "onnxruntime": "export",
    "c2pa": "c2pa",
    "torch": None,  # itself is enough
}
OWN = ("imagen_jax", "scripts")
LEAVE_SECONDS = 5  # in which several processes that end for the same reason do so in order
# Which of several processes this is, once that is known; errors begin with it.
ROLE: ContextVar[str] = ContextVar("role", default="")


class Output(io.TextIOWrapper):
    """Standard output or error that ends no work: what its encoding lacks is written as an escape,
    and what its reader no longer takes (`| head`) is dropped.
    """

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


def use_tolerant_output() -> None:
    """Makes standard output and error such that no text can end a command (see `Output`)."""
    for name in ("stdout", "stderr"):
        stream, tolerant = getattr(sys, name), {"errors": "backslashreplace"}
        if stream is None:  # it was closed before the command began
            nowhere = open(os.devnull, "w", encoding="utf-8", **tolerant)  # noqa: SIM115
            setattr(sys, name, nowhere)
        elif type(stream) is io.TextIOWrapper and stream is getattr(sys, f"__{name}__"):
            kept = ("encoding", "line_buffering", "write_through")
            tolerant |= {option: getattr(stream, option) for option in kept}
            setattr(sys, name, Output(stream.buffer, **tolerant))


class Warned(logging.Formatter):
    """What is logged looks like a warning: `Warning: ...`."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.capitalize()}: {super().format(record)}"


def use_plain_messages() -> None:
    """Writes warnings, and what is logged as one, as they are, without a place in the code."""
    warnings.showwarning = lambda message, *rest: print(f"Warning: {message}", file=sys.stderr)
    handler = logging.StreamHandler()
    handler.setFormatter(Warned())
    logging.basicConfig(handlers=[handler])


@contextlib.contextmanager
def one_line_errors(*expected: type[Exception]) -> Iterator[None]:
    """Ends the program with `error: ...` and status 1, without a traceback.

    This is for `expected` errors, for what the operating system refuses (no such file, a full
    disk), for too little memory and for packages that are not installed. Anything else is a bug and
    keeps its traceback.
    """
    try:
        yield
    except ImportError as error:
        package = (error.name or "").split(".")[0]
        if package in OWN:
            raise
        extra = EXTRAS.get(package)
        what = f"'imagen_jax[{extra}]'" if extra else package
        end(f"{error}. It comes with: pip install {what}" if package in EXTRAS else str(error))
    except (OSError, *expected) as error:
        end((describe(error) if isinstance(error, OSError) else str(error)).removesuffix("."))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if (reason := shortage(error)) is not None:
            end(reason.removesuffix("."))
        if ROLE.get():
            error.add_note(f"on {ROLE.get()}")
        raise


def end(reason: str) -> NoReturn:
    """Ends the program with status 1 and one line on stderr, after all that it has printed."""
    sys.stdout.flush()
    role = f"{ROLE.get()}: " if ROLE.get() else ""
    if role:
        # JAX waits for the others to end, too. Where they do not, it has many lines to say.
        leave = threading.Timer(LEAVE_SECONDS, os._exit, [1])
        leave.daemon = True
        leave.start()
    sys.exit(f"error: {role}{reason}")


# ------------------------------------------------------------------------------------- the parser


class Help(argparse.RawDescriptionHelpFormatter):
    """Descriptions as they are, options with their defaults; % in either is a per cent sign."""

    def _expand_help(self, action: argparse.Action) -> str:
        untold = action.default in (None, False, [], argparse.SUPPRESS) or not action.option_strings
        if untold or "default" in action.help:
            return action.help
        return f"{action.help} (default: {action.default})"


# What argparse says, and what is said instead.
WORDINGS = {
    r"argument (\S+): (.*)": r"\1: \2",
    r"(\S+): expected .*argument.*": r"\1 needs a value",
    r"(\S+): ignored explicit argument (.*)": r"\1 takes no value: \2",
    r"(\S+): invalid choice: (.*?) \(choose from (.*)\)": r"\1 is \2; it must be one of \3",
    r"(\S+): invalid \S+ value: (.*)": r"\1 cannot be \2",
    r"(\S+): not allowed with argument (\S+)": r"\1 and \2 do not go together",
    r"one of the arguments (.*) is required": r"one of \1 is needed",
    r"the following arguments are required: ([^,]*)": r"\1 is needed",
    r"the following arguments are required: (.*)": r"\1 are needed",
    r"unrecognized arguments: (.*)": r"unknown argument \1",
}


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, ends with status 2, and knows what options others would be."""

    def __init__(self, **options: Any):
        super().__init__(formatter_class=Help, allow_abbrev=False, **options)
        self.register("type", int, whole_number)
        self.register("type", float, number)
        # Python before 3.14 takes -1e-3 and -1,2 for options.
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        arguments = sys.argv[1:] if args is None else list(args)
        known = self._option_string_actions
        options = itertools.takewhile(lambda argument: argument != "--", arguments)
        for name in (option.partition("=")[0] for option in options):
            # In a command with sub-commands the options are theirs.
            if re.fullmatch(r"--?[a-zA-Z][^ ]*", name) and not (name in known or self._subparsers):
                names = [option.lstrip("-") for option in known]
                unnamed = [action.dest for action in self._actions if not action.option_strings]
                self.error(f"unknown option {name}{suggestion(name.lstrip('-'), names, unnamed)}")
        return super().parse_known_args(arguments, namespace)

    def error(self, message: str) -> None:
        for theirs, ours in WORDINGS.items():
            message = re.sub(f"^{theirs}$", ours, message)
        for action in self._actions:  # --out is needed -> --out DIR is needed
            if action.option_strings and action.required and action.metavar:
                name = action.option_strings[0]
                message = re.sub(rf"{name}\b(?=.* needed$)", f"{name} {action.metavar}", message)
        self.exit(2, f"error: {message}; see --help\n")


def make_parser(description: str, **options: Any) -> Parser:
    """A parser whose help begins with the command's docstring as it is; `options`: argparse's."""
    return Parser(description=description, **options)


def set_up_process() -> None:
    """How a command's process speaks and ends. As it ends, Python would look through the million
    objects of JAX for what can be freed, for a third of a second: it does not. So close files.
    """
    use_tolerant_output()
    use_plain_messages()
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)


def run_parsed(
    parser: argparse.ArgumentParser,
    main: Callable[[argparse.Namespace], None],
    arguments: list[str] | None,
) -> None:
    """main(options), of the command line if `arguments` is None; a mistake is told in one line."""
    set_up_process()
    options = parser.parse_args(arguments)
    with one_line_errors(ValueError):
        main(options)


def run_configured(
    parser: argparse.ArgumentParser,
    main: Callable[[argparse.Namespace, dict[str, str]], None],
    arguments: list[str] | None,
) -> None:
    """main(options, {key: value of each --config.key=value}); which errors are told in one line is
    left to `main`.
    """
    from absl import logging as absl_logging

    set_up_process()
    with one_line_errors(ValueError):
        rest, overrides = split_overrides(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(rest)
    with one_line_errors(ValueError):
        config_file(options.config)  # before anything slow is imported
    absl_logging.set_verbosity(absl_logging.WARNING)
    main(options, overrides)


# ------------------------------------------------------------------------------ values of options


def argument(read: Callable[[str], Any], meaning: str | None = None) -> Callable[[str], Any]:
    """`read` for argparse: a ValueError is told, or that the text must be `meaning`."""

    def typed(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            reason = f"{text!r} must be {meaning}" if meaning else str(error)
            raise argparse.ArgumentTypeError(reason) from None

    return typed


whole_number, number = argument(int, "a whole number"), argument(float, "a number")
path = argument(user_path)  # ~ is expanded where the shell has not
source = argument(lambda text: str(expand_home(text)))  # a model's name, address or path


def count(text: str) -> int:
    """A whole number, at least 1."""
    value = whole_number(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be at least 1")
    return value


def entries(text: str) -> list[str]:
    """ "a, b" -> ["a", "b"]: what stands between commas, none of it empty."""
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} has nothing before or after a comma")
    return found


def numbers(kind: type) -> Callable[[str], Any]:
    """What reads "3" as a number and "3,1" as a list of numbers by stage, for argparse."""

    def by_stage(text: str) -> Any:
        try:
            values = [kind(part) for part in entries(text)]
        except ValueError:
            meaning = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(
                f"{text!r} must be a {meaning}, or one per stage separated by commas"
            ) from None
        return values[0] if len(values) == 1 else values

    return by_stage


names = numbers(str)
# The option --config of the commands that read one, as `load_config` takes it.
CONFIG: dict[str, Any] = {
    "type": path,
    "required": True,
    "metavar": "NAME",
    "help": "one of those that come with the package, such as folder_64, or a Python file with "
    "get_config()",
}
# The option --moderation of the commands that make images.
MODERATION: dict[str, Any] = {
    "type": path,
    "metavar": "FILE",
    "help": "filters of prompts and images (docs/moderation.md)",
}
# The option --ema of the commands that read a model, as `load_model` takes it.
EMA: dict[str, Any] = {
    "type": argument(
        lambda text: False if text == "none" else float(text),
        "the width of an average, such as 0.07, or none",
    ),
    "metavar": "WIDTH",
    "help": "of training runs: the average of this relative width, such as 0.07, put together from "
    "their snapshots; or none (default: the average that they kept)",
}


def prompt(argument: str) -> str:
    """Text for argparse: bytes that the system's encoding lacks are read as UTF-8."""
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError:
        try:
            return os.fsencode(argument).decode("utf-8")
        except UnicodeError:
            raise argparse.ArgumentTypeError(f"{argument!r} is not text in UTF-8") from None
    return argument


def sources(argument: str) -> str | list[str]:
    """A,B as a list of models; what is there under that very name, comma and all, is one."""
    return argument if os.path.exists(path(argument)) else names(argument)


# Fields of Sampling that a kind of guidance has; each W, or W,W,... by stage.
GUIDANCE_FIELDS = {
    "guidance_eta": "of apg: how much of the update along x0 stays, in [0, 1]",
    "guidance_norm": "of apg: the largest norm of an image's update",
    "guidance_momentum": "of apg: of earlier updates, below 0 against them",
    "zero_init_steps": "of cfg_zero: first steps in which nothing moves",
}


def add_guidance_options(parser: argparse.ArgumentParser) -> None:
    """The options of the kinds of guidance, and of autoguidance's second model."""
    add = parser.add_argument
    add("--guidance_kind", type=names, help="cfg, apg, cfg_zero or auto; or K,K,... by stage")
    for field, meaning in GUIDANCE_FIELDS.items():
        add(f"--{field}", type=numbers(float), metavar="W", help=meaning)
    add("--guide", type=sources, help="weaker model from which guidance leads away; A,B by stage")
    add("--guide_step", type=int, metavar="N", help="its checkpoint (default: the newest)")


# ---------------------------------------------------------------------------------- several hosts


def add_host_options(parser: argparse.ArgumentParser) -> None:
    """The options of a run on several hosts, which `join_hosts` reads."""
    from imagen_jax.devices.hosts import HEARTBEAT_SECONDS, JOIN_SECONDS

    add = parser.add_argument_group("several hosts").add_argument
    add("--distributed", action="store_true", help="join the other hosts of a TPU pod or cluster, "
        "found by JAX")  # fmt: skip
    add("--coordinator_address", metavar="HOST:PORT", help="of process 0")
    add("--num_processes", type=int, metavar="N", help="processes of this run, one per host")
    add("--process_id", type=int, metavar="I", help="number of this process, from 0")
    add("--heartbeat_seconds", type=int, default=HEARTBEAT_SECONDS, metavar="S", help="without a "
        "sign of life from one process for so long, the others end")  # fmt: skip
    add("--join_seconds", type=int, default=JOIN_SECONDS, metavar="S", help="how long to wait for "
        "all processes at the start")  # fmt: skip


def join_hosts(options: argparse.Namespace) -> None:
    """Joins the other hosts of a run; to be called before anything else uses JAX."""
    from imagen_jax.devices import hosts

    fields = (field.name for field in dataclasses.fields(hosts.Launch))
    launch = hosts.Launch(**{name: getattr(options, name) for name in fields})
    hosts.join_hosts(launch, options.distributed)
    ROLE.set(hosts.role())
