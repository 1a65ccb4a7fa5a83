"""The command `benchmark_features`: see imagen_jax/commands/benchmark_features.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # to run in a clone, uninstalled

from imagen_jax.commands.benchmark_features import main

sys.exit(main())
