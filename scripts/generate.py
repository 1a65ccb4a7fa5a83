"""The command `generate`: see imagen_jax/commands/generate.py."""

import repository  # noqa: F401

from imagen_jax.commands.generate import main

raise SystemExit(main())
