"""The one writer of the benchmarks' tables, each with a sidecar that says what made it."""

from __future__ import annotations

import contextlib
import csv
import errno
import importlib.metadata
import io
import json
import os
import platform
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Report", "check_writable", "commit_of_source", "device_name", "write_together"]

_PACKAGES = ("triton", "liger_kernel", "cut_cross_entropy", "quack_kernels", "nvidia_cutlass_dsl", "transformers")


class Report:
    """A table that grows, and its files: complete at the end, and until then beside it what there is.

    Used as a context. After each row ``NAME.partial.csv`` holds those measured so far, with a sidecar and samples of
    its own; at the end ``NAME.csv``, ``NAME.json`` and ``NAME_samples.csv`` replace what stood there, together, and
    the partial files go. A run that is cut leaves an earlier table as it was.

    Args:
        output: The table, ``NAME.csv``.
        command: How it is made, without where it is written.
        config: What was set, as JSON.
        device: Where it is measured.
        seeds: Of the random numbers in it.
        columns: Of the table; None for those of the first row.
        earlier: Rows and samples of a run that was cut, to go on from.
    """

    def __init__(
        self,
        output: Path,
        *,
        command: str,
        config: Mapping[str, Any],
        device: torch.device,
        seeds: Sequence[int] = (0,),
        columns: Sequence[str] | None = None,
        earlier: tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]] = ((), ()),
    ) -> None:
        self.output, self.columns = output, columns
        self.rows: list[Mapping[str, Any]] = list(earlier[0])
        self.samples: list[Mapping[str, Any]] = list(earlier[1])
        self._partial = output.with_name(f"{output.stem}.partial.csv")
        self._begun = time.monotonic()
        self._about = {
            "command": command,
            "config": dict(config),
            "seeds": list(seeds),
            "versions": _versions(),
            "device": device_name(device),
            "commit": commit_of_source(),
        }
        check_writable(*_paths(output), *_paths(self._partial))

    def add(self, row: Mapping[str, Any], samples: Sequence[Mapping[str, Any]] = ()) -> None:
        """Add a row, and the raw times behind it to the samples; write the partial table."""
        self.add_all([(row, samples)])

    def add_all(self, rows: Sequence[tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]]) -> None:
        """Add rows with the raw times behind them; the partial table has all of them or none."""
        for row, samples in rows:
            self.rows.append(row)
            self.samples += samples
        self._write(self._partial)

    def _write(self, table: Path) -> None:
        table, sidecar, samples = _paths(table)
        about = {**self._about, "wall_seconds": round(time.monotonic() - self._begun, 1)}
        contents = {table: _csv(self.rows, self.columns), sidecar: json.dumps(about, indent=2) + "\n"}
        if self.samples:
            contents[samples] = _csv(self.samples)
        write_together(contents)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            kept = f"{len(self.rows)} rows are kept in {self._partial}" if self.rows else "nothing was measured"
            raise KeyboardInterrupt(kept) from None
        if error is not None:
            return
        if not self.rows:
            raise ValueError("nothing was measured, and nothing is written.")
        self._write(self.output)
        for path in _paths(self._partial):
            path.unlink(missing_ok=True)


def _paths(table: Path) -> tuple[Path, Path, Path]:
    """The table, its sidecar and its samples."""
    return table, table.with_suffix(".json"), table.with_name(f"{table.stem}_samples.csv")


def _csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or list(rows[0]), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_together(contents: Mapping[Path, str]) -> None:
    """Write several files, each whole, and none of them before the content of all is safe on the disk.

    Raises:
        OSError: If one cannot be written, with its name; all earlier files are then as they were.
    """
    waiting: list[tuple[str, Path]] = []
    try:
        for path, content in contents.items():
            with _naming(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
                waiting.append((temporary, path))
                with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
                    os.chmod(temporary, 0o644)
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
        for temporary, path in waiting:
            os.replace(temporary, path)
    finally:
        for temporary, _ in waiting:
            Path(temporary).unlink(missing_ok=True)  # where it was not renamed


def check_writable(*paths: Path) -> None:
    """Refuse paths that cannot be written before something is measured; nothing is made.

    Raises:
        OSError: If one is a folder, or the nearest folder above it that exists cannot be written.
    """
    for path in paths:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "Is a directory", str(path))
        folder = next(above for above in path.absolute().parents if above.exists())
        with _naming(path), tempfile.TemporaryFile(dir=folder):
            pass


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors with the file that was to be written, and not with a temporary one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _versions() -> dict[str, str | None]:
    """Python, torch with its CUDA, and what is compared; None where it is not installed."""
    installed = {d.name.lower().replace("-", "_"): d.version for d in importlib.metadata.distributions()}
    versions = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    return versions | {name: installed.get(name) for name in _PACKAGES}


def device_name(device: torch.device) -> str:
    """Return the name that a GPU or a CPU has of its maker, the latter with its architecture."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"^model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return f"{found[1] if found else platform.processor() or 'unknown'}, {platform.machine()}"


def commit_of_source() -> str | None:
    """Return the commit of this source tree, with ``+`` where it has changes since; None outside a repository.

    The variable CONFIDENCE_CEILING_COMMIT comes first, for a tree that travels without its history or with another.
    """
    if given := os.environ.get("CONFIDENCE_CEILING_COMMIT"):
        return given
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # installed into somebody else's repository?
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(here.parent))
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
