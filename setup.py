"""What pyproject.toml cannot say: `configs/` is `imagen_jax/configs` in the wheel."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["imagen_jax*"]), "imagen_jax.configs"],
    package_dir={"imagen_jax.configs": "configs"},
)
