"""Where rows and tables come from: the environment of this process, and what the sidecar of a table says."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from .. import __version__
from .records import ROWS_VERSION, RowStore, config_key, configs_hash

__all__ = ["SCHEMA", "check_schema", "environment", "made_here", "made_of_rows"]

# What every sidecar says; a null is explained in its "note".
SCHEMA = ("command", "config", "seeds", "versions", "device", "commit", "wall_seconds")
_NO_COMMIT = "computed outside a repository: no commit"


def environment() -> dict[str, str | None]:
    """Describe this process for the record: versions, machine and git commit.

    The commit is that of the variable CONFIDENCE_CEILING_COMMIT where it is set, for a tree that travels without its
    history or with another; else the repository's, or None.
    """
    packages = ("torch", "numpy", "scipy", "triton")
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "confidence_ceiling": __version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "gpu": _gpu(),
        "commit": os.environ.get("CONFIDENCE_CEILING_COMMIT") or _commit(),
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _gpu() -> str | None:
    """Name of the GPU; only asked where a torch that can use one is loaded."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None


def _commit() -> str | None:
    """Commit of this source tree, with ``+`` where the tree has changes since."""
    here = Path(__file__).parents[1]  # analysis

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # installed into somebody else's repository?
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(here), str(here.parent / "kernel"))
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def made_here(
    command: str, *, config: Mapping[str, Any], seeds: Any, wall_seconds: float | None, note: str | None = None
) -> dict[str, Any]:
    """Make the sidecar of a table that this process computed: ``command`` makes it again from ``config`` and ``seeds``.

    ``note`` says why something is null (such as seeds, where nothing is random), or what else there is to know.
    """
    versions: dict[str, Any] = environment()
    commit, gpu = versions.pop("commit"), versions.pop("gpu")
    found = {
        "command": command, "config": dict(config), "seeds": seeds, "versions": versions, "device": gpu or "cpu",
        "commit": commit, "wall_seconds": wall_seconds,
    }  # fmt: skip
    notes = [said for said in (note, None if commit else _NO_COMMIT) if said is not None]
    return {**found, "note": "; ".join(notes)} if notes else found


def made_of_rows(
    command: str, store: RowStore, configs: Sequence[Any], keys: Collection[str] | None = None
) -> dict[str, Any]:
    """Make the sidecar of a table that consists of stored rows.

    Args:
        command: What computes the rows.
        store: Where they are.
        configs: The configs of the table, finished or failed.
        keys: Keys of the rows that are in the table; None for all.

    Returns:
        Of the rows in the table: seeds, versions, devices, commits and the time they took; under ``grid`` how many
        have not converged, what is finished and not in the table (``left_out``), and which configs failed and why.
    """
    stored = [found for config in configs if (found := store.read(config)) is not None]
    keys = {found["key"] for found in stored} if keys is None else keys
    inside = [found for found in stored if found["key"] in keys]
    rows, made_by = (pd.DataFrame([found[part] for found in inside]) for part in ("row", "environment"))
    counts, left_out = _counts(inside), _counts([found for found in stored if found["key"] not in keys])
    commit = _distinct(made_by, "commit")
    measured = min((found.get("measurement_version", 1) for found in inside), default=1)
    version = {"rows_version": ROWS_VERSION, **({"measurement_version": measured} if measured > 1 else {})}
    found = {
        "command": command,
        "config": {"hash": configs_hash(configs), "configs": len(configs), **version},
        "seeds": {"data": _distinct(rows, "data_seed"), "model": _distinct(rows, "model_seed")},
        "versions": {name: _distinct(made_by, name) for name in made_by if name not in ("commit", "gpu")},
        "device": sorted({_device(one) for one in inside}),
        "commit": commit or None,
        "wall_seconds": counts.pop("wall_seconds"),
        "grid": {
            **counts,
            "left_out": left_out,
            "failed": {config_key(c): error for c in configs if (error := store.failure(c)) is not None},
        },
    }
    return found if commit else {**found, "note": _NO_COMMIT}


def _device(stored: Mapping[str, Any]) -> str:
    """The GPU's name for a row that a GPU made."""
    device = str(stored["row"].get("device", "cpu"))
    return str(stored["environment"].get("gpu") or device) if device.startswith("cuda") else device


def _distinct(frame: pd.DataFrame, column: str) -> list[Any]:
    return sorted(frame[column].dropna().unique().tolist()) if column in frame else []


def _counts(stored: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of rows as they are stored, one a config: how many, the seconds they took, how many have not converged."""
    rows = pd.DataFrame([found["row"] for found in stored])
    return {
        "configs": len(rows),
        "wall_seconds": float(rows["wall_seconds"].sum()) if "wall_seconds" in rows else None,
        "cpu_seconds": float(rows["cpu_seconds"].sum()) if "cpu_seconds" in rows else None,
        "not_converged": int((~rows["converged"].astype(bool)).sum()) if "converged" in rows else None,
    }


def check_schema(made: Mapping[str, Any]) -> None:
    """Refuse a sidecar that does not say where its table comes from.

    Raises:
        ValueError: If it lacks a key of ``SCHEMA``, or has a null that no ``note`` explains.
    """
    lacking = [name for name in SCHEMA if name not in made]
    if lacking:
        raise ValueError(f"a sidecar must have {SCHEMA}, got none of {lacking}.")
    nulls = [name for name in SCHEMA if made[name] is None]
    if nulls and not made.get("note"):
        raise ValueError(f"a sidecar must say in its note why a value is null, got no note for {nulls}.")
