"""The command `verify`: see imagen_jax/commands/verify.py."""

import repository  # noqa: F401

from imagen_jax.commands.verify import main

raise SystemExit(main())
