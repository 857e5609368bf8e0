"""The page to play with, as an extension of Sphinx: its controls, with the public heads of the committed tables."""

from __future__ import annotations

import html
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from docutils import nodes
from docutils.parsers.rst import Directive

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from analysis.lab.tables import find_table, read_table

__all__ = ["committed", "heads", "markup", "setup"]

DATA = HERE.parent / "paper_figures" / "data"
TEMPLATE = HERE / "explorer.html"
_OWN = '<option value="">your own numbers</option>'


def committed(name: str) -> pd.DataFrame:
    """A committed table, by its name without the ending."""
    path = find_table(DATA, name)
    if path is None:
        raise FileNotFoundError(f"{DATA} has no table {name}: the page takes the public heads from it.")
    return read_table(path)


def heads() -> list[dict[str, Any]]:
    """The public heads of the table ``caps``, then the audited one with the norm product that was measured.

    Returns:
        For each ``name``, ``D``, ``V``, ``c`` (None without a softcap) and ``m`` (None where it was not measured).
    """
    found = [
        {"name": row.model, "D": row.hidden_size, "V": row.vocab_size, "c": _number(row.softcap), "m": None}
        for row in committed("caps").drop_duplicates("model").itertuples()
    ]
    audit = committed("audit_smollm2").set_index("name")
    value, text = audit["value"], audit["text"]
    measured = {
        "name": f"{text['model']}, audited",
        "D": int(value["hidden_size"]),
        "V": int(value["vocab_size"]),
        "c": _number(value["softcap"]),
        "m": round(float(value["norm_product"])),
    }
    return [*found, measured]


def _number(value: float) -> float | None:
    return None if pd.isna(value) else float(value)


def markup() -> str:
    """The controls, the empty drawings and the table of the page."""
    options = [_OWN]
    for head in heads():
        name = html.escape(head["name"])
        data = "".join(f' data-{k.lower()}="{head[k]:g}"' if head[k] is not None else "" for k in ("c", "m"))
        options.append(f'<option value="{name}" data-d="{head["D"]}" data-v="{head["V"]}"{data}>{name}</option>')
    return TEMPLATE.read_text(encoding="utf-8").replace("<!-- heads -->", "\n".join(options))


class Explorer(Directive):
    """``explorer``: the page's controls and drawings, in HTML alone."""

    def run(self) -> list[nodes.Node]:
        """The markup, made anew where template or tables changed."""
        environment = self.state.document.settings.env
        for path in (TEMPLATE, DATA / "caps.csv", DATA / "audit_smollm2.csv", Path(__file__)):
            environment.note_dependency(str(path))
        return [nodes.raw("", markup(), format="html")]


def _scripts(app: Any, page: str, template: str, context: dict[str, Any], tree: nodes.document | None) -> None:
    """Scripts and style for this page alone."""
    if page == "explorer":
        app.add_css_file("explorer/explorer.css")
        for name in ("formulas", "drawings", "explorer"):
            app.add_js_file(f"explorer/{name}.js", loading_method="defer")


def setup(app: Any) -> dict[str, bool]:
    """Add the directive and what its page loads."""
    app.add_directive("explorer", Explorer)
    app.connect("html-page-context", _scripts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
