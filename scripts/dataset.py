"""The command `dataset`: see imagen_jax/commands/dataset.py."""

import repository  # noqa: F401

from imagen_jax.commands.dataset import main

raise SystemExit(main())
