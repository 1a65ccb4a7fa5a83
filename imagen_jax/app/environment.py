"""What is set before Gradio is imported: it speaks to nobody, and keeps its files in our folder."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

# It neither counts its users nor looks for a newer version; nor does it sum up all calls at each.
QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(2**62),
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


@contextlib.contextmanager
def visitors_folder() -> Iterator[Path]:
    """A folder for what visitors upload and get, of this user alone, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="imagen_jax_app_", ignore_cleanup_errors=True) as name:
        folder, before = Path(name).resolve(), os.environ.get("GRADIO_TEMP_DIR")
        os.environ.update(QUIET, GRADIO_TEMP_DIR=str(folder))
        try:
            yield folder
        finally:
            os.environ.pop("GRADIO_TEMP_DIR")
            if before is not None:
                os.environ["GRADIO_TEMP_DIR"] = before
