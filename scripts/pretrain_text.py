"""The command `pretrain_text`: see imagen_jax/commands/pretrain_text.py."""

import repository  # noqa: F401

from imagen_jax.commands.pretrain_text import main

raise SystemExit(main())
