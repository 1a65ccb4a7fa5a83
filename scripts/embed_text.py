"""The command `embed_text`: see imagen_jax/commands/embed_text.py."""

import repository  # noqa: F401

from imagen_jax.commands.embed_text import main

raise SystemExit(main())
