"""The command `benchmark_icons`: see imagen_jax/commands/benchmark_icons.py."""

import repository  # noqa: F401

from imagen_jax.commands.benchmark_icons import main

raise SystemExit(main())
