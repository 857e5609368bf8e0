"""Rows on disk: one JSON file for each finished config, written whole or not at all, and tables made of them.

A row is found by the hash of its config alone, so that rows computed anywhere join by being copied into one folder.
No pickle: a row is readable by anything, and reading one runs no code.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from ._row_locks import RowLocks
from .files import write_atomically, write_together

__all__ = [
    "RowStore", "check_stored", "config_key", "configs_hash", "encode", "environment", "find_table", "read_sidecar",
    "read_table", "write_table",
]  # fmt: skip

# Part of every key: raise it when a change makes rows of an earlier version wrong.
ROWS_VERSION = 2
_NON_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def config_key(config: Any) -> str:
    """Name of a config's row: a hash of its class and of every field that is not at its default.

    Leaving defaults out lets a config grow: a new field with a neutral default changes no key. In return a changed
    default, or a changed meaning of a field, needs a new ``ROWS_VERSION``.

    Args:
        config: Instance of a dataclass of JSON values and further dataclasses.

    Returns:
        20 hexadecimal digits.

    Raises:
        TypeError: If ``config`` is no dataclass instance or holds a value that JSON has not.

    Example:
        >>> from analysis.bottleneck import FitConfig
        >>> config_key(FitConfig(hidden_size=4)) == config_key(FitConfig(hidden_size=4, temperature=1.0))
        True
    """
    text = json.dumps([ROWS_VERSION, _changed(config)], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _changed(value: Any) -> Any:
    """JSON form of a config: the class name and the fields that differ from their defaults; 1 and 1.0 are one value."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not dataclasses.is_dataclass(value):
        return value
    if isinstance(value, type):
        raise TypeError(f"config must be an instance of a dataclass, got the class {value.__name__}.")
    fields: dict[str, Any] = {"class": type(value).__name__}
    for f in dataclasses.fields(value):
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        if getattr(value, f.name) != default:
            fields[f.name] = _changed(getattr(value, f.name))
    return fields


def environment() -> dict[str, str | None]:
    """Versions, machine and git commit of this process, for the record.

    Outside a repository the commit is that of the variable CONFIDENCE_CEILING_COMMIT, for a tree that travels without
    its history, or None.
    """
    packages = ("torch", "numpy", "scipy", "triton")
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "confidence_ceiling": _version("confidence-ceiling"),
        "platform": f"{platform.system()} {platform.machine()}",
        "gpu": _gpu(),
        "commit": _commit() or os.environ.get("CONFIDENCE_CEILING_COMMIT"),
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
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # installed into somebody else's repository?
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(here), str(here.parent / "kernel"))
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


class RowStore:
    """Finished rows under ``directory``, one ``KEY.json`` each, and failures under ``directory/failed``.

    Args:
        directory: Need not exist to be read from.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self._locks = RowLocks(self.directory)

    def prepare(self) -> None:
        """Make the directory and test that it can be written, before something is computed that could not be kept.

        Raises:
            OSError: If it cannot.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.directory):
            pass

    def name(self, config: Any) -> str:
        """What messages call a config: its key, the name of its file."""
        return config_key(config)

    def take(self, config: Any) -> bool:
        """Whether this process may compute the row of a config: False while another process does."""
        return self._locks.take(config_key(config))

    def release(self, config: Any) -> None:
        """Let others compute the row of a config again."""
        self._locks.release(config_key(config))

    def close(self) -> None:
        """Release everything that was taken."""
        self._locks.close()

    def write(self, config: Any, row: Mapping[str, Any], made_by: Mapping[str, Any]) -> None:
        """Store the row of a config with the environment that made it, and forget an earlier failure."""
        key = config_key(config)
        self._write(self.directory / f"{key}.json", key, config, {"row": dict(row), "environment": dict(made_by)})
        (self.directory / "failed" / f"{key}.json").unlink(missing_ok=True)

    def write_failure(self, config: Any, error: str, made_by: Mapping[str, Any]) -> None:
        """Store why a config has no row."""
        key = config_key(config)
        self._write(
            self.directory / "failed" / f"{key}.json", key, config, {"error": error, "environment": dict(made_by)}
        )

    def read(self, config: Any) -> dict[str, Any] | None:
        """Everything stored with a config's row (``row``, ``config``, ``environment``); None where there is none.

        A file that is no complete row, for whatever reason, counts as none: it will be computed again and replaced.
        """
        return self._read(self.directory, config, "row")

    def failure(self, config: Any) -> str | None:
        """Why a config has no row, or None."""
        stored = self._read(self.directory / "failed", config, "error")
        return None if stored is None else stored["error"]

    def finished(self) -> Iterator[dict[str, Any]]:
        """Everything stored with each finished row, in the order of their keys; what is no complete row is left out."""
        for path in sorted(self.directory.glob("*.json")):
            stored = self._load(path, path.stem, "row")
            if stored is not None:
                yield stored

    def insert(self, stored: Mapping[str, Any]) -> bool:
        """Add a finished row that another store yielded; False where this store has one for that config already.

        Raises:
            ValueError: If ``stored`` is no finished row.
        """
        key = check_stored(stored)
        path = self.directory / f"{key}.json"
        if self._load(path, key, "row") is not None:
            return False
        write_atomically(path, json.dumps(encode(stored), indent=1, allow_nan=False) + "\n")
        (self.directory / "failed" / f"{key}.json").unlink(missing_ok=True)
        return True

    @staticmethod
    def _write(path: Path, key: str, config: Any, content: dict[str, Any]) -> None:
        stored = encode({"key": key, "config": dataclasses.asdict(config), **content})
        write_atomically(path, json.dumps(stored, indent=1, allow_nan=False) + "\n")

    @classmethod
    def _read(cls, directory: Path, config: Any, content: str) -> dict[str, Any] | None:
        key = config_key(config)
        return cls._load(directory / f"{key}.json", key, content)

    @staticmethod
    def _load(path: Path, key: str, content: str) -> dict[str, Any] | None:
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # ValueError: broken JSON or UTF-8
            return None
        if not isinstance(stored, dict) or stored.get("key") != key or content not in stored:
            return None
        return _decode(stored)


def check_stored(stored: Mapping[str, Any]) -> str:
    """The key of what a store yielded.

    Raises:
        ValueError: If it is no finished row.
    """
    key = stored.get("key")
    if not (isinstance(key, str) and re.fullmatch(r"[0-9a-f]{20}", key)):
        raise ValueError(f"stored must have a key of 20 hexadecimal digits, got {key!r}.")
    if not all(isinstance(stored.get(part), Mapping) for part in ("config", "row", "environment")):
        raise ValueError(f"stored must have config, row and environment, got {sorted(stored)}.")
    return key


def encode(value: Any) -> Any:
    """Values as strict JSON; infinities and nan, which JSON has not, become text."""
    if isinstance(value, Mapping):
        return {str(k): encode(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _decode(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_decode(v) for v in value]
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def write_table(
    table: pd.DataFrame,
    path: Path,
    store: RowStore,
    configs: Sequence[Any],
    *,
    digits: int | None = None,
    exact: Collection[str] = (),
    more: Mapping[str, Any] | None = None,
    packed_from: float = math.inf,
) -> Path:
    """Write a table as CSV beside a sidecar that says where it comes from.

    The sidecar ``NAME.json`` holds the hash of all configs, the seeds, devices, versions and commits that made the rows
    of the table, the time they took and how many have not converged. Apart from these it counts the finished rows that
    are not in the table (``left_out``), and names the configs that failed with their errors.

    Args:
        table: What to write. Where it has the column ``key``, finished rows of other keys are not in it.
        path: The CSV.
        store: Where the rows came from.
        configs: The configs of the table, finished or failed.
        digits: None for a CSV with everything. A number for a small one: floats keep that many significant digits, what
            is the same in every line stands in the sidecar under ``constants``, and how long each row took is left
            out; :func:`read_table` reads both.
        exact: Columns that keep all their digits.
        more: Further JSON values of the sidecar.
        packed_from: A CSV of more bytes is gzipped, ``PATH.gz``. A table of the other form is removed.

    Returns:
        The path of the sidecar.
    """
    stored = [found for config in configs if (found := store.read(config)) is not None]
    keys = set(table["key"]) if "key" in table else {found["key"] for found in stored}
    inside = [found for found in stored if found["key"] in keys]
    outside = [found for found in stored if found["key"] not in keys]
    failures = {config_key(config): error for config in configs if (error := store.failure(config)) is not None}
    constants: dict[str, Any] = {}
    if digits is not None:
        table = table.drop(columns=["wall_seconds", "cpu_seconds"], errors="ignore")
        same = [name for name in table if table[name].nunique(dropna=False) == 1] if len(table) > 1 else []
        constants = {name: encode(_plain(table[name].iloc[0])) for name in same}
        table = table.drop(columns=same)
        floats = table.select_dtypes("float").drop(columns=list(exact), errors="ignore")
        table = table.assign(**{name: floats[name].map(lambda x: float(f"{x:.{digits}g}")) for name in floats})
    content, written, other = table.to_csv(index=False).encode(), path, path.with_name(path.name + ".gz")
    if len(content) > packed_from:
        content, written, other = gzip.compress(content, mtime=0), other, written
    made_by = pd.DataFrame([found["environment"] for found in inside])
    rows = pd.DataFrame([found["row"] for found in inside])
    sidecar = {
        "table": written.name,
        "rows": len(table),
        "columns": list(table.columns),
        "constants": constants,
        "configs_hash": configs_hash(configs),
        "rows_version": ROWS_VERSION,
        "data_seeds": _distinct(rows, "data_seed"),
        "model_seeds": _distinct(rows, "model_seed"),
        "devices": _distinct(rows, "device"),
        "environment": {name: _distinct(made_by, name) for name in made_by},
        **_counts(inside),
        "left_out": _counts(outside),
        "failed": failures,
        **(more or {}),
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    beside = path.with_suffix(".json")
    write_together({written: content, beside: json.dumps(sidecar, indent=1) + "\n"})
    other.unlink(missing_ok=True)
    return beside


def configs_hash(configs: Sequence[Any]) -> str:
    """One hash of a whole grid, whatever its order, as sidecars hold it."""
    return hashlib.sha256("".join(sorted(map(config_key, configs))).encode()).hexdigest()


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


def _plain(value: Any) -> Any:
    """A cell as JSON has it: no numpy number, no nan for a missing text."""
    return value.item() if hasattr(value, "item") else value


def find_table(folder: Path, name: str) -> Path | None:
    """``NAME.csv`` or, where a large table is kept packed, ``NAME.csv.gz`` in a folder; None where neither is."""
    paths = (folder / f"{name}{ending}" for ending in (".csv", ".csv.gz"))
    return next((path for path in paths if path.exists()), None)


def read_table(path: Path) -> pd.DataFrame:
    """A table of :func:`write_table` or any other CSV, with the columns that its sidecar holds as constants.

    Args:
        path: The CSV, gzipped if its name ends in ``.gz``; the sidecar ``NAME.json`` is looked for beside it.

    Returns:
        The table. Constant columns come last.

    Raises:
        ValueError: If the file is cut, damaged, empty or no table, or if its sidecar is.
        OSError: If it cannot be read.
    """
    try:
        table = pd.read_csv(path)
    except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is no whole table: {error}") from error
    if table.empty:
        raise ValueError(f"{path} is no whole table: it has no rows")
    for name, value in read_sidecar(path).get("constants", {}).items():
        table[name] = float("nan") if value is None or value == "" else value  # as a CSV would say it
    return table


def read_sidecar(path: Path) -> dict[str, Any]:
    """What stands in the sidecar of a table; empty where there is none."""
    beside = path.with_name(path.name.split(".csv")[0] + ".json")
    if not beside.exists():
        return {}
    try:
        content = _decode(json.loads(beside.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{beside} is no whole sidecar: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{beside} is no sidecar: it must hold a JSON object")
    return content
