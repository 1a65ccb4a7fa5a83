"""The page as a hosted space: imagen-jax app, open to all, with the shipped models alone."""

import importlib.util
import os
import sys
import tempfile
import zipfile
from pathlib import Path

# Spaces install requirements.txt before this folder is there, so the wheel is unpacked here.
if importlib.util.find_spec("imagen_jax") is None:
    unpacked = tempfile.mkdtemp()
    wheel = next(Path(__file__).parent.glob("imagen_jax-*.whl"))
    zipfile.ZipFile(wheel).extractall(unpacked)
    sys.path.insert(0, unpacked)

from imagen_jax.commands.app import main

PORT = os.environ.get("GRADIO_SERVER_PORT", "7860")
main(f"--host 0.0.0.0 --port {PORT} --fixed_models --max_images 4 --max_steps 50".split())
