"""The command `benchmark_networks`: see imagen_jax/commands/benchmark_networks.py."""

import repository  # noqa: F401

from imagen_jax.commands.benchmark_networks import main

raise SystemExit(main())
