"""Where compiled programs stay between processes, so that only the first run compiles."""

import os
from pathlib import Path


def use_compilation_cache() -> None:
    """Turn on JAX's persistent compilation cache, unless the user has already chosen one.

    It is `$XDG_CACHE_HOME/imagen_jax/compiled`, by default below `~/.cache`.
    `JAX_COMPILATION_CACHE_DIR` (or `jax.config`) names another place;
    `JAX_ENABLE_COMPILATION_CACHE=false` turns it off. A home that is missing or cannot be
    written means no cache.
    """
    import jax

    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        directory = Path(base) / "imagen_jax" / "compiled"
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a user without a home
        return
    if os.access(directory, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(directory))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
