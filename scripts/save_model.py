"""The command `save_model`: see imagen_jax/commands/save_model.py."""

import repository  # noqa: F401

from imagen_jax.commands.save_model import main

raise SystemExit(main())
