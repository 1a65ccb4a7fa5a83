"""The command `make_prompts`: see imagen_jax/commands/make_prompts.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # to run in a clone, uninstalled

from imagen_jax.commands.make_prompts import main

sys.exit(main())
