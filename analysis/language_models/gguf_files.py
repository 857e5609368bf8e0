"""What a GGUF file says of itself, read in a second also where it lists 262,144 pieces.

The reader of the package ``gguf`` makes a NumPy view of every number and every text of a list: for Gemma's vocabulary
that takes ten seconds, and transformers reads the file two to four times for one model and its tokenizer.
"""

from __future__ import annotations

import mmap
import struct
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kernel.extras import pip_install

__all__ = ["GgufFacts", "quick_reader", "read_facts"]

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DEEPEST = 16  # lists within lists
_LOCK = threading.RLock()  # the name of gguf that is replaced is one for all threads
_PLAIN = {0: "F32", 1: "F16", 30: "BF16"}  # types of weights that are not quantised
_TYPES = {
    2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K",
    14: "Q6_K", 15: "Q8_K", 20: "IQ4_NL", 23: "IQ4_XS",
}  # fmt: skip


class GgufFacts(NamedTuple):
    """Metadata of a GGUF file.

    Attributes:
        fields: Key -> number, text, or list of them.
        weights: Type of storage, such as ``"Q4_K"`` -> number of weights.
    """

    fields: dict[str, Any]
    weights: dict[str, int]

    @property
    def quantisation(self) -> str:
        """Quantised types, that of most weights first: ``"Q8_0, Q4_K, dequantised"``; ``"none"`` where there are none.

        Example:
            >>> GgufFacts({}, {"Q4_1": 3, "F32": 9, "Q8_0": 5}).quantisation
            'Q8_0, Q4_1, dequantised'
        """
        kinds = [kind for kind, _ in Counter(self.weights).most_common() if kind not in _PLAIN.values()]
        return f"{', '.join(kinds)}, dequantised" if kinds else "none"


class _Cursor:
    """A place in the bytes of a file that moves as they are read."""

    def __init__(self, data: Any) -> None:
        self.data, self.at = data, 0

    def numbers(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += struct.calcsize(f"<{form}")
        return found

    def text(self) -> str:
        (length,) = self.numbers("Q")
        self.at += length
        if self.at > len(self.data):
            raise ValueError("it ends within a text")
        return bytes(self.data[self.at - length : self.at]).decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            inner, length = self.numbers("IQ")
            if inner in _SCALARS:
                return list(self.numbers(f"{length}{_SCALARS[inner]}"))
            if depth == _DEEPEST:
                raise ValueError(f"it has lists nested deeper than {_DEEPEST}")
            return [self.value(inner, depth + 1) for _ in range(length)]
        if kind not in _SCALARS:
            raise ValueError(f"it has a value of the unknown type {kind}")
        return self.numbers(_SCALARS[kind])[0]


def read_facts(path: Path) -> GgufFacts:
    """Read the metadata of a GGUF file of version 2 or 3, which are little-endian; no weight is touched.

    Raises:
        OSError: If the file cannot be read, or is no such file.
    """
    with Path(path).open("rb") as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _facts(_Cursor(data))
        except (ValueError, struct.error) as error:  # ValueError: of mmap, where the file is empty
            raise OSError(f"model must be a GGUF file of version 2 or 3, got {path}: {error}.") from error


def _facts(cursor: _Cursor) -> GgufFacts:
    magic, version, tensors, count = cursor.numbers("4sIQQ")
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError(f"it begins with {magic!r} and version {version}")
    fields = {}
    for _ in range(count):
        key = cursor.text()
        fields[key] = cursor.value(*cursor.numbers("I"))
    weights: Counter[str] = Counter()
    for _ in range(tensors):
        cursor.text()
        (dimensions,) = cursor.numbers("I")
        size = 1
        for length in cursor.numbers(f"{dimensions}Q"):
            size *= length
        kind, _ = cursor.numbers("IQ")
        weights[{**_PLAIN, **_TYPES}.get(kind, f"type {kind}")] += size
    return GgufFacts(fields, dict(weights))


@contextmanager
def quick_reader() -> Iterator[None]:
    """Let transformers read a GGUF file once and quickly: while this lasts, gguf's reader is one that does.

    Lists are read at once instead of element by element, and a file that was read is not read again. The reader is
    gguf's own in everything else; a version of gguf whose inside differs reads slowly, and rightly. Other threads that
    want it wait until it ends; it may be nested.

    Raises:
        ImportError: If the package gguf is missing.
    """
    try:
        import gguf  # pyright: ignore[reportMissingImports]
        from gguf.gguf_reader import GGUFReader  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f"a GGUF file needs the package gguf: {pip_install('real')}") from error
    known = {}

    class Quick(GGUFReader):
        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            quick = None
            if int(raw_type) == _ARRAY and sys.byteorder == "little" and self.byte_order == "I":
                quick = _list_parts(gguf.GGUFValueType, self.data, int(orig_offs))
            return quick or super()._get_field_parts(orig_offs, raw_type)

    def read(path: Any, mode: Any = "r") -> Any:
        if (str(path), mode) not in known:
            known[str(path), mode] = Quick(path, mode)
        return known[str(path), mode]

    with _LOCK:
        before = gguf.GGUFReader
        gguf.GGUFReader = read
        try:
            yield
        finally:
            gguf.GGUFReader = before


def _list_parts(types: Any, data: Any, start: int) -> tuple[int, list[Any], list[int], list[Any]] | None:
    """Size, parts, indices of the parts that are elements, and types of a list, as gguf's reader gives them.

    None for a list of lists.
    """
    plain = data.view(np.ndarray)  # a view of a memory map costs ten times one of an array
    inner, length = struct.unpack_from("<IQ", plain, start)
    first = start + 12
    parts: list[Any] = [plain[start : start + 4].view(np.uint32), plain[start + 4 : first].view(np.uint64)]
    kinds = [types(_ARRAY), types(inner)] if length else [types(_ARRAY)]
    if inner in _SCALARS:
        width = struct.calcsize(f"<{_SCALARS[inner]}")
        values = plain[first : first + width * length].view(np.dtype(f"<{_SCALARS[inner]}"))
        return 12 + width * length, [*parts, *values.reshape(-1, 1)], list(range(2, 2 + length)), kinds
    if inner != _STRING:
        return None
    at, read, unpack = first, memoryview(plain), struct.Struct("<Q").unpack_from
    for _ in range(length):
        (size,) = unpack(read, at)
        parts += (read[at : at + 8], read[at + 8 : at + 8 + size])
        at += 8 + size
    return at - start, parts, list(range(3, 3 + 2 * length, 2)), kinds
