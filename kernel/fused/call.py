"""One call of the loss: its plan, the memory of what it keeps, its backward, and the kernels to compile for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .arguments import Head, Held, Kept, Scalars
from .compile_ahead import compile_ahead
from .gradient_rows import Upstream
from .launch import blocks, launch_table, processors, uses_descriptors
from .plan import KeptColumns, peak_rows
from .rows import KeptRows, aligned
from .run_backward import Destination, Reduction, backward
from .run_forward import ForwardResult, forward
from .run_sparse import Sparse, SparseTiles, sparse_backward
from .scale import scale
from .schedule import Schedule, every_kind, schedule
from .token_chunks import Chunks, token_chunks

__all__ = ["LossCall", "Needs", "gathered"]

Needs = tuple[bool, bool, bool]  # gradients of input, weight, bias
_TRIAL_TOKENS = 16  # of the launches that are only noted down


@dataclass(frozen=True)
class LossCall:
    """The tensors of a loss, the options that its kernels read, and the memory that it may use."""

    head: Head
    scalars: Scalars
    workspace_bytes: int

    def plan(
        self,
        *,
        keep: bool,
        consumed: bool,
        weight_gradient: bool,
        tokens: int | None = None,
        sums: bool = False,
        recompute_first: bool = False,
    ) -> Schedule:
        """Choose the strips of the backward and the columns that the forward keeps (:func:`.schedule.schedule`).

        Of a chunk of ``tokens``, where not of all of them; ``sums`` says that it is not the first.
        """
        tokens = int(self.head.hidden.shape[0]) if tokens is None else tokens
        return schedule(
            tokens,
            *self._sizes(),
            **self._kinds(keep),
            consumed=consumed,
            weight_gradient=weight_gradient,
            sums=sums,
            recompute_first=recompute_first,
        )

    def _sizes(self) -> tuple[int, int, int, int]:
        """Vocabulary, hidden size, bytes of an element and of the workspace."""
        vocab_size, hidden_size = self.head.weight.shape
        return int(vocab_size), int(hidden_size), self.head.weight.element_size(), int(self.workspace_bytes)

    def _kinds(self, keep: bool) -> dict[str, Any]:
        """What plans depend on beside the sizes."""
        device, dtype = self.head.hidden.device, self.head.hidden.dtype
        kind = self.scalars.storage(dtype)
        return {
            "keep": keep and kind != "",
            "direct": kind == "softmax",
            "in_bytes": self.scalars.in_bytes(dtype),
            "processors": processors(device),
            "table": launch_table(device, dtype),
        }

    def serves_chunks(self, needs: Needs, return_statistics: bool, sparse: bool) -> bool:
        """Whether the scalar loss may be computed in chunks of tokens, of some number of tokens and some workspace.

        Not of float16, whose gradients are rounded after the loss scale has joined them, which comes with the upstream
        gradient, nor where the head needs no gradient or a token may have an upstream gradient of its own.
        """
        return needs[1] and not (return_statistics or sparse) and self.head.hidden.dtype != torch.float16

    def chunks(self) -> Chunks:
        """Choose how many tokens a chunk has (:mod:`.token_chunks`); all of them where one is best."""
        return token_chunks(int(self.head.hidden.shape[0]), *self._sizes(), **self._kinds(True))

    def references(self, run: KeptColumns) -> int:
        """Count the rows of ``Kept.reference``: one for the targets and what peaks there are.

        Codes without cap have one a kept tile, columns in bytes as many as hold the peaks of one.
        """
        hidden, scalars = self.head.hidden, self.scalars
        kind, tile = scalars.storage(hidden.dtype), launch_table(hidden.device, hidden.dtype).forward.columns
        if run.in_bytes:
            return 1 + run.columns // tile * peak_rows(tile)
        if kind == "raw":
            return 0
        tiles = run.columns // tile
        return 1 + (tiles if kind == "code" and not scalars.softcap else 0)

    def held(
        self,
        plan: Schedule,
        workspace: Tensor | None = None,
        gradient: Tensor | None = None,
        references: Tensor | None = None,  # float32, flat
    ) -> Held:
        """Return memory, new or given, for what is kept: the workspace of the backward and the weight's gradient."""
        weight = self.head.weight
        if gradient is None and plan.in_gradient:
            gradient = weight.new_empty(weight.shape)
        if workspace is None and plan.held:
            workspace = weight.new_empty(plan.held)
        kept = []
        for run in plan.kept:
            memory = workspace if gradient is None or not run.in_gradient else gradient.view(-1)
            assert memory is not None
            reference = None
            if references is not None:
                size = self.references(run) * self.head.hidden.shape[0]
                reference, references = references[:size], references[blocks(size, 4) * 4 :]  # aligned
            kept.append(self.kept(run, memory, reference))
        return Held(tuple(kept), workspace, gradient)

    def kept(self, run: KeptColumns, memory: Tensor, reference: Tensor | None = None) -> Kept:
        """Return kept columns in their place in ``memory``, flat, and their references, given or new."""
        hidden = self.head.hidden
        n, launch = hidden.shape[0], launch_table(hidden.device, hidden.dtype).logit_gradient
        rows = run.rows(n, launch.rows)
        memory = memory[run.offset :]
        if run.in_bytes:
            memory = memory.view(torch.uint8)
        columns = memory[: rows * run.width].view(rows, run.width)
        if self.scalars.storage(hidden.dtype) == "code" and not run.in_bytes:
            columns = columns.view(torch.int16)
        if reference is None:
            reference = torch.empty(self.references(run), n, dtype=torch.float32, device=memory.device)
        return Kept(run.start, run.number, columns, reference.view(-1, n))

    def usable(self, plan: Schedule, held: Held | None, upstream: Upstream, needs: Needs) -> tuple[Schedule, Held]:
        """Return the plan and what is held of it; what cannot be used is let go, and its logits are computed anew.

        That is so once a backward has used it up (None), and for a softmax that is kept as it is where upstream
        gradients of statistics need the logits themselves, which is that of the entropy, or its targets' entries
        changed where it may not be.
        """
        if held is None:
            return self.without_kept(needs), Held()
        softmax = self.scalars.storage(self.head.hidden.dtype) == "softmax"
        as_it_is = softmax and not all(run.in_bytes for run in held.kept)
        revised = upstream.statistics is not None and as_it_is
        if revised and (upstream.of_entropy or not plan.consumed):
            return self.without_kept(needs), Held(gradient=held.gradient)
        return plan, held

    def backward(
        self,
        upstream: Upstream,
        plan: Schedule,
        held: Held,
        needs: Needs,
        reduction: Reduction | None = None,
        into: Destination | None = None,
    ) -> tuple[Tensor | None, ...]:
        """Compute the gradients."""
        return backward(self.head, self.scalars, upstream, plan, held, needs, reduction, into)

    def sparse_backward(
        self, upstream: Upstream, sparse: Sparse, tiles: SparseTiles, needs: Needs
    ) -> tuple[Tensor | None, ...] | None:
        """Compute the gradients within a tolerance, or None where they are to be computed exactly."""
        gradients = None
        if upstream.statistics is None or not upstream.of_entropy:
            common = self.head, self.scalars, upstream, tiles
            gradients = sparse_backward(*common, sparse, self.workspace_bytes, needs)
        sparse.note(self.head, needs, failed=gradients is None)
        if gradients is None and sparse.told is not None:
            sparse.told.exact()
        return gradients

    def without_kept(self, needs: Needs) -> Schedule:
        """Return the plan of a backward that computes every logit anew."""
        return self.plan(keep=False, consumed=True, weight_gradient=needs[1])

    def compile_ahead(self, needs: Needs, return_statistics: bool, sparse: bool = False, eager: bool = False) -> None:
        """Compile every kernel of losses like this one, whatever their tokens, workspace and reduction.

        ``eager`` says that it may be computed in chunks: neither in compiled code nor by a slice of the head.
        """
        (hidden, weight, bias, _), scalars = self.head, self.scalars
        kind, table = scalars.storage(hidden.dtype), launch_table(hidden.device, hidden.dtype)
        numbers = scalars.label_smoothing, scalars.softcap, scalars.z_loss, scalars.confidence_penalty
        layouts = hidden.stride(0) % 16, weight.shape, weight.stride(), weight.data_ptr() % 16, bias is None
        layouts += (None if bias is None else bias.data_ptr() % 16, uses_descriptors(hidden, weight))
        number_kinds = tuple(number > 0 for number in numbers)
        layouts += (scalars.whole > 0,)
        chunks = eager and self.serves_chunks(needs, return_statistics, sparse)
        key = (
            hidden.device,
            hidden.dtype,
            layouts,
            number_kinds,
            kind,
            table,
            needs,
            return_statistics,
            sparse,
            chunks,
        )
        compile_ahead(key, hidden.device, lambda: self.every_launch(needs, return_statistics, sparse, chunks))

    def every_launch(self, needs: Needs, return_statistics: bool, sparse: bool = False, chunks: bool = False) -> None:
        """Go through the launches of losses of a few tokens, and of their gradients if any are needed."""
        (hidden, weight, bias, _), scalars = self.head, self.scalars
        hidden = hidden[:_TRIAL_TOKENS]
        n, kind = hidden.shape[0], scalars.storage(hidden.dtype)
        head = Head(hidden, weight, bias, torch.zeros(n, dtype=torch.int64, device=hidden.device))
        if not any(needs):
            forward(head, scalars, packed=False, return_statistics=return_statistics)
            return
        few = LossCall(head, scalars, 0)
        table, programs = launch_table(hidden.device, hidden.dtype), processors(hidden.device)
        size = int(weight.shape[0]), int(weight.shape[1])
        kinds = {"keep": kind != "", "direct": kind == "softmax", "in_bytes": scalars.in_bytes(hidden.dtype)}
        for plan in every_kind(n, *size, **kinds, processors=programs, table=table):
            held = few.held(plan)
            found = forward(head, scalars, held.kept, packed=True, return_statistics=return_statistics)
            reduction = _NoReduction(hidden) if scalars.whole else None
            if reduction is not None or found.statistics is not None:
                held = held._replace(target_logit=found.target_logit)
            gradients = backward(head, scalars, _upstream(found, None), plan, held, needs, reduction)
            if chunks:
                scale(gradients, found.token_loss[:1])
                bias_sums = None if bias is None else bias.new_zeros(bias.shape, dtype=torch.float32)
                into = Destination(None, gradients[1], bias_sums, {}, accumulate=True)
                backward(head, scalars, _upstream(found, None), plan, held, needs, into=into)
            if found.statistics is not None:
                backward(head, scalars, _upstream(found, found.statistics), plan, held, needs, reduction)
        if sparse:  # never of a slice of a head, whose gradients are exact
            sums = SparseTiles.memory(head)
            found = forward(head, scalars, packed=True, return_statistics=return_statistics, tile_sums=sums)
            tiles = SparseTiles.finish(sums, head, found.lse, found.rows.number, 0.5)
            for statistics in (None, found.statistics):
                upstream = _upstream(found, statistics)
                sparse_backward(head, scalars, upstream, tiles, Sparse(0.5, None), 0, needs)


class _NoReduction:
    """Takes the place of one where launches are only noted down."""

    def __init__(self, hidden: Tensor) -> None:
        self.values = torch.empty(hidden.shape, dtype=torch.float32, device=hidden.device)

    def begin(self) -> None:
        pass

    def end(self) -> Tensor:
        return self.values


def _upstream(found: ForwardResult, statistics: Tensor | None) -> Upstream:
    return Upstream(found.token_loss, statistics, found.lse, found.entropy, found.rows)


def gathered(
    of_loss: Tensor | None,
    of_statistics: Tensor | Sequence[Tensor | None] | None,
    lse: Tensor,
    entropy: Tensor | None,
    index: Tensor,
) -> Upstream:
    """Return upstream gradients as the kernels read them; None is the gradient of an output that is not used."""
    of_loss = torch.zeros_like(lse) if of_loss is None else aligned(of_loss.contiguous())
    of_entropy = True
    if of_statistics is not None and not isinstance(of_statistics, Tensor):
        of_entropy = of_statistics[2] is not None
        used = any(g is not None for g in of_statistics)
        zeros = torch.zeros_like(lse)
        of_statistics = torch.stack([zeros if g is None else g for g in of_statistics]) if used else None
    of_statistics = None if of_statistics is None else aligned(of_statistics.contiguous())
    return Upstream(of_loss, of_statistics, lse, entropy, KeptRows.within(index, lse.shape[0]), of_entropy)
