"""The command `push`: see imagen_jax/commands/push.py."""

import repository  # noqa: F401

from imagen_jax.commands.push import main

raise SystemExit(main())
