"""Parameters from and to files: safetensors of our own and of other people's models. No pickles."""
