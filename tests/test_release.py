"""Wheel and sdist: built without a network, complete, and of use where there is no repository."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

import analysis

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytest.importorskip("hatchling")

ROOT = Path(__file__).resolve().parent.parent
VERSION = analysis.__version__
INSTALLING = ("README.md", "CONTRIBUTING.md", "docs/*.md", "notebooks/*.py", "analysis/**/*.py", "kernel/**/*.py")


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run([str(w) for w in words], cwd=cwd, env=environment, capture_output=True, text=True)


def done(*words: str | Path, cwd: Path) -> str:
    made = run(*words, cwd=cwd)
    assert made.returncode == 0, made.stdout + made.stderr
    return made.stdout


def copied(to: Path) -> Path:
    """The files that git knows, as other tests may write beside them meanwhile; without git, all there is."""
    if shutil.which("git") is None or (listed := run("git", "ls-files", "-z", cwd=ROOT)).returncode:
        return ROOT
    for name in listed.stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
    return to


class Release(NamedTuple):
    tree: Path  # what it is built from
    sdist: Path
    source: Path  # its files
    wheel: Path
    python: Path  # of an environment that has the wheel, and else what this one has
    site: Path


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Release:
    folder = tmp_path_factory.mktemp("release")
    build = (sys.executable, "-m", "hatchling", "build", "-d", folder, "-t")
    tree = copied(folder / "tree")
    done(*build, "sdist", cwd=tree)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.10.12, 3.11.4 and later
        archive.extractall(folder / "unpacked", **safely)
    source = folder / "unpacked" / sdist.name.removesuffix(".tar.gz")
    done(*build, "wheel", cwd=source)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", symlinks=True)
    python, paths = folder / "venv" / "bin" / "python", sysconfig.get_paths()
    site = Path(done(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # Folders alone: what .pth files there name, an editable install of this tree among them, is not followed.
    (site / "dependencies.pth").write_text("\n".join({paths["purelib"]: None, paths["platlib"]: None}) + "\n")
    install = ("install", "--quiet", "--no-deps", "--no-index", "--no-compile")
    done(sys.executable, "-m", "pip", *install, "--target", site, wheel, cwd=folder)  # --python: pip 22.3 and later
    return Release(tree, sdist, source, wheel, python, site)


def test_versions_agree():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    released = re.findall(r"^## (\S+)(?: - (\S+))?$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [VERSION]
    assert released[0] == ("Unreleased", "")
    assert [version for version, _ in released[1:]] == ["0.3.0", "0.2.0", "0.1.0"]
    assert re.findall(r"^date-released: (.+)$", citation, re.MULTILINE) == [dict(released)[VERSION]]


def imported(package: str) -> dict[str, str]:
    """Top-level modules that a package imports when its modules are imported, and one of these for each.

    What a function, or an ``if`` or ``try`` for what may be missing, imports belongs to an extra.
    """
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {name.partition(".")[0]: str(path.relative_to(ROOT)) for name in names}
    return found


def test_what_is_imported_without_an_extra_is_a_dependency():
    """The other tests here run beside this environment's packages and would not miss one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {re.split(r"[^\w-]", line)[0] for line in project["dependencies"]}
    found = imported("analysis") | imported("kernel")
    brought = {"matplotlib": "seaborn"}  # of which it is a dependency
    known = {*named, *sys.stdlib_module_names, "analysis", "kernel"}
    assert {name: path for name, path in found.items() if brought.get(name, name) not in known} == {}
    assert named <= {*found, *brought.values()}, "a dependency that nothing imports"


def test_the_wheel_holds_the_code_and_the_tables_and_nothing_else(release):
    with zipfile.ZipFile(release.wheel) as wheel:
        names = wheel.namelist()
    assert {name.split("/")[0] for name in names} == {"analysis", "kernel", f"confidence_ceiling-{VERSION}.dist-info"}
    tree = release.tree
    code = {str(p.relative_to(tree)) for package in ("analysis", "kernel") for p in (tree / package).rglob("*.py")}
    assert len(code) > 100
    assert code <= set(names)
    data = tree / "paper_figures" / "data"
    tables = {f"analysis/data/{p.relative_to(data)}" for p in data.rglob("*") if re.search(r"\.(csv|csv\.gz|json)$", p.name)}  # fmt: skip
    assert {name for name in names if name.startswith("analysis/data/")} == tables - {
        "analysis/data/kernel_samples.csv"
    }
    assert any(name.endswith("licenses/LICENSE") for name in names)
    with tarfile.open(release.sdist) as archive:
        listed = {name.partition("/")[2] for name in archive.getnames()}
    assert {"tests/test_install.py", "docs/study.md", "constraints.txt", "paper_figures/data/full_rows.xz"} <= listed


def test_an_editable_install_leaves_the_tables_where_they_lie(release, tmp_path):
    hook = "import sys; from hatchling.build import build_editable; print(build_editable(sys.argv[1]))"  # pip's for -e
    (name,) = done(sys.executable, "-c", hook, tmp_path, cwd=release.source).split()
    with zipfile.ZipFile(tmp_path / name) as wheel:
        places = {name.split("/")[0] for name in wheel.namelist()}
    assert {place for place in places if not place.endswith(".pth")} == {f"confidence_ceiling-{VERSION}.dist-info"}


def test_what_is_installed_works_without_the_repository(release, tmp_path):
    python = release.python
    where = done(
        python,
        "-c",
        """
import sys
import analysis, kernel
print(analysis.__file__, kernel.__file__, *sys.path, sep="\\n")
import torch
from torch.nn.functional import cross_entropy
hidden, weight, target = torch.randn(5, 4), torch.randn(7, 4), torch.arange(5)
loss = kernel.linear_cross_entropy(hidden, weight, target, label_smoothing=0.1)
assert torch.allclose(loss, cross_entropy(hidden @ weight.T, target, label_smoothing=0.1), atol=1e-5)
from analysis.command import committed_folder, output_folder
from analysis.notebook import committed_table
print(committed_folder(), output_folder(), len(committed_table("verdicts")), sep="\\n")
from analysis.study.__main__ import main
print(main(["sources"]))
""",
        cwd=tmp_path,
    ).splitlines()
    assert where[:2] == [str(release.site / package / "__init__.py") for package in ("analysis", "kernel")]
    assert str(ROOT) not in where
    assert where[-4:] == [str(release.site / "analysis" / "data"), "out", "9", "2"]
    shown = done(python, "-m", "analysis", cwd=tmp_path)
    assert re.search(rf"^  confidence-ceiling +{re.escape(VERSION)}$", shown, re.MULTILINE)
    assert "  analysis.audit " in shown
    assert "paper_figures" not in shown
    assert done(python, "-m", "analysis.audit", "--help", cwd=tmp_path).startswith("usage: python -m analysis.audit ")
    asked = done(python, "-m", "kernel.benchmark.targets", cwd=tmp_path)
    assert re.search(r"^\d+ of \d+ met", asked, re.MULTILINE)


def test_verdicts_are_judged_from_the_tables_of_the_wheel(release, tmp_path):
    shown = done(release.python, "-m", "analysis.study", "verdicts", "--preset", "quick", cwd=tmp_path)
    assert shown.startswith(
        f"from the tables of {release.site / 'analysis' / 'data' / 'quick'}, preset quick (preliminary)\n"
    )
    assert re.findall(r"^(K\d)  ", shown, re.MULTILINE) == [f"K{i}" for i in range(1, 10)]
    assert "not decided" not in shown


def test_nothing_says_that_a_package_index_has_the_project():
    """Until it is there; then `kernel.extras.pip_install` and this test change."""
    texts = {p: p.read_text(encoding="utf-8") for pattern in INSTALLING for p in sorted(ROOT.glob(pattern))}
    assert len(texts) > 200
    said = [f"{p.relative_to(ROOT)}: {m[0]}" for p, t in texts.items() for m in re.finditer(r"pip install.*", t)]
    assert [line for line in said if "confidence-ceiling" in line or "confidence_ceiling" in line] == []
    # an extra is installed from a clone, as one function says; README and docs write it for those who have cloned
    own = [line for line in said if re.search(r"\.\[", line) and line.startswith(("analysis/", "kernel/"))]
    assert own == [line for line in own if line.startswith("kernel/extras.py: ")] != []
