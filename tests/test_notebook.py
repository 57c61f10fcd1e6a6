"""examples/quickstart.ipynb runs, and shows two pictures."""

import ast

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image
from repository import ROOT

STEPS = "steps=100"


def read(steps):
    """The notebook, whose one run takes so many steps."""
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    trained = [cell for cell in notebook.cells if STEPS in cell.source]
    assert len(trained) == 1
    trained[0].source = trained[0].source.replace(STEPS, steps)
    return notebook


@pytest.mark.slow
def test_a_kernel_shows_the_pictures(tmp_path):
    notebook = read(STEPS)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in data for data in shown) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.system
def test_its_cells_end_in_two_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, shown = {}, []
    for cell in read("steps=2").cells:
        if cell.cell_type == "code":
            *before, last = ast.parse(cell.source).body
            exec(compile(ast.Module(before, []), "cell", "exec"), names)
            if isinstance(last, ast.Expr):
                shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
            else:
                exec(compile(ast.Module([last], []), "cell", "exec"), names)
    assert [type(value) for value in shown] == [Image.Image] * 2  # which Jupyter shows as PNG
    assert list(tmp_path.iterdir()) == []
