"""The command `convert`: see imagen_jax/commands/convert.py."""

import repository  # noqa: F401

from imagen_jax.commands.convert import main

raise SystemExit(main())
