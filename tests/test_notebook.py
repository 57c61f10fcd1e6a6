"""examples/quickstart.ipynb runs as it is, and shows two pictures."""

import nbformat
from nbclient import NotebookClient
from repository import ROOT


def test_the_notebook_shows_pictures(tmp_path):
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in data for data in shown) == 2
    assert list(tmp_path.iterdir()) == []
