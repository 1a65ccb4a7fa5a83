"""The commands: imagen-jax VERB runs `main()` of imagen_jax/commands/VERB.py."""
