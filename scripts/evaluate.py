"""The command `evaluate`: see imagen_jax/commands/evaluate.py."""

import repository  # noqa: F401

from imagen_jax.commands.evaluate import main

raise SystemExit(main())
