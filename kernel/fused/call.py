"""One call of the loss: its plan, the memory of what it keeps, its backward, and the kernels to compile for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .arguments import Head, Kept, Scalars
from .compile_ahead import compile_ahead
from .gradient_rows import Upstream
from .launch import launch_table, processors, uses_descriptors
from .rows import KeptRows, aligned
from .run_backward import backward
from .run_forward import ForwardResult, forward
from .schedule import Schedule, every_kind, schedule

__all__ = ["LossCall", "Needs", "gathered"]

Needs = tuple[bool, bool, bool]  # gradients of input, weight, bias
_TRIAL_TOKENS = 16  # of the launches that are only noted down


@dataclass(frozen=True)
class LossCall:
    """The tensors of a loss, the options that its kernels read, and the memory that it may use."""

    head: Head
    scalars: Scalars
    workspace_bytes: int

    def plan(self, *, keep: bool, keep_in_gradient: bool, weight_gradient: bool) -> Schedule:
        """Choose the strips of the backward and the columns that the forward keeps (:func:`.schedule.schedule`)."""
        hidden, (vocab_size, hidden_size) = self.head.hidden, self.head.weight.shape
        kind = self.scalars.storage(hidden.dtype)
        return schedule(
            int(hidden.shape[0]),
            int(vocab_size),
            int(hidden_size),
            hidden.element_size(),
            int(self.workspace_bytes),
            keep=keep and kind != "",
            direct=kind == "softmax",
            keep_in_gradient=keep_in_gradient,
            weight_gradient=weight_gradient,
            processors=processors(hidden.device),
            table=launch_table(hidden.device, hidden.dtype),
        )

    def references(self, plan: Schedule) -> int:
        """Count the rows of ``Kept.reference``: one for the targets and, for codes without cap, one a kept tile."""
        hidden, scalars = self.head.hidden, self.scalars
        kind = scalars.storage(hidden.dtype)
        if not plan.kept or kind == "raw":
            return 0
        tiles = plan.kept // launch_table(hidden.device, hidden.dtype).forward.columns
        return 1 + (tiles if kind == "code" and not scalars.softcap else 0)

    def kept(self, plan: Schedule, memory: Tensor, reference: Tensor | None = None) -> Kept | None:
        """Return what the plan keeps: columns at the beginning of ``memory``, flat, and references, given or new."""
        if not plan.kept:
            return None
        n, columns = self.head.hidden.shape[0], memory[: self.head.hidden.shape[0] * plan.kept]
        if self.scalars.storage(self.head.hidden.dtype) == "code":
            columns = columns.view(torch.int16)
        if reference is None:
            reference = torch.empty(self.references(plan), n, dtype=torch.float32, device=memory.device)
        return Kept(columns.view(n, plan.kept), reference.view(-1, n))

    def backward(
        self, upstream: Upstream, plan: Schedule, kept: Kept | None, needs: Needs, gradient: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        """Compute the gradients, without a kept softmax if statistics have some upstream: it does not hold theirs."""
        softmax = self.scalars.storage(self.head.hidden.dtype) == "softmax"
        if upstream.statistics is not None and kept is not None and softmax:
            plan, kept = self.without_kept(needs), None
        return backward(self.head, self.scalars, upstream, plan, kept, needs, gradient)

    def without_kept(self, needs: Needs) -> Schedule:
        """Return the plan of a backward that computes every logit anew."""
        return self.plan(keep=False, keep_in_gradient=False, weight_gradient=needs[1])

    def compile_ahead(self, needs: Needs, return_statistics: bool) -> None:
        """Compile every kernel of losses like this one, whatever their tokens and workspace."""
        (hidden, weight, bias, _), scalars = self.head, self.scalars
        kind, table = scalars.storage(hidden.dtype), launch_table(hidden.device, hidden.dtype)
        numbers = scalars.label_smoothing, scalars.softcap, scalars.z_loss, scalars.confidence_penalty
        layouts = hidden.stride(0) % 16, weight.shape, weight.stride(), weight.data_ptr() % 16, bias is None
        layouts += (None if bias is None else bias.data_ptr() % 16, uses_descriptors(hidden, weight))
        number_kinds = tuple(number > 0 for number in numbers)
        key = (hidden.device, hidden.dtype, layouts, number_kinds, kind, table, needs, return_statistics)
        compile_ahead(key, hidden.device, lambda: self.every_launch(needs, return_statistics))

    def every_launch(self, needs: Needs, return_statistics: bool) -> None:
        """Go through the launches of losses of a few tokens, and of their gradients if any are needed."""
        (hidden, weight, bias, _), scalars = self.head, self.scalars
        hidden = hidden[:_TRIAL_TOKENS]
        n, kind = hidden.shape[0], scalars.storage(hidden.dtype)
        head = Head(hidden, weight, bias, torch.zeros(n, dtype=torch.int64, device=hidden.device))
        if not any(needs):
            forward(head, scalars, None, packed=False, return_statistics=return_statistics)
            return
        few = LossCall(head, scalars, 0)
        table, programs = launch_table(hidden.device, hidden.dtype), processors(hidden.device)
        size = int(weight.shape[0]), int(weight.shape[1])
        for plan in every_kind(n, *size, keep=kind != "", direct=kind == "softmax", processors=programs, table=table):
            kept = few.kept(plan, hidden.new_empty(n * plan.kept))
            found = forward(head, scalars, kept, packed=True, return_statistics=return_statistics)
            backward(head, scalars, _upstream(found, None), plan, kept, needs)
            if found.statistics is not None and (kept is None or kind != "softmax"):
                backward(head, scalars, _upstream(found, found.statistics), plan, kept, needs)


def _upstream(found: ForwardResult, statistics: Tensor | None) -> Upstream:
    return Upstream(found.token_loss, statistics, found.lse, found.entropy, found.rows)


def gathered(
    of_loss: Tensor | None, of_statistics: Tensor | None, lse: Tensor, entropy: Tensor | None, index: Tensor
) -> Upstream:
    """Return upstream gradients as the kernels read them; None is the gradient of an output that is not used."""
    of_loss = torch.zeros_like(lse) if of_loss is None else aligned(of_loss.contiguous())
    of_statistics = None if of_statistics is None else aligned(of_statistics.contiguous())
    return Upstream(of_loss, of_statistics, lse, entropy, KeptRows.within(index, lse.shape[0]))
