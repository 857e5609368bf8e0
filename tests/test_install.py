"""What ``make install`` leaves: the pins are all that is needed, and the package is found whatever lies on the path."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
BROUGHT_BY_TORCH = re.compile(r"(nvidia|cuda|torch-c)-")  # its builds differ in these: pip adds them after the pins


def pins(*names: str) -> dict[str, str]:
    """Name -> version of what is pinned for this Python."""
    lines = [line for name in names for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    wanted = [Requirement(line) for line in lines if not line.startswith("#")]
    found = [(canonicalize_name(r.name), str(r.specifier)) for r in wanted if r.marker is None or r.marker.evaluate()]
    assert len(found) == len(dict(found)), "pinned twice"
    assert all(specifier.startswith("==") for _, specifier in found)
    return {name: specifier[2:] for name, specifier in found}


def needed(requirements: list[str]) -> set[str]:
    """The names of all that these need, and that those need, as installed."""
    waiting, seen = [Requirement(r) for r in requirements], set()
    while waiting:
        requirement = waiting.pop()
        for extra in ["", *requirement.extras]:
            name = canonicalize_name(requirement.name)
            if (name, extra) in seen or BROUGHT_BY_TORCH.match(name):
                continue
            seen.add((name, extra))
            for line in metadata.requires(name) or []:
                inner = Requirement(line)
                if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                    waiting.append(inner)
    return {name for name, _ in seen}


def of(*extras: str) -> list[str]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    asked = [Requirement(line) for line in lines]
    return [str(r).partition(";")[0] for r in asked if r.marker is None or r.marker.evaluate()]


def test_the_pins_are_what_the_extra_dev_needs():
    """`make install` takes them as they are: one too few and something is missing, one too many lies about for nothing."""
    listed = pins("constraints.txt")
    there = {canonicalize_name(d.name): d.version.partition("+")[0] for d in metadata.distributions()}
    if other := {name for name, version in listed.items() if there.get(name, version) != version}:
        pytest.skip(f"installed with other pins: {', '.join(sorted(other))}")
    (parts,) = (Requirement(line).extras for line in EXTRAS["dev"])
    assert sorted(listed) == sorted(needed(of(*sorted(parts))))


def test_the_pins_fit_what_is_asked_for():
    listed = pins("constraints.txt", "constraints-models.txt")
    (parts,) = (Requirement(line).extras for line in EXTRAS["dev"])
    for requirement in map(Requirement, of(*sorted(parts), "gemma", "huggingface", "instruction", "real")):
        assert listed[canonicalize_name(requirement.name)] in requirement.specifier, requirement


@pytest.mark.parametrize("package", ["analysis", "kernel"])
def test_a_folder_of_the_same_name_does_not_hide_the_install(package, tmp_path):
    """Results in ``./analysis/``, say: a folder without ``__init__.py`` is a package, too, if nothing else is found."""
    try:
        origin = json.loads(metadata.distribution("confidence-ceiling").read_text("direct_url.json") or "{}")
    except metadata.PackageNotFoundError:
        pytest.skip("not installed")
    if origin.get("url") != ROOT.as_uri():
        pytest.skip("another tree is installed")
    (tmp_path / package).mkdir()
    run = subprocess.run(
        [sys.executable, "-c", f"import {package}; print({package}.__file__)"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(run.stdout.strip()) == ROOT / package / "__init__.py"
