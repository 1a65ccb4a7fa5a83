"""The command `human_eval`: see imagen_jax/commands/human_eval.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # to run in a clone, uninstalled

from imagen_jax.commands.human_eval import main

sys.exit(main())
