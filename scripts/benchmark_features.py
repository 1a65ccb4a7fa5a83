"""The command `benchmark_features`: see imagen_jax/commands/benchmark_features.py."""

import repository  # noqa: F401

from imagen_jax.commands.benchmark_features import main

raise SystemExit(main())
