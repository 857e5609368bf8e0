"""A map of the packages and the versions found here: ``python -m analysis``."""

from __future__ import annotations

import ast
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from . import _MACHINERY, _PUBLIC, __version__  # pyright: ignore[reportAttributeAccessIssue]
from .command import finish, parser_of

__all__ = ["commands", "main", "modules", "summary", "versions"]

_PACKAGES = ("analysis", "kernel", "paper_figures")  # the last one in a clone only
# Former names of benchmarks, which run as before and are in no list: sidecars of committed tables mention them.
_FORMER = ("kernel.benchmark_cpu", "kernel.benchmark_statistics", "kernel.huggingface.benchmark")
_VERSIONS = ("numpy", "scipy", "pandas", "torch", "triton", "transformers", "trl", "ray", "jupyter")
_EXAMPLES = """
examples:
  python -m analysis                        this map
  python -m analysis --versions             versions and device alone, for a report of a bug
  python -m analysis.study run S3 --help    every command explains itself
"""


def modules(package: str) -> Iterator[tuple[str, Path]]:
    """Public modules of a package, itself first, by name and file; nothing is imported.

    Example:
        >>> "analysis.caps" in dict(modules("analysis"))
        True
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return
    root = Path(spec.origin).parent
    for path in sorted(root.rglob("*.py"), key=lambda p: p.with_suffix("").parts):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if not any(part.startswith("_") for part in parts):
            yield ".".join((package, *parts)), path


def commands() -> Iterator[tuple[str, Path]]:
    """What ``python -m`` runs, by name and file: packages with a ``__main__`` and modules that call their ``main``.

    Former names are left out.
    """
    for package in _PACKAGES:
        for name, path in modules(package):
            if name in _FORMER:
                continue
            main_file = path.with_name("__main__.py")
            if path.name == "__init__.py" and main_file.exists():
                yield name, main_file
            elif re.search(r"^if __name__ == .__main__.:", path.read_text(encoding="utf-8"), re.MULTILINE):
                yield name, path


def summary(path: Path) -> str:
    """First line of a module's docstring without markup and without the command that it names."""
    first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
    return re.sub(r":? ``python -m [^`]*``", "", first).replace("``", "")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that matter here, and the CUDA device; "none" where there is none."""
    found = {"confidence-ceiling": __version__, "python": platform.python_version()}
    found |= {name: _version(name) for name in _VERSIONS}
    import torch  # here: it takes a second

    found["CUDA device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return found


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "none"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the map; returns the exit status."""
    parser = parser_of("analysis", "A map of the packages, of their commands, and the versions found here.", _EXAMPLES)
    parser.add_argument("--versions", action="store_true", help="the versions alone")
    only_versions = parser.parse_args(arguments).versions
    return finish(lambda: _print(only_versions))


def _print(only_versions: bool) -> int:
    if not only_versions:
        own = [(name, path) for name, path in modules("analysis") if name.count(".") == 1]
        short = {name.partition(".")[2]: summary(path) for name, path in own}
        _table("Functions: import analysis, then analysis.NAME. They live in", {n: short[n] for n in _PUBLIC})
        _table("Modules: analysis.MODULE.NAME", {n: short[n] for n in _MACHINERY})
        loss = {name: summary(path) for name, path in modules("kernel") if name in ("kernel", "kernel.huggingface")}
        _table("Loss and statistics of a language-model head", loss)
        _table("Commands: python -m NAME --help", {name: summary(path) for name, path in commands()})
    _table("Found here", versions())
    return 0


def _table(title: str, lines: dict[str, str]) -> None:
    print(title)
    for name, text in lines.items():
        print(f"  {name:29} {text}")
    print()


if __name__ == "__main__":
    sys.exit(main())
