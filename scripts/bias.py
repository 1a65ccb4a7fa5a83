"""The command `bias`: see imagen_jax/commands/bias.py."""

import repository  # noqa: F401

from imagen_jax.commands.bias import main

raise SystemExit(main())
