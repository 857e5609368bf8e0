"""Files that are whole or absent, also when two of them belong together, such as a table and its sidecar."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

__all__ = ["check_writable", "write_atomically", "write_together"]


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all, whatever kills the process or the machine: temporary file, fsync, rename.

    Args:
        path: Its folder is made where there is none. A device or pipe is written as it stands.
        content: Text, written as UTF-8, or bytes.

    Raises:
        OSError: If the file cannot be written, with its name; an earlier file at ``path`` is then as it was.
    """
    write_together({path: content})


def write_together(contents: Mapping[Path, str | bytes]) -> None:
    """Write several files, each whole, and none of them before the content of all is safe on the disk.

    A full disk, a folder that cannot be written or an interruption leaves every earlier file as it was. What is left to
    chance is a machine that dies between two renames.

    Args:
        contents: Path -> text or bytes, as in :func:`write_atomically`.

    Raises:
        OSError: If a file cannot be written, with its name.
    """
    waiting: list[tuple[str, Path]] = []
    try:
        for path, content in contents.items():
            data = content.encode() if isinstance(content, str) else content
            try:
                target = Path(os.path.realpath(path))  # a link stays a link
                if target.exists() and not target.is_file() and not target.is_dir():
                    target.write_bytes(data)
                    continue
                waiting.append((_temporary(target, data), target))
            except OSError as error:
                raise _named(error, path) from error
        for temporary, target in waiting:
            os.replace(temporary, target)
    finally:
        for temporary, _ in waiting:
            Path(temporary).unlink(missing_ok=True)  # where it was not renamed
    for folder in {target.parent for _, target in waiting}:
        _sync_folder(folder)


def check_writable(*paths: Path) -> None:
    """Refuse paths that cannot be written, before something is computed that could not be kept; nothing is made.

    Raises:
        OSError: If one is a folder, or the nearest folder above it that exists cannot be written.
    """
    for path in paths:
        target = Path(os.path.realpath(path))
        try:
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, "Is a directory")
            if target.exists() and not target.is_file():
                continue
            folder = next(above for above in target.parents if above.exists())
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise _named(error, path) from error


def _temporary(target: Path, data: bytes) -> str:
    """The content in a file beside the target, safe on the disk; its name."""
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "Is a directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            os.chmod(temporary, 0o644)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return temporary


def _named(error: OSError, path: Path) -> OSError:
    """The error with the file that was to be written, and not with the temporary one."""
    return error if error.errno is None else OSError(error.errno, error.strerror, str(path))


def _sync_folder(folder: Path) -> None:
    """Make the renames themselves last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
