"""The command `prepare_icons`: see imagen_jax/commands/prepare_icons.py."""

import repository  # noqa: F401

from imagen_jax.commands.prepare_icons import main

raise SystemExit(main())
