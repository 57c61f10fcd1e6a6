"""examples/quickstart.ipynb runs, and shows two pictures."""

import nbformat
import pytest
from nbclient import NotebookClient
from repository import ROOT

STEPS = "steps=100"


@pytest.mark.parametrize("steps", [pytest.param(STEPS, marks=pytest.mark.slow, id="as it is"), "steps=2"])
def test_the_notebook_shows_pictures(steps, tmp_path):
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    trained = [cell for cell in notebook.cells if STEPS in cell.source]
    assert len(trained) == 1
    trained[0].source = trained[0].source.replace(STEPS, steps)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in data for data in shown) == 2
    assert list(tmp_path.iterdir()) == []
