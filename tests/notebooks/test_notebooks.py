"""Every notebook runs from top to bottom, in a folder that is not its own, and is in step with its script."""

import re
from functools import cache
from pathlib import Path

import pytest

import analysis

nbformat = pytest.importorskip("nbformat", reason="the notebooks extra is not installed")
nbclient = pytest.importorskip("nbclient", reason="the notebooks extra is not installed")
ROOT = Path(analysis.__file__).parent.parent
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
CPU_SECONDS = 90  # 07 unpacks the weights of a real model, where they are installed: 35 of its 50
MOST_BYTES = 400_000
# What torchao logs where transformers finds it; whoever makes the notebooks anew need not have it.
OF_TORCHAO = re.compile(r"(?:.*(?:/torchao/|torchao version|register_constant\(\)).*\n?)+")
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@cache
def committed(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    """What a cell shows: the richest form of each of its outputs; what is printed comes in one piece or in several."""
    order = ("image/png", "text/html", "text/plain")
    found = [
        next(kind for kind in order if kind in output.data) if "data" in output else output.output_type
        for output in cell.outputs
    ]
    return [kind for before, kind in zip(["", *found], found, strict=False) if not before == kind == "stream"]


def texts(notebook):
    """Everything that the outputs say in words."""
    for cell in code_cells(notebook):
        for output in cell.outputs:
            yield from ([output.text] if "text" in output else [])
            yield from (text for kind, text in output.get("data", {}).items() if kind != "image/png")


def assert_clean(notebook, *folders):
    """Neither errors nor warnings nor where it ran."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert not [output for output in outputs if any("widget" in kind for kind in output.get("data", {}))]
    said = "\n".join(map(str, texts(notebook)))
    for folder in (*map(str, folders), "/home/", "/tmp/", "/root/", "site-packages", "\x1b["):
        assert folder not in said


def test_there_are_notebooks_and_each_has_its_script():
    assert NOTEBOOKS, f"no notebook in {FOLDER}"
    assert {path.stem for path in NOTEBOOKS} == {path.stem for path in FOLDER.glob("*.py")}


@each
@pytest.mark.filterwarnings("default")  # what warns inside the notebook machinery is not ours
def test_the_notebook_runs_anywhere(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(path, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs = []
    notebook.cells.append(nbformat.v4.new_code_cell("import time; print(time.process_time())"))
    folder = tmp_path / "somewhere else"
    folder.mkdir()
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    for cell in code_cells(notebook):
        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" or not OF_TORCHAO.fullmatch(o.text)]
    assert not list(folder.iterdir()), "a notebook writes no files"
    seconds = float(notebook.cells.pop().outputs[0].text)  # of the processor: waiting for other tests does not count
    assert seconds < CPU_SECONDS
    assert_clean(notebook, ROOT, tmp_path)
    for cell, before in zip(code_cells(notebook), code_cells(committed(path)), strict=True):
        assert kinds(cell) == kinds(before)


@each
def test_the_committed_notebook_has_run_and_matches_its_script(path):
    notebook = committed(path)
    code = code_cells(notebook)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert_clean(notebook, ROOT)
    assert sum("image/png" in kinds(cell) for cell in code) >= 2
    assert path.stat().st_size < MOST_BYTES
    assert not [cell.metadata for cell in notebook.cells if "execution" in cell.metadata]  # time stamps
    jupytext = pytest.importorskip("jupytext", reason="the notebooks extra is not installed")
    script = jupytext.read(path.with_suffix(".py"))
    assert [(cell.cell_type, cell.source) for cell in script.cells] == [
        (cell.cell_type, cell.source) for cell in notebook.cells
    ]


@each
def test_the_notebook_asks_says_what_it_does_not_show_and_points_on(path):
    prose = "\n".join(cell.source for cell in committed(path).cells if cell.cell_type == "markdown")
    assert prose.startswith(f"# {path.stem[:2]} · ")
    for part in ("?", "## What was learnt", "**Not shown:**"):
        assert part in prose
    links = re.findall(r"\]\((?!https?:)([^)#]+)", prose)
    assert links
    for link in links:
        assert (FOLDER / link).exists(), f"{path.name} points to {link}, which is not there"
