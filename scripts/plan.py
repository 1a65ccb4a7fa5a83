"""The command `plan`: see imagen_jax/commands/plan.py."""

import repository  # noqa: F401

from imagen_jax.commands.plan import main

raise SystemExit(main())
