"""head_statistics in Triton: a sweep (:mod:`kernel.statistics.sweep`) and a join for each eight temperatures.

Memory beyond inputs and results: the partial statistics, 16 MiB at eight temperatures and 8,192 tokens, whatever the
vocabulary. Importing this module needs no Triton; calling :func:`statistics` does.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from ..fused.launch import Launch, available, blocks, launch_table, processors, uses_descriptors
from ..options import LossOptions
from .fields import HeadStatistics, check_finite

__all__ = ["MAX_TEMPERATURES", "statistics"]

MAX_TEMPERATURES = 8  # of one pass: they decide the memory of the partial statistics
# Units of work: 8 for each of the 132 multiprocessors of an H100. An uneven share costs 3 %, the partials 16 MiB.
MAX_UNITS = 1056
WIDTH = 32  # columns of the arrays that a tile is folded into: 16 registers each


def statistics(
    input: Tensor,  # (N, D)
    linear_weight: Tensor,  # (V, D)
    target: Tensor | None,  # (N,)
    linear_bias: Tensor | None,  # (V,)
    options: LossOptions,
    temperatures: tuple[float, ...],
    top_k: int,
    given: Tensor | None = None,  # (N,)
    *,
    launch: Launch | None = None,
) -> HeadStatistics:
    """The fields of :class:`kernel.HeadStatistics`, flat; ``launch`` replaces the launch parameters of the table.

    ``given`` are logits of the targets, read where a target lies outside of these rows: it counts as before the first
    or after the last of them.

    Raises:
        ValueError: If the kernels cannot run on these tensors, or ``top_k`` is asked for.
    """
    if reason := available(input.device, input.dtype):
        raise ValueError(f"implementation='triton' cannot run here: {reason}.")
    if top_k:
        raise ValueError(f"implementation='triton' has no top_k, got {top_k}: use 'auto' or 'chunked'.")
    # the kernels read both by their index alone
    target = None if target is None else target.contiguous()
    linear_bias = None if linear_bias is None else linear_bias.contiguous()
    n, device = input.shape[0], input.device
    scores = torch.empty(6, n, len(temperatures), device=device)
    logits = torch.empty(3, n, device=device)
    indices = torch.empty(2, n, dtype=torch.int64, device=device)
    if n:
        from ..fused.compile_ahead import compile_ahead  # needs Triton, as the next line
        from ..fused.rows import aligned, with_plain_rows

        input, target = with_plain_rows(input), None if target is None else aligned(target)
        launch = launch_table(device, input.dtype).forward if launch is None else launch
        for start in range(0, len(temperatures), MAX_TEMPERATURES):
            part = slice(start, start + MAX_TEMPERATURES)
            several = len(temperatures) > MAX_TEMPERATURES
            into = scores.new_empty(6, n, len(temperatures[part])) if several else scores
            run = partial(
                _pass, input, linear_weight, target, linear_bias, given, options, temperatures[part], launch, into,
                logits, indices,
            )  # fmt: skip
            layouts = (input.dtype, input.stride(0) % 16, linear_weight.shape, linear_weight.stride())
            kinds = (target is None, linear_bias is None, options.softcap is None, len(temperatures[part]), launch)
            compile_ahead((device, layouts, kinds), device, run)
            run()
            if several:
                scores[:, :, part] = into
        check_finite(logits[0], logits[2], None if target is None else target == options.ignore_index)
    lse, entropy, participation, log_probability, confidence, log1m_confidence = scores
    known = target is not None
    return HeadStatistics(
        lse=lse,
        entropy=entropy,
        participation=participation,
        log_probability=log_probability if known else None,
        confidence=confidence,
        log1m_confidence=log1m_confidence,
        max_logit=logits[0],
        argmax=indices[0],
        target_logit=logits[1] if known else None,
        mean_logit=logits[2],
        rank=indices[1] if known else None,
        top_logits=None,
        top_indices=None,
    )


def _pass(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor | None,
    bias: Tensor | None,
    given: Tensor | None,
    options: LossOptions,
    temperatures: tuple[float, ...],
    launch: Launch,
    scores: Tensor,  # (6, N, temperatures)
    logits: Tensor,  # (3, N)
    indices: Tensor,  # (2, N)
) -> None:
    """One sweep over the vocabulary."""
    from ..fused.arguments import Head, Scalars, Tiles, logit_arguments, product_arguments
    from ..fused.compile_ahead import run_kernel
    from ..fused.rows import index_rows
    from ..fused.target_logit import target_logits
    from .join import join_kernel
    from .sweep import sweep_kernel

    n, vocab_size, device = hidden.shape[0], weight.shape[0], hidden.device
    # No target: every token is kept.
    labels = torch.zeros(n, dtype=torch.int64, device=device) if target is None else target
    rows = index_rows(labels, options.ignore_index if target is not None else -1)
    scalars = Scalars.of(options)
    own = torch.empty(n, dtype=torch.float32, device=device)
    if target is not None:
        inside = target if given is None else target.clamp(0, vocab_size - 1)
        own, _ = target_logits(Head(hidden, weight, bias, inside), scalars, rows, tokens=16, block_hidden=128)
        if given is not None:
            source = rows.source.clamp(0, n - 1).long()  # undefined beyond the kept rows
            own = torch.where((inside == target)[source], own, given[source] / math.log(2))
    units = max(MAX_UNITS if device.type == "cuda" else 12, blocks(n, launch.rows))
    several = 1 << (len(temperatures) - 1).bit_length()  # the next power of two
    padded = [*temperatures, *[1.0] * (several - len(temperatures))]
    stride = units * launch.rows
    common = {
        "count": rows.number,
        "target": labels,
        "target_logit": own,
        "inverse_temperature": torch.tensor([1 / t for t in padded], dtype=torch.float32).to(device, non_blocking=True),
        "partial": torch.empty(3 + 3 * several, stride, dtype=torch.float32, device=device),
        "classes": torch.empty(2, stride, dtype=torch.int32, device=device),
        "stride": stride,
        "tile_count": blocks(vocab_size, launch.columns),
        "HAS_TARGET": target is not None,
        "K": several,
    }
    # Whether rows are dropped is known on the device alone; descriptors load blocks of neighbours only.
    runs = [("all kept", True), ("some ignored", False)] if uses_descriptors(hidden, weight) else [("always", False)]
    for run_if, descriptor in runs:
        run_kernel(
            sweep_kernel,
            (processors(device),),
            source=rows.source,
            **common,
            **logit_arguments(hidden, weight, bias, scalars),
            MASK_VOCAB=vocab_size % launch.columns != 0,
            RUN_IF=run_if,
            WIDTH=min(WIDTH, launch.columns // 4),
            **product_arguments(Tiles(descriptor), hidden, weight, launch),
            PRECISION="ieee",
            num_warps=launch.warps,
            num_stages=launch.stages,
        )
    run_kernel(
        join_kernel,
        (blocks(n, 16),),
        position=rows.position,
        **common,
        scores=scores,
        logits=logits,
        indices=indices,
        plane=scores.stride(0),
        n=n,
        vocab_size=vocab_size,
        temperatures=len(temperatures),
        BLOCK_ROWS=launch.rows,
        ROWS=16,
    )
