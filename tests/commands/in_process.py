"""A command that reads a config, called as from the command line but in the tests' own process."""

import contextlib
import io
import sys
from types import ModuleType

from absl import flags


def call(command: ModuleType, *arguments: str) -> tuple[int | str | None, str]:
    """(what the command ends with: a status, or the message of an error; what it printed)."""
    before, said, ended = set(flags.FLAGS), io.StringIO(), None
    try:
        with contextlib.redirect_stdout(said):
            command.main([sys.argv[0], *arguments])
    except SystemExit as end:
        ended = end.code
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
    return ended, said.getvalue()
