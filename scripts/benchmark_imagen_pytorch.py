"""The command `benchmark_imagen_pytorch`: see imagen_jax/commands/benchmark_imagen_pytorch.py."""

import repository  # noqa: F401

from imagen_jax.commands.benchmark_imagen_pytorch import main

raise SystemExit(main())
