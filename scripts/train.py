"""The command `train`: see imagen_jax/commands/train.py."""

import repository  # noqa: F401

from imagen_jax.commands.train import main

raise SystemExit(main())
