"""Sphinx: pages in Markdown, the reference from the docstrings, formulas by a MathJax that the site carries itself."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from docutils import nodes

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent))

from notebook_pages import write_notebooks
from reference_pages import contents, write_pages

from analysis import __version__

project = "confidence-ceiling"
author = "The confidence-ceiling authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon", "sphinx_copybutton"]
extensions += ["explorer_page"]
nitpicky = True
nitpick_ignore_regex = [
    ("py:class", ".*"),
    ("py:obj", r"typing\.Literal.*"),
]  # the types in signatures, most of them other projects'

myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"inherited-members": "dict,object,tuple"}  # of all bases but these
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_type_aliases = {name: name for name in ("Array", "ArrayLike", "NDArray")}
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = "confidence-ceiling"
html_css_files = ["site.css"]
templates_path = ["_templates"]
html_show_sourcelink = html_copy_source = html_show_sphinx = html_show_copyright = False
# MathJax with its fonts as one script: formulas need no network, and no font that a browser may refuse to load.
mathjax_package: Any = find_spec("sphinx-mathjax-offline")
mathjax = Path(mathjax_package.origin).parent / "static" / "mathjax" / "tex-svg.js"
mathjax_path = mathjax.name
html_static_path = ["_static", str(mathjax)]

copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

_EXTERNAL = {
    "ipywidgets.": "https://ipywidgets.readthedocs.io/en/stable/",
    "ray.": "https://docs.ray.io/en/latest/ray-core/api/doc/{}.html",
    "torch.": "https://docs.pytorch.org/docs/stable/generated/{}.html",
}


def link_outside(app: Any, env: Any, node: Any, content: nodes.Node) -> nodes.Node | None:
    """Lead references to other projects to their pages; without an inventory, which would take a network to build."""
    target = node.get("reftarget", "")
    for prefix, address in _EXTERNAL.items():
        if target.startswith(prefix) and (node["reftype"] != "class" or target.startswith("torch.nn.")):
            link = nodes.reference("", "", internal=False, refuri=address.format(target))
            link += content
            return link
    return None


def plain_underscores(app: Any, tree: nodes.document) -> None:
    r"""Take the backslash from ``\_`` inside ``\text`` and ``\texttt``, where TeX wants it and MathJax shows it."""
    for node in [*tree.findall(nodes.math), *tree.findall(nodes.math_block)]:
        tex = node.astext()
        mended = re.sub(r"\\text(tt)?\{[^{}]*\}", lambda match: match[0].replace(r"\_", "_"), tex)
        if mended != tex:
            node.clear()
            node += nodes.Text(mended)


_LONG = 16  # signs from which on a formula in the text may be broken; $D \le V-1$ is not
_RELATIONS = {"=", *(rf"\{name}" for name in ("le", "ge", "approx", "propto"))}


def pieces(tex: str) -> list[str]:
    r"""Cut a formula in front of its relations, outside of any brackets, as TeX breaks lines and MathJax 3 cannot.

    Example:
        >>> pieces(r"\sum_{k \ne y} (a_k = b) \ge f(t) - V f(1) \ge 0")
        ['\\sum_{k \\ne y} (a_k = b) ', '\\ge f(t) - V f(1) ', '\\ge 0']
    """
    signs = re.findall(r"\\(?:[A-Za-z]+|.)|\s+|.", tex, re.DOTALL)
    shown = [sign not in "{}^_" and not sign.isspace() for sign in signs]
    if sum(shown) < _LONG:
        return [tex]
    found, depth, start = [""], 0, 0
    for place, sign in enumerate(signs):
        depth += (sign in "{([") - (sign in "})]")
        if depth == 0 and sign in _RELATIONS and sum(shown[start:place]) >= _LONG // 4:
            found.append("")
            start = place
        found[-1] += sign
    return found


def link_notebooks(app: Any, name: str, source: list[str]) -> None:
    """Lead links to notebooks, which a reader of the repository can open, to their pages in the site."""
    source[0] = re.sub(r"\]\(\.\./notebooks/(\d\d_\w+)\.ipynb\)", r"](notebooks/\1.md)", source[0])


def break_lines(app: Any, tree: nodes.document) -> None:
    """Let long formulas in the text be broken: a phone would cut them at its edge."""
    for node in list(tree.findall(nodes.math)):
        first, *rest = pieces(node.astext())
        parts: list[nodes.Node] = [nodes.math(first, first)]
        for piece in rest:
            parts += [nodes.Text(" "), nodes.math(piece, piece)]
        if rest:
            node.parent.replace(node, parts)


def skip_foreign(app: Any, what: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """Leave out torch's methods, and "Alias for field number 0": a named tuple's class describes its fields."""
    foreign = str(getattr(value, "__module__", "")).startswith("torch.")
    return True if foreign or type(value).__name__ == "_tuplegetter" else None


def prose_before_colons(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Start what is returned, and a property, with an empty type: napoleon takes what precedes a colon for one."""
    first = [i + 1 for i, line in enumerate(lines[:-1]) if line.strip() == "Returns:"]
    for i in [*first, *([0] if what == "property" and lines else [])]:
        lines[i] = re.sub(r"^(\s*)", r"\1: ", lines[i])


def list_members(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Open the description of a module of many members with their list."""
    if what == "module" and "members" in options:
        lines += contents(name)


def setup(app: Any) -> None:
    """Write the pages of the reference and of the notebooks, and connect the handlers."""
    write_pages(HERE / "reference")
    write_notebooks(HERE / "notebooks")
    app.connect("autodoc-skip-member", skip_foreign)
    app.connect("autodoc-process-docstring", prose_before_colons, priority=400)  # before napoleon's 500
    app.connect("autodoc-process-docstring", list_members)
    app.connect("missing-reference", link_outside)
    app.connect("source-read", link_notebooks)
    app.connect("doctree-read", plain_underscores)
    app.connect("doctree-read", break_lines)
