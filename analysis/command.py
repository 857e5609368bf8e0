"""What the commands share: their parser, expected errors in one line, Ctrl-C, and where files go by default."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["above_zero", "committed_folder", "csv_file", "finish", "output_folder", "parser_of", "shown", "whole"]

_ROOT = Path(__file__).resolve().parent.parent


def parser_of(module: str, description: str, examples: str) -> argparse.ArgumentParser:
    """Make the parser of ``python -m MODULE``, whose help ends in the examples as they are written."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def finish(action: Callable[[], int]) -> int:
    """Run a command and turn what a user can mend into one line on stderr.

    Args:
        action: The command; returns its exit status.

    Returns:
        The status of ``action``; 2 after an error that is expected of files, options and missing packages; 130 after
        Ctrl-C, whose line is the text of the KeyboardInterrupt where it has one; 1 where the reader of the output has
        left.
    """
    try:
        status = action()
        sys.stdout.flush()  # here, where a full disk is still an error of this command
        return status
    except KeyboardInterrupt as interrupt:
        print(f"interrupted: {interrupt}" if str(interrupt) else "interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _discard_output()
        return 1
    except (OSError, ValueError, TypeError, ImportError, MemoryError) as error:
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        _flush_or_discard()
        return 2


def _flush_or_discard() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _discard_output()


def _discard_output() -> None:
    """Give what is left in the buffer of stdout no chance to fail again when the interpreter ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    finally:
        os.close(nowhere)


def whole(least: int) -> Callable[[str], int]:
    """Return an argparse type that reads a whole number from ``least`` on.

    Example:
        >>> whole(1)("12")
        12
    """

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
        return value

    return read


def above_zero(text: str) -> float:
    """Read a finite number above 0, as an argparse type.

    Example:
        >>> above_zero("0.5")
        0.5
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def csv_file(text: str) -> Path:
    """Read the name of a table's file, as an argparse type; its sidecar has the same name and ends in .json.

    Example:
        >>> csv_file("table.csv").name
        'table.csv'
    """
    path = Path(text)
    if path.suffix != ".csv":
        raise argparse.ArgumentTypeError(f"must end in .csv, got {text!r}")
    return path


def committed_folder() -> Path:
    """Find the committed tables: ``paper_figures/data`` of the repository that this code runs from, or their copy.

    A wheel has them, without raw rows and pictures, in the folder ``data`` of this package (``hatch_build.py``).

    Raises:
        FileNotFoundError: If this code has neither, with what to do instead.
    """
    for data in (_ROOT / "paper_figures" / "data", _ROOT / "analysis" / "data"):
        if data.is_dir():
            return data
    raise FileNotFoundError(
        "the committed tables are in the repository and not in this installation: run the command in a clone, or "
        "compute tables (python -m analysis.study run all) and name their folder with --out."
    )


def output_folder() -> Path:
    """Return where files go by default: ``paper_figures/out`` of the repository; without one, ``out`` in this folder.

    Nothing of the name ``paper_figures`` is ever made elsewhere: it would hide the package of that name.
    """
    drawing = _ROOT / "paper_figures"
    return drawing / "out" if (drawing / "__init__.py").exists() else Path("out")


def shown(path: Path) -> str:
    """Write the path as a reader of this terminal would type it: relative where it lies in the current folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
