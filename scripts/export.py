"""The command `export`: see imagen_jax/commands/export.py."""

import repository  # noqa: F401

from imagen_jax.commands.export import main

raise SystemExit(main())
