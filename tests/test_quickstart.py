"""The quickstart notebook runs from top to bottom."""

import os
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_quickstart_notebook_runs(repository: Path, monkeypatch: pytest.MonkeyPatch):
    if not (repository / "imagen_jax/pretrained/icons/model.json").is_file():
        pytest.skip("the model that the notebook loads is not in this checkout")
    import nbclient
    import nbformat

    path = repository / "docs" / "quickstart.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    paths = [str(repository), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=path.parent)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(images) >= 5
