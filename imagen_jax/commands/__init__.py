"""The commands: scripts/VERB.py runs `main()` of imagen_jax/commands/VERB.py."""
