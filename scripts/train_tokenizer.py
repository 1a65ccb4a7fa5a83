"""The command `train_tokenizer`: see imagen_jax/commands/train_tokenizer.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # to run in a clone, uninstalled

from imagen_jax.commands.train_tokenizer import main

sys.exit(main())
