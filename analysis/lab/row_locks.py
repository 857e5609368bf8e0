"""Locks that let several sweeps share a folder of rows, each taking what no other computes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

__all__ = ["RowLocks"]


class RowLocks:
    """One byte of a file ``.lock`` for each row, locked while its row is computed.

    The operating system gives the locks of a process back when it ends, however it ends, so that none is ever stale;
    on a network file system with locks the server does so for a machine that is gone. Where a file system has none,
    every row is given, after one line that says so.

    Args:
        directory: Folder of the rows; it must exist when the first lock is taken.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / ".lock"
        self._handle: int | None = None
        self._work = fcntl is not None

    def take(self, key: str) -> bool:
        """Whether this process may compute the row of a key; False where another process computes it."""
        if not self._work:
            return True
        assert fcntl is not None
        if self._handle is None:
            self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte(key))
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: somebody has it
            return False
        except OSError as error:
            self._work = False
            print(f"no locks in {self._path.parent} ({error.strerror}): run one sweep at a time there", file=sys.stderr)
        return True

    def release(self, key: str) -> None:
        """Give a row back; what was not taken is ignored."""
        if self._work and self._handle is not None:
            assert fcntl is not None
            fcntl.lockf(self._handle, fcntl.LOCK_UN, 1, _byte(key))

    def close(self) -> None:
        """Give all rows back."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _byte(key: str) -> int:
    """A place for the key: its first 60 bits, in which two of some thousand rows do not meet."""
    return int(key[:15], 16)
