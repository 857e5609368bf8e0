"""Pages made of the notebooks as they were committed, with their outputs; written before each build, never run."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

__all__ = ["NOTEBOOKS", "page_of", "title_of", "write_notebooks"]

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
_INDEX = """# Notebooks

Eight notebooks, one question each, shown here with the outputs they were committed with. `jupyter lab notebooks/` opens
them in a clone, where some figures have sliders; they read the committed tables and train small models in seconds.

{listing}

```{{toctree}}
:hidden:

{tree}
```
"""


def title_of(notebook: Path) -> tuple[str, str]:
    """Its title, and the question that its introduction asks in bold."""
    text = _source(_cells(notebook)[0])
    question = next(bold for bold in re.findall(r"\*\*(.+?)\*\*", text, re.DOTALL) if "?" in bold)
    return text.partition("\n")[0].removeprefix("# "), " ".join(question.split())


def page_of(notebook: Path, images: Path) -> str:
    """The notebook in Markdown; its pictures are written into ``images``.

    Args:
        notebook: A file ``.ipynb``.
        images: The folder of the page.

    Returns:
        The text of the page, whose formulas, tables and code are those of any other page of the site.
    """
    parts = []
    for place, cell in enumerate(_cells(notebook)):
        source = _source(cell)
        if cell["cell_type"] == "markdown":
            parts.append(_relinked(source))
            continue
        parts.append(_fenced(source, "python"))
        parts += [_output(o, images / f"{notebook.stem}_{place}_{n}.png") for n, o in enumerate(cell["outputs"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_notebooks(folder: Path) -> None:
    """Write a page for each notebook, and their index, into ``folder``; an unchanged page keeps its time."""
    folder.mkdir(exist_ok=True)
    notebooks = sorted(NOTEBOOKS.glob("*.ipynb"))
    wanted = {f"{path.stem}.md": page_of(path, folder) for path in notebooks}
    listing = "\n".join(
        f"- [{title}]({path.stem}.md): {question}" for path in notebooks for title, question in [title_of(path)]
    )
    pictures = set(re.findall(r"^!\[.+\]\((.+\.png)\)$", "\n".join(wanted.values()), re.MULTILINE))
    wanted["index.md"] = _INDEX.format(listing=listing, tree="\n".join(path.stem for path in notebooks))
    for path in (*folder.glob("*.md"), *folder.glob("*.png")):
        if path.name not in wanted and path.name not in pictures:
            path.unlink()
    for name, text in wanted.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _cells(notebook: Path) -> list[dict[str, Any]]:
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def _source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"]).strip()


def _relinked(text: str) -> str:
    """Links between notebooks and to the docs, as they lie in the site."""
    return re.sub(r"\]\(../docs/", "](../", re.sub(r"\]\((\d\d_\w+)\.ipynb", r"](\1.md", text))


def _fenced(text: str, language: str) -> str:
    return f"````{{code-block}} {language}\n{text.rstrip()}\n````"


def _output(output: dict[str, Any], image: Path) -> str:
    """What a cell showed: its picture, else its table, else its text."""
    data = output.get("data", {})
    if "image/png" in data:
        image.write_bytes(base64.b64decode("".join(data["image/png"])))
        return f"![Figure drawn by the code above]({image.name})"
    if "text/html" in data:
        table = re.sub(r"<style.*?</style>", "", "".join(data["text/html"]), flags=re.DOTALL)
        table = table.replace('border="1" class="dataframe"', 'class="docutils dataframe"')
        return f'````{{raw}} html\n<div class="table-wrapper docutils container">\n{table}\n</div>\n````'
    text = "".join(output.get("text") or data.get("text/plain", ""))
    return f"````{{code-block}} text\n:class: output\n\n{text.rstrip()}\n````" if text.strip() else ""
