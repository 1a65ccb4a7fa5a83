"""The command `make_prompts`: see imagen_jax/commands/make_prompts.py."""

import repository  # noqa: F401

from imagen_jax.commands.make_prompts import main

raise SystemExit(main())
