"""What several rows need and is dear to make: made once, kept beside the rows, made again where it is lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from .files import write_atomically

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

__all__ = ["kept"]

T = TypeVar("T")


def kept(
    folder: Path | None,
    key: str,
    make: Callable[[], T],
    save: Callable[[T], bytes],
    load: Callable[[bytes], T],
) -> T:
    """Return what ``make`` makes, from the file ``KEY.kept`` where an earlier call left it.

    Of several processes that ask at once, one makes it and the others wait for its file. The file is whole or absent,
    so that a process may be killed at any moment; one that cannot be read is made again. Rows do not depend on it: what
    is read is what would be made, and nothing is lost with the folder but time.

    Args:
        folder: Where files are kept; None keeps nothing.
        key: Name of the file, such as the :func:`~analysis.lab.records.config_key` of all that it depends on.
        make: Makes it.
        save: To bytes.
        load: Back, with ValueError or RuntimeError for bytes that are not whole.
    """
    if folder is None:
        return make()
    path = folder / f"{key}.kept"
    with _alone(folder / f"{key}.lock"):
        if path.exists():
            with contextlib.suppress(ValueError, RuntimeError, EOFError):
                return load(path.read_bytes())
        made = make()
        write_atomically(path, save(made))
    return made


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock that the operating system gives back when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks: it may be made twice
                fcntl.lockf(handle, fcntl.LOCK_EX)
        yield
