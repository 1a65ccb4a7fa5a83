"""The command `benchmark_data`: see imagen_jax/commands/benchmark_data.py."""

import repository  # noqa: F401

from imagen_jax.commands.benchmark_data import main

raise SystemExit(main())
