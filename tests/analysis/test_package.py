"""The package's front door: every public name once, loaded when used."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import analysis


def public_modules() -> list[str]:
    """Modules and packages directly under analysis that declare public names; commands and private ones aside."""
    root = Path(analysis.__file__).parent
    found = [
        p.stem if p.suffix else p.name for p in root.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()
    ]
    return sorted(name for name in found if not name.startswith("_") and name not in analysis._COMMANDS)


def test_every_module_is_listed():
    assert sorted([*analysis._PUBLIC, *analysis._MACHINERY]) == public_modules()
    assert len(analysis._PUBLIC) >= 5


@pytest.mark.parametrize("module", sorted(analysis._PUBLIC))
def test_flat_names_are_those_of_their_module(module):
    for name in analysis._PUBLIC[module].split():
        assert name in import_module(f"analysis.{module}").__all__
        assert getattr(analysis, name) is getattr(import_module(f"analysis.{module}"), name)
        assert name in dir(analysis)


def test_the_flat_names_are_few():
    assert 30 <= len(" ".join(analysis._PUBLIC.values()).split()) <= 45


@pytest.mark.parametrize("module", sorted(analysis._PUBLIC))
def test_a_name_of_a_module_alone_says_where_it_lives(module):
    for name in set(import_module(f"analysis.{module}").__all__) - set(analysis._PUBLIC[module].split()):
        with pytest.raises(AttributeError, match=rf"has no attribute '{name}': it is analysis\.\w+\.{name}$"):
            getattr(analysis, name)


def test_no_name_stands_twice():
    names = [name for names in analysis._PUBLIC.values() for name in names.split()]
    assert len(names) == len(set(names))
    assert not set(names) & set(analysis._PUBLIC)


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match=r"^module 'analysis' has no attribute 'nothing'$"):
        _ = analysis.nothing


def test_no_private_module_is_imported_from_another_package():
    """``from ..calibration._truth import`` reaches into a room; what others need is public there."""
    root = Path(analysis.__file__).parent.parent
    reached = {
        f"{path.relative_to(root)}: {line.strip()}"
        for package in ("analysis", "kernel", "paper_figures")
        for path in (root / package).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.match(r"\s*from ((\.\.+|analysis|kernel)[\w.]*\b_[a-z]\w*[\w.]* import|\.\.+ import .*\b_[a-z])", line)
    }
    assert reached == set()


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import analysis", {"numpy", "scipy", "torch", "pandas", "matplotlib", "seaborn"}),
        ("import analysis; analysis.simplex_cap(5.0, 256)", {"torch", "pandas", "matplotlib", "seaborn"}),
        ("import analysis.caps, analysis.smoothing", {"torch", "pandas", "matplotlib", "seaborn"}),
        ("import analysis.diagnostics", {"torch", "pandas", "matplotlib", "seaborn"}),
        ("import analysis.calibration as c; c.CalibrationState().update([.5], [1])", {"torch", "pandas", "matplotlib"}),
        ("import analysis.lab.records, analysis.lab.tables", {"torch", "matplotlib", "seaborn"}),
        ("import kernel", {"pandas", "matplotlib", "seaborn", "scipy", "analysis"}),
    ],
)
def test_imports_cost_what_their_use_costs(code, absent):
    script = f"import sys; {code}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    # torch itself may load numpy and others: only what it does not count is held against us
    assert "analysis" in loaded or "kernel" in loaded
    assert not absent & set(loaded)


def test_no_two_classes_have_one_name():
    """One word, one meaning: also for whoever reads a traceback."""
    root, found = Path(analysis.__file__).parent.parent, {}
    for path in (path for package in ("analysis", "paper_figures") for path in (root / package).rglob("*.py")):
        for name in re.findall(r"^class (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            found.setdefault(name, []).append(str(path.relative_to(root)))
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}
