"""The command `benchmark_imagen_pytorch`: see imagen_jax/commands/benchmark_imagen_pytorch.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # to run in a clone, uninstalled

from imagen_jax.commands.benchmark_imagen_pytorch import main

sys.exit(main())
