"""The command `compare_recipes`: see imagen_jax/commands/compare_recipes.py."""

import repository  # noqa: F401

from imagen_jax.commands.compare_recipes import main

raise SystemExit(main())
