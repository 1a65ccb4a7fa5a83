"""The command `embed_text`: see imagen_jax/commands/embed_text.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # to run in a clone, uninstalled

from imagen_jax.commands.embed_text import main

sys.exit(main())
