"""A command that reads a config, called as from the command line but in the tests' own process."""

import contextlib
import io
import sys
from types import ModuleType
from unittest import mock

import jax
from absl import flags


def call(command: ModuleType, *arguments: str) -> tuple[int | str | None, str]:
    """(what the command ends with: a status, or the message of an error; what it printed).

    The command sees one device, as in a process of its own.
    """
    before, said, ended = set(flags.FLAGS), io.StringIO(), None
    devices = jax.devices()[:1]
    try:
        with (
            contextlib.redirect_stdout(said),
            mock.patch.object(jax, "devices", return_value=devices),
        ):
            command.main([sys.argv[0], *arguments])
    except SystemExit as end:
        ended = end.code
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
    return ended, said.getvalue()
