"""The command `app`: see imagen_jax/commands/app.py."""

import repository  # noqa: F401

from imagen_jax.commands.app import main

raise SystemExit(main())
