"""Implementations in a process of their own, which takes its turns in the rounds of the others.

CuTe's compiler brings libraries that a process shares with all else that it imports. The other process draws the same
data from the same seed on the same device, and times each turn as this one does, behind products of its own; only one
of the two has work on the device at a time. It goes from one shape to the next, as its imports take long. A process
that ends takes its turns with it, and nothing else.
"""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from . import measure
from .cute_rivals import cute_rivals
from .measure import Turn
from .prepare import Entry, prepare
from .problems import Shape, make_data
from .rivals import Case, Rival
from .sustained import Durations, Reader, Sustained, sustain

__all__ = ["Apart"]


class Apart:
    """The other process, started at the first case that one of its implementations does not refuse.

    Args:
        dtype: Of the data.
        device: Where they are.
        names: Of the implementations that it runs.
        implementations: Returns them, here and there.
        errors: Whether their errors are measured, which takes exact gradients over there.

    Attributes:
        shape: Of the problem that follows, set before the first one.
    """

    shape: Shape

    def __init__(
        self,
        dtype: torch.dtype,
        device: torch.device,
        names: Sequence[str],
        implementations: Callable[[], list[Rival]] = cute_rivals,
        *,
        errors: bool = True,
    ) -> None:
        self.problem, self.device = (dtype, device, implementations, errors), device
        self.rivals = [rival for rival in implementations() if rival.name in names]
        self._pipe: Any = None
        self._process: Any = None

    def prepare(self, case: Case) -> list[Entry]:
        """One entry an implementation, in their order: one that takes turns over there, or says why it does not run.

        Without smoothing those that have it are left out.
        """
        measured = [rival for rival in self.rivals if case.label_smoothing or not rival.smooths]
        columns: dict[str, dict[str, Any]] = {rival.name: {} for rival in measured}
        for rival in measured:
            if reason := rival.refuses(case, self.device):
                columns[rival.name] = {"skipped": reason}
        waiting = [name for name, found in columns.items() if not found]
        while waiting:
            name = waiting.pop(0)
            try:
                columns[name] = self._ask("prepare", case, name)
            except EOFError:  # the others once more, in a new one
                columns[name] = {"skipped": f"its process ended with status {self._status()}"}
                waiting = [other for other, found in columns.items() if "skipped" not in found]
        turns = {
            name: partial(self._ask, "turn", case, name) for name, found in columns.items() if "skipped" not in found
        }
        return [Entry(case, name, turn=turns.get(name), columns=found) for name, found in columns.items()]

    def sustain(self, entry: Entry, reader: Callable[[], Reader], durations: Durations) -> Sustained:
        """Repeat what was prepared, as :func:`kernel.benchmark.sustained.sustain`; the other process makes its reader.

        Raises:
            EOFError: If its process has ended.
        """
        return self._ask("sustain", entry.case, entry.name, reader, durations)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._pipe.close()
            self._process.join(30)
            self._process.kill()
            self._process = None

    def _ask(self, kind: str, case: Case, *rest: Any) -> Any:
        if self._process is None or not self._process.is_alive():
            if kind != "prepare":  # what was prepared ended with it
                raise EOFError
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            # No daemon: quack starts processes of its own. It ends when the pipe is closed.
            self._process = context.Process(target=_serve, args=(theirs, *self.problem))
            self._process.start()
            theirs.close()
        try:
            self._pipe.send((self.shape, kind, case, *rest))
            return self._pipe.recv()
        except (BrokenPipeError, ConnectionResetError) as error:
            raise EOFError from error

    def _status(self) -> int | None:
        self._process.join(30)
        status, self._process = self._process.exitcode, None
        return status


def _serve(
    pipe: Any, dtype: torch.dtype, device: torch.device, implementations: Callable[[], list[Rival]], errors: bool
) -> None:
    """Answer until the pipe is closed: the columns to "prepare", a Turn to "turn", a Sustained to "sustain"."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    problem: _Served | None = None
    while True:
        try:
            shape, kind, case, name, *rest = pipe.recv()
        except EOFError:
            return
        if problem is None or problem.shape != shape:
            problem = None
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
            problem = _Served(shape, dtype, device)
        if kind == "prepare":
            (rival,) = [rival for rival in implementations() if rival.name == name]
            pipe.send(problem.prepare(case, rival, errors=errors))
        elif kind == "sustain":
            pipe.send(problem.sustain(case, name, *rest))
        else:
            pipe.send(problem.turn(case, name))


class _Served:
    """What the other process has of one shape."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.device, self.data = shape, device, make_data(shape, dtype, device)
        self.entries: dict[tuple[Case, str], Entry] = {}
        self.exact: dict[Case, Any] = {}  # of the last case
        self.before: Callable[[], None] | None = None

    def prepare(self, case: Case, rival: Rival, *, errors: bool) -> dict[str, Any]:
        (entry,) = prepare(self.data, case, [rival], self.device, self.exact, errors=errors)
        self.entries[case, rival.name] = entry
        return entry.columns

    def turn(self, case: Case, name: str) -> Turn:
        self.exact.clear()
        if self.before is None:
            hidden, weight = self.data.hidden.detach(), self.data.weight.detach()
            self.before = measure.ahead(partial(torch.mm, hidden, weight.T, out=hidden @ weight.T), self.device)
        found = measure.turn(self.run(case, name), self.device, before=self.before)
        self.data.hidden.grad = self.data.weight.grad = None
        return found

    def sustain(self, case: Case, name: str, reader: Callable[[], Reader], durations: Durations) -> Sustained:
        self.exact.clear()
        found = sustain(self.run(case, name), self.device, reader(), durations)
        self.data.hidden.grad = self.data.weight.grad = None
        return found

    def run(self, case: Case, name: str) -> Callable[[], object]:
        run = self.entries[case, name].run
        assert run is not None
        return run
