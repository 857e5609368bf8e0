"""What the benchmarks' commands share: device and output, numbers of options, errors in one line."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import torch

__all__ = ["add_places", "committed", "finish", "output_of", "parser_of", "resolve_device", "typed", "whole"]

_ROOT = Path(__file__).resolve().parents[2]


def finish(action: Callable[[], int]) -> int:
    """Run a command and return its exit status.

    An error that is expected of files, options and devices is one line on stderr and status 2; Ctrl-C is one line, that
    of the KeyboardInterrupt where it has one, and status 130; 1 where the reader of the output has left.
    """
    try:
        status = action()
        sys.stdout.flush()
        return status
    except KeyboardInterrupt as interrupt:
        print(f"interrupted: {interrupt}" if str(interrupt) else "interrupted", file=sys.stderr)
        return 130
    except (OSError, ValueError, ImportError) as error:
        left = isinstance(error, BrokenPipeError)
        if not left:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:  # the interpreter would try again when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1 if left else 2


def parser_of(module: str, about: str | None, examples: str) -> argparse.ArgumentParser:
    """Make the parser of ``python -m MODULE``, whose help ends in the examples as they are written.

    Args:
        module: Its full name.
        about: The module's docstring, of whose first line the help takes what comes before the command.
        examples: Command lines.
    """
    first = (about or "").partition("\n")[0].partition(": ``")[0]
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=first.removesuffix(".") + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def whole(least: int) -> Callable[[str], int]:
    """Return an argparse type that accepts whole numbers of at least ``least``."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
        return value

    return read


def add_places(parser: argparse.ArgumentParser, name: str, *, device: bool = True) -> None:
    """Add ``--output``, and ``--device`` where the command measures a GPU.

    Args:
        parser: Of the command.
        name: Of the table, for the default of ``--output``.
        device: Whether there is a choice.
    """
    if device:
        parser.add_argument("--device", help="cuda, or cpu for a trial (default: cuda; cpu only where it is asked for)")
    shown = str(_default(name))
    if _default(name).is_relative_to(Path.cwd()):
        shown = str(_default(name).relative_to(Path.cwd()))
    parser.add_argument(
        "--output", "--out", type=_csv_file, metavar="FILE.csv", help=f"table to write (default: {shown})"
    )


def _csv_file(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".csv":  # the sidecar takes the name with .json
        raise argparse.ArgumentTypeError(f"must end in .csv, got {text!r}")
    return path


def _default(name: str) -> Path:
    """Beside what the figures write in a clone, else the current folder; never a committed table."""
    drawing = _ROOT / "paper_figures"
    return drawing / "out" / f"{name}.csv" if (drawing / "__init__.py").exists() else Path.cwd() / f"{name}.csv"


def output_of(given: argparse.Namespace, name: str) -> Path:
    """Return the path that ``--output`` gives, or else the default for the table ``name``."""
    return given.output or _default(name)


def committed(name: str) -> Path:
    """Return the path of the committed table ``name``; a wheel has a copy beside the code of ``analysis``."""
    clone, wheel = (_ROOT / room / "data" / f"{name}.csv" for room in ("paper_figures", "analysis"))
    return wheel if wheel.exists() and not clone.exists() else clone


def resolve_device(given: argparse.Namespace, *, writes: bool = True) -> torch.device:
    """Return the GPU, or the CPU for a trial whose command says where its table goes.

    The GPU becomes the current one of this process: events, clocks of memory and libraries that launch kernels of
    their own take that, not the one of their tensors.

    Raises:
        ValueError: If there is no GPU and the CPU was not asked for, if it was and no output was named, or if torch
            cannot use the device.
    """
    if given.device is None and not torch.cuda.is_available():
        output = " and --output FILE.csv" if writes else ""
        raise ValueError(
            f"this measures a GPU, and torch finds none: for a trial on the CPU give --device cpu{output}."
        )
    try:
        device = torch.empty(0, device=given.device or "cuda").device
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
        reason = str(error).splitlines()[0]
        raise ValueError(f"device must be one that torch can use here, got {given.device!r}: {reason}.") from error
    if device.type not in ("cuda", "cpu"):
        raise ValueError(f"device must be cuda or cpu, got {given.device!r}.")
    if writes and device.type == "cpu" and given.output is None:
        raise ValueError("a trial on the CPU must say where its table goes: give --output FILE.csv.")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def typed(parser: argparse.ArgumentParser, given: argparse.Namespace) -> str:
    """Return the command line that repeats a measurement, without options at their default and without ``--output``."""
    words = [parser.prog]
    for name, value in vars(given).items():
        if name == "output" or value == parser.get_default(name):
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words += [shlex.quote(str(part)) for part in (value if isinstance(value, list) else [value])]
    return " ".join(words)
