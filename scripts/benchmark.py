"""The command `benchmark`: see imagen_jax/commands/benchmark.py."""

import repository  # noqa: F401

from imagen_jax.commands.benchmark import main

raise SystemExit(main())
