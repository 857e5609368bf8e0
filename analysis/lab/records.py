"""Rows on disk: one JSON file for each finished config, written whole or not at all.

A row is found by the hash of its config alone, so that rows computed anywhere join by being copied into one folder.
No pickle: a row is readable by anything, and reading one runs no code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .files import write_atomically
from .row_locks import RowLocks

__all__ = ["ROWS_VERSION", "RowStore", "check_stored", "config_key", "configs_hash", "decode", "encode"]

# Part of every key: raise it when a change makes rows of an earlier version wrong.
ROWS_VERSION = 2
_MEASURED = "measurement_version"
_NON_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def config_key(config: Any) -> str:
    """Name a config's row: by a hash of its class and of every field that is not at its default.

    Leaving defaults out lets a config grow: a new field with a neutral default changes no key. In return a changed
    default, or a changed meaning of a field, needs a new ``ROWS_VERSION``.

    Args:
        config: Instance of a dataclass of JSON values and further dataclasses.

    Returns:
        20 hexadecimal digits.

    Raises:
        TypeError: If ``config`` is no dataclass instance or holds a value that JSON cannot hold.

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


class RowStore:
    """Finished rows under ``directory``, one ``KEY.json`` each, and failures under ``directory/failed``.

    Args:
        directory: Need not exist to be read from.
        measurement_version: Of what measures the rows. Those of an earlier one count as none, but keep their keys, by
            which other rows know them; a row that says nothing is of version 1.
    """

    def __init__(self, directory: str | os.PathLike[str], measurement_version: int = 1) -> None:
        self.directory, self._measured = Path(directory), measurement_version
        self._locks: dict[Path, RowLocks] = {}

    def _place(self, config: Any) -> tuple[Path, Any]:
        """The folder of a config's row, and the config that names it; a store of several folders has its own."""
        return self.directory, config

    def _version(self, config: Any) -> int:
        """The version of what measures a config's row; a store of several folders has one for each."""
        return self._measured

    def _lock(self, config: Any) -> tuple[RowLocks, str]:
        folder, named = self._place(config)
        return self._locks.setdefault(folder, RowLocks(folder)), config_key(named)

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
        locks, key = self._lock(config)
        return locks.take(key)

    def release(self, config: Any) -> None:
        """Let others compute the row of a config again."""
        locks, key = self._lock(config)
        locks.release(key)

    def close(self) -> None:
        """Release everything that was taken."""
        for locks in self._locks.values():
            locks.close()

    def write(self, config: Any, row: Mapping[str, Any], made_by: Mapping[str, Any]) -> None:
        """Store the row of a config with the environment that made it, and forget an earlier failure."""
        self._write(config, "", {"row": dict(row), "environment": dict(made_by)})
        self._path(config, "failed").unlink(missing_ok=True)

    def write_failure(self, config: Any, error: str, made_by: Mapping[str, Any]) -> None:
        """Store why a config has no row."""
        self._write(config, "failed", {"error": error, "environment": dict(made_by)})

    def read(self, config: Any) -> dict[str, Any] | None:
        """Everything stored with a config's row (``row``, ``config``, ``environment``); None where there is none.

        A file that is no complete row, for whatever reason, counts as none: it will be computed again and replaced. So
        does a row of an earlier ``measurement_version``.
        """
        stored = self._load(self._path(config), "row")
        return None if stored is None or _measured(stored) < self._version(config) else stored

    def failure(self, config: Any) -> str | None:
        """Why a config has no row, or None."""
        stored = self._load(self._path(config, "failed"), "error")
        return None if stored is None else stored["error"]

    def finished(self) -> Iterator[dict[str, Any]]:
        """Everything stored with each finished row, in the order of their keys; what is no complete row is left out."""
        for path in sorted(self.directory.glob("*.json")):
            stored = self._load(path, "row")
            if stored is not None:
                yield stored

    def insert(self, stored: Mapping[str, Any]) -> bool:
        """Add a finished row that another store yielded; False where this store has as new a one for that config.

        Raises:
            ValueError: If ``stored`` is no finished row.
        """
        key = check_stored(stored)
        path = self.directory / f"{key}.json"
        there = self._load(path, "row")
        if there is not None and _measured(there) >= _measured(stored):
            return False
        write_atomically(path, json.dumps(encode(stored), indent=1, allow_nan=False) + "\n")
        (self.directory / "failed" / f"{key}.json").unlink(missing_ok=True)
        return True

    def _path(self, config: Any, part: str = "") -> Path:
        folder, named = self._place(config)
        return folder / part / f"{config_key(named)}.json"

    def _write(self, config: Any, part: str, content: dict[str, Any]) -> None:
        path, (_, named) = self._path(config, part), self._place(config)
        version = {_MEASURED: measured} if (measured := self._version(config)) > 1 else {}
        stored = encode({"key": path.stem, "config": dataclasses.asdict(named), **version, **content})
        write_atomically(path, json.dumps(stored, indent=1, allow_nan=False) + "\n")

    @staticmethod
    def _load(path: Path, content: str) -> dict[str, Any] | None:
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # ValueError: broken JSON or UTF-8
            return None
        if not isinstance(stored, dict) or stored.get("key") != path.stem or content not in stored:
            return None
        if not isinstance(_measured(stored), int):
            return None
        return decode(stored)


def _measured(stored: Mapping[str, Any]) -> int:
    """The version of what measured a stored row."""
    return stored.get(_MEASURED, 1)


def check_stored(stored: Mapping[str, Any]) -> str:
    """Return the key of what a store yielded.

    Raises:
        ValueError: If it is no finished row.
    """
    key = stored.get("key")
    if not (isinstance(key, str) and re.fullmatch(r"[0-9a-f]{20}", key)):
        raise ValueError(f"stored must have a key of 20 hexadecimal digits, got {key!r}.")
    if not all(isinstance(stored.get(part), Mapping) for part in ("config", "row", "environment")):
        raise ValueError(f"stored must have config, row and environment, got {sorted(stored)}.")
    if not isinstance(_measured(stored), int):
        raise ValueError(f"stored must have a whole number as {_MEASURED}, got {_measured(stored)!r}.")
    return key


def encode(value: Any) -> Any:
    """Turn a value into strict JSON: infinities and nan become text, as JSON has no numbers for them."""
    if isinstance(value, Mapping):
        return {str(k): encode(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def decode(value: Any) -> Any:
    """Turn back what :func:`encode` made of a value."""
    if isinstance(value, dict):
        return {k: decode(v) for k, v in value.items()}
    if isinstance(value, list):
        return [decode(v) for v in value]
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def configs_hash(configs: Sequence[Any]) -> str:
    """Hash a whole grid, whatever its order, as sidecars hold it."""
    return hashlib.sha256("".join(sorted(map(config_key, configs))).encode()).hexdigest()
