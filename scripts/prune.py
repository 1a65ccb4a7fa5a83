"""The command `prune`: see imagen_jax/commands/prune.py."""

import repository  # noqa: F401

from imagen_jax.commands.prune import main

raise SystemExit(main())
