"""One call of the loss: its plan, the memory of what it keeps, and its backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .arguments import Head, Held, Kept, Scalars
from .backward_chunks import backward_rows
from .default_workspace import default_workspace_bytes
from .gradient_rows import Upstream
from .gradients import Destination, Reduction
from .launch import blocks, launch_table, processors
from .plan import PEAK_ROWS, KeptColumns
from .run_backward import backward
from .run_sparse import Sparse, SparseTiles, sparse_backward
from .schedule import Schedule, schedule
from .sparse_times import most_active
from .token_chunks import Chunks, token_chunks

__all__ = ["LossCall", "Needs"]

Needs = tuple[bool, bool, bool]  # gradients of input, weight, bias


@dataclass(frozen=True)
class LossCall:
    """The tensors of a loss, the options that its kernels read, and the memory that it may use."""

    head: Head
    scalars: Scalars
    workspace_bytes: int | None  # None: nobody chose it

    @property
    def budget(self) -> int:
        """Bytes of the workspace; by default of all tokens, whatever a chunk of them has."""
        chosen, tokens = self.workspace_bytes, int(self.head.hidden.shape[0])
        return default_workspace_bytes(tokens) if chosen is None else int(chosen)

    def plan(
        self,
        *,
        keep: bool,
        consumed: bool,
        weight_gradient: bool,
        tokens: int | None = None,
        sums: bool = False,
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
        )

    def _sizes(self) -> tuple[int, int, int, int]:
        """Vocabulary, hidden size, bytes of an element and of the workspace."""
        vocab_size, hidden_size = self.head.weight.shape
        return int(vocab_size), int(hidden_size), self.head.weight.element_size(), self.budget

    def _kinds(self, keep: bool) -> dict[str, Any]:
        """What plans depend on beside the sizes."""
        device, dtype = self.head.hidden.device, self.head.hidden.dtype
        kind = self.scalars.storage(dtype)
        return {
            "default": self.workspace_bytes is None,
            "keep": keep and kind != "",
            "direct": kind == "softmax",
            "in_bytes": self.scalars.in_bytes(dtype),
            "processors": processors(device),
            "table": launch_table(device, dtype, int(self.head.hidden.shape[1])),
        }

    def serves_chunks(self, needs: Needs, return_statistics: bool, sparse: bool) -> bool:
        """Whether the scalar loss may be computed in chunks of tokens, of some number of tokens and some workspace.

        Not of float16, whose gradients are rounded after the loss scale has joined them, which comes with the upstream
        gradient, nor where the head needs no gradient or a token may have an upstream gradient of its own; nor of
        bfloat16 with a z-loss, as nobody knows what sums of its part of the gradient may become (:mod:`.chunk_sums`).
        """
        if not needs[1] or return_statistics or sparse:
            return False
        dtype = self.head.hidden.dtype
        return dtype == torch.float32 or (dtype == torch.bfloat16 and not self.scalars.z_loss)

    def backward_rows(self, whole: Schedule, needs: Needs) -> int:
        """Choose how many tokens a chunk of the backward has (:mod:`.backward_chunks`); all of them where one is best.

        ``whole`` is the plan of all tokens.
        """
        n, kinds = int(self.head.hidden.shape[0]), self._kinds(True)
        if not self.serves_backward_chunks(needs):
            return n
        common = {"table": kinds["table"], "processors": kinds["processors"]}
        return backward_rows(n, *self._sizes(), whole=whole, weight_gradient=needs[1], **common)

    def serves_backward_chunks(self, needs: Needs) -> bool:
        """Whether the backward of a loss without statistics may be cut into chunks of tokens.

        Not where the head's gradient is float16, than which the sums between chunks are hardly finer; nor of a slice of
        a head, whose input's gradient is complete before its own last product.
        """
        return not self.scalars.whole and (not needs[1] or self.head.hidden.dtype != torch.float16)

    def chunks(self) -> Chunks:
        """Choose how many tokens a chunk has (:mod:`.token_chunks`); all of them where one is best."""
        return token_chunks(int(self.head.hidden.shape[0]), *self._sizes(), **self._kinds(True))

    def chunk_plans(self, chunks: Chunks) -> tuple[Schedule, Schedule]:
        """Choose the plans of the first chunk and of the later ones.

        The last may have fewer tokens than its plan: its strips then fill less of their memory.
        """
        kinds = {"keep": True, "consumed": True, "weight_gradient": True}
        return self.plan(**kinds, tokens=chunks.rows), self.plan(**kinds, tokens=chunks.rows, sums=True)

    def references(self, run: KeptColumns) -> int:
        """Count the rows of ``Kept.reference``: one for the targets and what peaks there are.

        Codes without cap have one a kept tile, columns in bytes two.
        """
        hidden, scalars = self.head.hidden, self.scalars
        kind, tile = scalars.storage(hidden.dtype), launch_table(hidden.device, hidden.dtype).forward.columns
        if run.in_bytes:
            return 1 + run.columns // tile * PEAK_ROWS
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
        tokens: int | None = None,
    ) -> Held:
        """Return memory, new or given, for what is kept: the workspace of the backward and the weight's gradient.

        Of a chunk of ``tokens``, where not of all of them.
        """
        (hidden, weight, _, _), shared = self.head, None
        n = hidden.shape[0] if tokens is None else tokens
        softmax = self.scalars.storage(hidden.dtype) == "softmax"
        if gradient is None and plan.in_gradient:
            gradient = weight.new_empty(weight.shape)
        if workspace is None and plan.held:
            workspace = weight.new_empty(plan.held)
        kept = []
        for run in plan.kept:
            memory = workspace if gradient is None or not run.in_gradient else gradient.view(-1)
            assert memory is not None
            as_it_is = softmax and not run.in_bytes
            reference = shared if as_it_is else None
            if reference is None and references is not None:
                size = self.references(run) * n
                reference, references = references[:size], references[blocks(size, 4) * 4 :]  # aligned
            kept.append(self.kept(run, memory, reference, n))
            shared = kept[-1].reference if as_it_is else shared
        return Held(tuple(kept), workspace, gradient)

    def kept(
        self, run: KeptColumns, memory: Tensor, reference: Tensor | None = None, tokens: int | None = None
    ) -> Kept:
        """Return kept columns in their place in ``memory``, flat, and their references, given or new."""
        hidden = self.head.hidden
        n = hidden.shape[0] if tokens is None else tokens
        launch = launch_table(hidden.device, hidden.dtype).logit_gradient
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

    def most_active(self, needs: Needs) -> float:
        """Return the largest share of active tiles with which a sparse backward is worth it (:mod:`.sparse_times`)."""
        hidden = self.head.hidden
        if not hidden.is_cuda:  # the interpreter has no times
            return 0.5
        vocab_size, hidden_size, itemsize, _ = self._sizes()
        plan = self.plan(keep=True, consumed=True, weight_gradient=needs[1])
        return most_active(
            int(hidden.shape[0]),
            vocab_size,
            hidden_size,
            products=sum(needs[:2]),
            kept=sum(run.columns for run in plan.kept) / vocab_size,
            itemsize=itemsize,
            tile=launch_table(hidden.device, hidden.dtype).logit_gradient.columns,
            processors=processors(hidden.device),
        )

    def sparse_backward(
        self, upstream: Upstream, sparse: Sparse, tiles: SparseTiles, needs: Needs
    ) -> tuple[Tensor | None, ...] | None:
        """Compute the gradients within a tolerance, or None where they are to be computed exactly."""
        gradients = None
        if upstream.statistics is None or not upstream.of_entropy:
            common = self.head, self.scalars, upstream, tiles
            gradients = sparse_backward(*common, sparse, self.budget, needs, self.most_active(needs))
        sparse.note(self.head, needs, failed=gradients is None)
        if gradients is None and sparse.told is not None:
            sparse.told.exact()
        return gradients

    def without_kept(self, needs: Needs) -> Schedule:
        """Return the plan of a backward that computes every logit anew."""
        return self.plan(keep=False, consumed=True, weight_gradient=needs[1])
