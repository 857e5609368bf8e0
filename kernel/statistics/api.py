"""Per-token statistics of a head's softmax at several temperatures, without ever holding the N x V logits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from .. import vocab_parallel
from ..api import autocast_off, local_tensors
from ..fused.launch import available
from ..options import LossOptions
from ..validation import check_target_range, check_tensors
from . import chunked, fused, split
from .fields import HeadStatistics

__all__ = ["HeadStatistics", "head_statistics"]

StatisticsImplementation = Literal["auto", "chunked", "triton"]
LOWEST_TEMPERATURE = 1e-6  # logits of 1e30 divided by it are still finite in float32
_IMPLEMENTATIONS = {"chunked": chunked.statistics, "triton": fused.statistics}


def head_statistics(
    input: Tensor,  # (..., D)
    linear_weight: Tensor,  # (V, D)
    target: Tensor | None = None,  # (...)
    *,
    linear_bias: Tensor | None = None,  # (V,)
    softcap: float | None = None,
    logit_scale: float = 1.0,
    temperatures: Sequence[float] = (1.0,),
    ignore_index: int = -100,
    top_k: int = 0,
    implementation: StatisticsImplementation = "auto",
    process_group: Any = None,
) -> HeadStatistics:
    r"""Confidence, entropy, log-probability and more of every token, at several temperatures in one pass over the head.

    .. math::
        z = \text{logit\_scale}\; h W^\top + \text{bias}, \quad z \leftarrow c \tanh(z / c), \quad
        p^{(T)} = \operatorname{softmax}(z / T)

    Equivalent to reducing the rows of ``softmax(logits / T)``, with memory for a block of them only. No gradient flows.

    Args:
        input: Hidden states ``(..., D)``; float16, bfloat16, float32 or float64.
        linear_weight: Head ``(V, D)``, of input's dtype, any strides.
        target: Class indices ``(...)``, int64, for the fields of the target; None leaves them out.
        linear_bias: Bias ``(V,)``, added after ``logit_scale`` and before the cap.
        softcap: :math:`c > 0` of the logit cap; None for no cap.
        logit_scale: Multiplies the product before bias and cap.
        temperatures: The T in [1e-6, 1e6] to evaluate, the last axis of the first six fields.
        ignore_index: Tokens with this target are left out: their fields are nan, or -1 where integers.
        top_k: Also return this many largest logits with their classes.
        implementation: ``"chunked"`` (any device, blocks of tokens; heads of half precision are copied to float32),
            ``"triton"`` (one sweep over the vocabulary for up to eight temperatures; no ``top_k``), or ``"auto"``:
            ``"triton"`` on a CUDA device that can run it, else ``"chunked"``.
        process_group: As in :func:`kernel.linear_cross_entropy`: the processes that hold the head's rows between them.
            All fields are over all rows, the same in every process.

    Returns:
        A :class:`HeadStatistics`; float64 for float64 inputs, else float32.

    Raises:
        TypeError: Wrong type or dtype.
        ValueError: Wrong shape, device or range, or logits that are not finite.
        RuntimeError: Another process of ``process_group`` refused its arguments or failed.

    Example:
        >>> hidden, head = torch.eye(3), 2 * torch.eye(3)
        >>> stats = head_statistics(hidden, head, torch.tensor([0, 2, -100]), temperatures=(1.0, 0.25))
        >>> [round(p, 4) for p in stats.confidence[0].tolist()]
        [0.787, 0.9993]
        >>> stats.rank.tolist(), stats.argmax.tolist()
        ([0, 2, -1], [0, 1, -1])
    """
    process_group, refused, input, linear_weight, linear_bias, target = local_tensors(
        process_group, input, linear_weight, linear_bias, target=target
    )

    def checked() -> tuple[LossOptions, tuple[float, ...], int, bool]:
        if refused is not None:
            raise refused
        if implementation != "auto" and implementation not in _IMPLEMENTATIONS:
            raise ValueError(f"implementation must be one of {('auto', *_IMPLEMENTATIONS)}, got {implementation!r}.")
        options = LossOptions(softcap=softcap, logit_scale=logit_scale, ignore_index=ignore_index)
        values = _check_temperatures(temperatures)
        check_tensors(input, linear_weight, target, linear_bias)
        if isinstance(top_k, bool) or not isinstance(top_k, int):
            raise TypeError(f"top_k must be an int, got {type(top_k).__name__}.")
        return options, values, top_k, target is None

    agreement = None
    if process_group is None:
        options, values, *_ = checked()
        vocab_size = linear_weight.shape[0]
        if target is not None:
            check_target_range(target, vocab_size, ignore_index)
    else:
        agreement = vocab_parallel.propose(process_group, checked, input, linear_weight, target, linear_bias)
        options, values, *_ = agreement.checked
        vocab_size = agreement.confirm().vocab_size
    if not 0 <= top_k <= vocab_size:
        raise ValueError(f"top_k must be in [0, {vocab_size}], got {top_k}.")
    if implementation == "auto":
        runs_triton = input.is_cuda and not top_k and available(input.device, input.dtype) is None
        implementation = "triton" if runs_triton else "chunked"
    function = _IMPLEMENTATIONS[implementation]
    if agreement is not None:
        function = partial(split.statistics, function, agreement=agreement)
    with torch.no_grad(), autocast_off(input):
        flat = None if target is None else target.reshape(-1)
        hidden = input.reshape(-1, input.shape[-1])
        fields = function(hidden, linear_weight, flat, linear_bias, options, values, top_k)
        leading = input.shape[:-1]
        shaped = {k: x.reshape(*leading, *x.shape[1:]) for k, x in fields._asdict().items() if x is not None}
        return fields._replace(**shaped)


def _check_temperatures(temperatures: Sequence[float]) -> tuple[float, ...]:
    if isinstance(temperatures, (int, float, str)) or not isinstance(temperatures, Sequence):
        raise TypeError(f"temperatures must be a sequence of numbers, got {type(temperatures).__name__}.")
    if not temperatures:
        raise ValueError("temperatures must not be empty.")
    for value in temperatures:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"temperatures must be Python numbers, got {type(value).__name__}.")
        if not LOWEST_TEMPERATURE <= value <= 1 / LOWEST_TEMPERATURE:
            raise ValueError(
                f"temperatures must be in [{LOWEST_TEMPERATURE:g}, {1 / LOWEST_TEMPERATURE:g}], got {value}."
            )
    return tuple(float(value) for value in temperatures)
