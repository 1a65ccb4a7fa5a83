"""Imagen (arXiv 2205.11487) in JAX: cascaded text-to-image diffusion, from training to images.

pipeline = imagen_jax.load_model("icons")
pipeline.generate_images("student, outline style")
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Pipeline", "list_models", "load_model"]


def __getattr__(name: str) -> Any:
    # Looked up when first used: `import imagen_jax` itself brings neither JAX nor Flax.
    if name == "list_models":
        from imagen_jax.pipeline import shipped

        return shipped.list_models
    if name in __all__:
        from imagen_jax.pipeline import loading

        return getattr(loading, name)
    raise AttributeError(f"module 'imagen_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
