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
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from .files import write_atomically
from .row_locks import RowLocks

__all__ = ["ROWS_VERSION", "RowStore", "check_stored", "config_key", "configs_hash", "decode", "encode", "environment"]

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


def environment() -> dict[str, str | None]:
    """Versions, machine and git commit of this process, for the record.

    The commit is that of the variable CONFIDENCE_CEILING_COMMIT where it is set, for a tree that travels without its
    history or with another; else the repository's, or None.
    """
    packages = ("torch", "numpy", "scipy", "triton")
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "confidence_ceiling": _version("confidence-ceiling"),
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
        return decode(stored)


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
    """A value as strict JSON: infinities and nan become text, as JSON has no numbers for them."""
    if isinstance(value, Mapping):
        return {str(k): encode(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def decode(value: Any) -> Any:
    """What :func:`encode` made of a value, turned back."""
    if isinstance(value, dict):
        return {k: decode(v) for k, v in value.items()}
    if isinstance(value, list):
        return [decode(v) for v in value]
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def configs_hash(configs: Sequence[Any]) -> str:
    """One hash of a whole grid, whatever its order, as sidecars hold it."""
    return hashlib.sha256("".join(sorted(map(config_key, configs))).encode()).hexdigest()
