"""Every notebook is small, carries no outputs, and runs from top to bottom; the site shows what it has put out."""

import os
import tomllib
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
URL = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


@each_notebook
def test_form(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 30_000
    in_colab = URL.replace("github.com", "colab.research.google.com/github")
    assert f"({in_colab}/blob/main/notebooks/{path.name})" in notebook.cells[0].source
    assert "colab-badge.svg" in notebook.cells[0].source
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert "pip" in code[0].source
    assert f"git+{URL}" in code[0].source
    assert "jax.devices()" in code[1].source
    assert "assert" in code[-1].source


@pytest.mark.slow
@each_notebook
def test_runs(path, monkeypatch):
    """As a user runs it, but for a quicker compiler; on virtual devices where many devices are what it shows."""
    monkeypatch.setenv("RWS_JAX_CI", "1")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # pictures are among the outputs
    flags = os.environ["XLA_FLAGS"].replace("optimization_level=0", "optimization_level=1")
    if path.name != "03_tpu.ipynb":
        # On one device small steps take a quarter of the time; in one thread less still, beside another worker.
        flags = flags.replace("device_count=8", "device_count=1")
        monkeypatch.setenv("NPROC", "1")
    monkeypatch.setenv("XLA_FLAGS", flags)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output.output_type == "execute_result" for output in outputs)  # such as <Legend at 0x7f70cc7d4c50>
    shown = ROOT / "docs" / "learn" / path.name
    shown.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, shown)
