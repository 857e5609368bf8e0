"""Pages of the reference, one for each public module directly under a package, written before each build."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from analysis import _MACHINERY, _PUBLIC  # pyright: ignore[reportAttributeAccessIssue]
from analysis.__main__ import commands, modules, summary

__all__ = ["contents", "pages", "write_pages"]

_LONG = 6  # members from which on a page opens with their list
_FIRST = {"analysis.calibration": "calibration_error"}  # what most come for

_AUTOMODULE = """```{{eval-rst}}
.. automodule:: {name}
   :members:{exclude}
```
"""
_INSIDE = "kernel.inside"
_COMMANDS = """# Commands

What each command prints with `--help`; `python -m analysis` prints their names.

"""
_INDEX = """# Reference

The functions that one meets first are importable from the package: `analysis.simplex_cap` is
`analysis.caps.simplex_cap`. `python -m analysis` prints this map on a terminal.

"""


def pages() -> dict[str, list[str]]:
    """Page -> its modules: functions first, then machinery and commands, then the loss, its inside last."""
    found: dict[str, list[str]] = {f"analysis.{name}": [] for name in (*_PUBLIC, *_MACHINERY)}
    for name, _ in modules("analysis"):
        if name != "analysis":
            found.setdefault(".".join(name.split(".")[:2]), []).append(name)
    found |= {"kernel": [], "kernel.huggingface": [], _INSIDE: []}
    for name, _ in modules("kernel"):
        page = "kernel.huggingface" if name.startswith("kernel.huggingface") else _INSIDE
        found["kernel" if name == "kernel" else page].append(name)
    return found


def write_pages(folder: Path) -> None:
    """Write them and their index into ``folder``; a page whose text is unchanged keeps its time."""
    folder.mkdir(exist_ok=True)
    lines = {name: summary(path) for package in ("analysis", "kernel") for name, path in modules(package)}
    lines[_INSIDE] = "The modules behind the loss, for those who change them."
    wanted = {f"{page}.md": _page(page, names) for page, names in pages().items()}
    lines["commands"] = "What every command says of itself with --help."
    listing = "".join(f"| [`{page}`]({page}.md) | {lines[page]} |\n" for page in (*pages(), "commands"))
    tree = "\n".join((*pages(), "commands"))
    wanted["commands.md"] = _COMMANDS + "\n".join(_help())
    wanted["index.md"] = f"{_INDEX}| module | |\n|---|---|\n{listing}\n```{{toctree}}\n:hidden:\n\n{tree}\n```\n"
    for path in folder.glob("*.md"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _help() -> Iterator[str]:
    """What ``--help`` prints, for every command."""
    for name, path in commands():
        main = import_module(f"{name}.__main__" if path.name == "__main__.py" else name).main
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            main(["--help"])
        shown = text.getvalue().replace(f"{Path(__file__).resolve().parents[1]}/", "")
        yield f"## python -m {name}\n\n```{{code-block}} text\n:class: help\n\n{shown.strip()}\n```\n"


def _page(page: str, names: list[str]) -> str:
    first, *rest = names if page in names else ["", *names]
    parts = [f"# {'Inside the kernel' if page == _INSIDE else page}\n"]
    parts += [_automodule(first, page)] if first else ["Nothing here is needed to use the loss.\n"]
    for name in rest:
        parts += [f"## {name}\n", _automodule(name, page)]
    return "\n".join(parts)


def contents(name: str) -> list[str]:
    """What the module of a page offers, a line each with its first sentence: functions, then classes.

    Args:
        name: The module.

    Returns:
        Lines of reStructuredText, to be read after the module's docstring; none where the members are few.
    """
    module = import_module(name)
    described = {
        member: inspect.getdoc(value)
        for member in getattr(module, "__all__", ())
        if inspect.isroutine(value := getattr(module, member)) or inspect.isclass(value)
    }
    if name not in pages() or len(described) < _LONG:
        return []
    classes = {member for member in described if inspect.isclass(getattr(module, member))}
    members = sorted(described, key=lambda member: (member != _FIRST.get(name), member in classes))
    lines = ["", ".. list-table::", "   :class: members", "   :widths: 38 62", ""]
    for member in members:
        role = "class" if member in classes else "func"
        first = (described[member] or "").partition("\n")[0]
        first = re.sub(r":(?!math)\w+:`[~.]?([^`]+)`", r"``\1``", first)  # links that hold in another scope
        lines += [f"   * - :{role}:`{member} <{name}.{member}>`", f"     - {first}"]
    return [*lines, ""]


def _automodule(name: str, page: str) -> str:
    """The directive; what a package offers itself is described there alone."""
    exclude = ""
    if name != page:
        package = import_module(page if page != _INSIDE else "kernel")
        twice = set(getattr(package, "__all__", ())) & set(getattr(import_module(name), "__all__", ()))
        exclude = f"\n   :exclude-members: {', '.join(sorted(twice))}" if twice else ""
    return _AUTOMODULE.format(name=name, exclude=exclude)
