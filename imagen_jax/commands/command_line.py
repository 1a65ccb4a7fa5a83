"""What the commands share: how options are read and how mistakes are reported.

Commands that take a config use absl, because of --config.KEY=VALUE; the others use argparse.
"""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import Any

from absl import app, flags, logging

from imagen_jax.devices.memory import shortage
from imagen_jax.training.config import split_overrides

# Which extra of pyproject.toml brings a package that is imported only when it is needed.
EXTRAS = {
    "grain": "train",
    "tensorboardX": "train",
    "matplotlib": "train",
    "google_crc32c": "train",
    "google": "train",
    "array_record": "train",
    "fsspec": "remote",
    "tensorflow": "tfds",
    "tensorflow_datasets": "tfds",
    "seqio": "seqio",
    "tokenizers": "eval",
    "torch": "parity",
}
OWN = ("imagen_jax", "scripts")


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
        hint = f". It comes with: pip install -e '.[{extra}]'" if extra else ""
        sys.exit(f"error: {error}{hint}")
    except (OSError, *expected) as error:
        sys.exit(f"error: {error}")
    except (RuntimeError, MemoryError) as error:
        if (reason := shortage(error)) is None:
            raise
        sys.exit(f"error: {reason}")
    except KeyboardInterrupt:
        sys.exit(130)


def make_parser(description: str, **options: Any) -> argparse.ArgumentParser:
    """A parser whose help begins with the command's docstring as it is; `options`: argparse's."""
    style = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=description, formatter_class=style, **options)


def run_parsed(
    parser: argparse.ArgumentParser,
    main: Callable[[argparse.Namespace], None],
    arguments: list[str] | None,
) -> None:
    """main(options), of the command line if `arguments` is None; a mistake is told in one line."""
    options = parser.parse_args(arguments)
    with one_line_errors(ValueError):
        main(options)


def numbers(kind: type) -> Callable[[str], Any]:
    """What reads "3" as a number and "3,1" as a list of numbers by stage, for argparse."""

    def number(text: str) -> Any:
        try:
            values = [kind(part) for part in text.split(",")]
        except ValueError:
            meaning = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(
                f"{text!r} must be a {meaning}, or one per stage separated by commas"
            ) from None
        return values[0] if len(values) == 1 else values

    return number


names = numbers(str)


def run_configured(
    main: Callable[[dict[str, str]], None], arguments: list[str] | None, description: str
) -> None:
    """main({key: value of each --config.key=value}), with absl's flags read and its logger quiet.

    `arguments` begin with the program's name; None: those of the command line. `description` heads
    the text of --help, which lists the flags of our own modules.
    """
    sys.modules["__main__"].__doc__ = description
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        for flag in defined if module.split(".")[0] in OWN else ():
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    with one_line_errors(ValueError):
        rest, overrides = split_overrides(sys.argv if arguments is None else arguments)

    def run(argv: list[str]) -> None:
        if len(argv) > 1:
            sys.exit(f"error: unknown argument {argv[1]!r}")
        logging.set_verbosity(logging.WARNING)
        main(overrides)

    app.run(run, argv=rest)


def define_host_flags() -> Callable[[], None]:
    """Defines the flags of a run on several hosts; returns the function that joins them, to be
    called before anything else uses JAX.
    """
    from imagen_jax.devices.hosts import HEARTBEAT_SECONDS, JOIN_SECONDS, Launch, join_hosts

    flags.DEFINE_bool(
        "distributed", False, "Join the other hosts of a TPU pod or cluster, found by JAX."
    )
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0.")
    flags.DEFINE_integer("num_processes", None, "Processes of this run, one per host.")
    flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")
    seconds = "Seconds without a sign of life from one process after which the others end."
    flags.DEFINE_integer("heartbeat_seconds", HEARTBEAT_SECONDS, seconds)
    flags.DEFINE_integer("join_seconds", JOIN_SECONDS, "Seconds to wait for all processes.")

    def join() -> None:
        names = (field.name for field in dataclasses.fields(Launch))
        launch = Launch(**{name: getattr(flags.FLAGS, name) for name in names})
        join_hosts(launch, flags.FLAGS.distributed)

    return join
