"""The command `human_eval`: see imagen_jax/commands/human_eval.py."""

import repository  # noqa: F401

from imagen_jax.commands.human_eval import main

raise SystemExit(main())
