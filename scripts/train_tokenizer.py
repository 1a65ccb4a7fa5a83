"""The command `train_tokenizer`: see imagen_jax/commands/train_tokenizer.py."""

import repository  # noqa: F401

from imagen_jax.commands.train_tokenizer import main

raise SystemExit(main())
