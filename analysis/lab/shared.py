"""What several rows need and is dear to make: made once, kept beside the rows, made again where it is lost."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from .files import write_atomically

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

__all__ = ["kept", "loaded", "saved", "whole_key"]

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
        key: Name of the file, such as the :func:`whole_key` of all that it depends on.
        make: Makes it.
        save: To bytes.
        load: Back, with ValueError for bytes that are not whole.
    """
    if folder is None:
        return make()
    path = folder / f"{key}.kept"
    with _alone(folder / f"{key}.lock"):
        if path.exists():
            with contextlib.suppress(ValueError):
                return load(path.read_bytes())
        made = make()
        write_atomically(path, save(made))
    return made


def whole_key(config: Any, version: int) -> str:
    """Name what is made of a config by every field of it, at its default or not, and a version of what makes it.

    A row's :func:`~analysis.lab.records.config_key` leaves defaults out, so that a changed default would find what an
    earlier one made.

    Args:
        config: Instance of a dataclass of JSON values and further dataclasses.
        version: To be raised when the same fields make something else.

    Returns:
        20 hexadecimal digits.
    """
    text = json.dumps([version, type(config).__name__, dataclasses.asdict(config)], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def saved(content: dict[str, Any]) -> bytes:
    """Tensors and plain values to bytes."""
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def loaded(content: bytes, device: str = "cpu") -> dict[str, Any]:
    """Back from what :func:`saved` wrote, without running any code that stands in it.

    Raises:
        ValueError: If the bytes are not whole.
    """
    import torch

    buffer, refused = io.BytesIO(content), f"content must be what was saved, got {len(content)} other bytes."
    if not zipfile.is_zipfile(buffer):  # else they would be read as a pickle, which junk makes raise anything
        raise ValueError(refused)
    buffer.seek(0)
    try:
        return torch.load(buffer, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, KeyError) as error:
        raise ValueError(refused) from error


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock that the operating system gives back when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks: it may be made twice
                fcntl.lockf(handle, fcntl.LOCK_EX)
        yield
