"""The command `prepare_emoji`: see imagen_jax/commands/prepare_emoji.py."""

import repository  # noqa: F401

from imagen_jax.commands.prepare_emoji import main

raise SystemExit(main())
