"""The command `sweep`: see imagen_jax/commands/sweep.py."""

import repository  # noqa: F401

from imagen_jax.commands.sweep import main

raise SystemExit(main())
