"""Implementations in a process of their own, which takes its turns in the rounds of the others.

CuTe's compiler brings libraries that a process shares with all else that it imports. The other process draws the same
data from the same seed on the same device, and times each turn as this one does, behind products of its own; only one
of the two has work on the device at a time. A process that ends takes its turns with it, and nothing else.
"""

from __future__ import annotations

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

__all__ = ["Apart"]


class Apart:
    """The other process, started at the first case that one of its implementations does not refuse.

    Args:
        shape: Of the problem.
        dtype: Of its data.
        device: Where they are.
        names: Of the implementations that it runs.
        implementations: Returns them, here and there.
    """

    def __init__(
        self,
        shape: Shape,
        dtype: torch.dtype,
        device: torch.device,
        names: Sequence[str],
        implementations: Callable[[], list[Rival]] = cute_rivals,
    ) -> None:
        self.problem, self.device = (shape, dtype, device, implementations), device
        self.rivals = [rival for rival in implementations() if rival.name in names]
        self._pipe: Any = None
        self._process: Any = None

    def prepare(self, case: Case) -> list[Entry]:
        """One entry an implementation, in their order: one that takes turns over there, or says why it does not run."""
        columns: dict[str, dict[str, Any]] = {rival.name: {} for rival in self.rivals}
        for rival in self.rivals:
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
            self._process = context.Process(target=_serve, args=(theirs, *self.problem), daemon=True)
            self._process.start()
            theirs.close()
        try:
            self._pipe.send((kind, case, *rest))
            return self._pipe.recv()
        except (BrokenPipeError, ConnectionResetError) as error:
            raise EOFError from error

    def _status(self) -> int | None:
        self._process.join(30)
        status, self._process = self._process.exitcode, None
        return status


def _serve(
    pipe: Any, shape: Shape, dtype: torch.dtype, device: torch.device, implementations: Callable[[], list[Rival]]
) -> None:
    """Answer until the pipe is closed: the columns to "prepare", a Turn to "turn"."""
    data = make_data(shape, dtype, device)
    hidden, weight = data.hidden.detach(), data.weight.detach()
    entries: dict[tuple[Case, str], Entry] = {}
    before = None
    while True:
        try:
            kind, case, name = pipe.recv()
        except EOFError:
            return
        if kind == "prepare":
            (rival,) = [rival for rival in implementations() if rival.name == name]
            (entries[case, name],) = prepare(data, case, [rival], device)
            pipe.send(entries[case, name].columns)
            continue
        if before is None:
            before = measure.ahead(partial(torch.mm, hidden, weight.T, out=hidden @ weight.T), device)
        run = entries[case, name].run
        assert run is not None
        pipe.send(Turn(*measure.turn(run, device, before=before)))
        data.hidden.grad = data.weight.grad = None
