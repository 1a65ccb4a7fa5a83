"""The command `prepare_emoji`: see imagen_jax/commands/prepare_emoji.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # to run in a clone, uninstalled

from imagen_jax.commands.prepare_emoji import main

sys.exit(main())
