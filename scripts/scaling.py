"""The command `scaling`: see imagen_jax/commands/scaling.py."""

import repository  # noqa: F401

from imagen_jax.commands.scaling import main

raise SystemExit(main())
