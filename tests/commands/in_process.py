"""A command that reads a config, called as from the command line but in the tests' own process."""

import contextlib
import io
from types import ModuleType
from unittest import mock

import jax


def call(command: ModuleType, *arguments: str) -> tuple[int | str | None, str]:
    """(what the command ends with: a status, or the message of an error; what it printed).

    The command sees one device, as in a process of its own.
    """
    said, ended = io.StringIO(), None
    devices = jax.devices()[:1]
    try:
        with (
            contextlib.redirect_stdout(said),
            mock.patch.object(jax, "devices", return_value=devices),
        ):
            command.main(list(arguments))
    except SystemExit as end:
        ended = end.code
    return ended, said.getvalue()
