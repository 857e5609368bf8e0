"""Statistics of every token that a model predicts, from its hidden states; logits exist block by block."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernel import head_statistics

from .features import HiddenStates, ModelHead

__all__ = ["TokenScores", "score_tokens"]

Array = NDArray[np.float64]
# Tokens of one call of head_statistics, so that progress shows; a GPU has waited for each to be launched.
_BLOCK, _BLOCK_CUDA = 1024, 16384


class TokenScores(NamedTuple):
    """Statistics of the predicted tokens at one temperature, ``(n,)`` each, in nats where not said otherwise."""

    predicted: NDArray[np.int64]  # the most probable token
    entropy: Array
    nll: Array
    uniform: Array  # cross entropy against the uniform distribution, lse - mean logit
    confidence: Array  # probability of the most probable token
    log1m_confidence: Array
    correct: NDArray[np.bool_]


def score_tokens(
    known: HiddenStates,
    head: ModelHead,
    *,
    temperature: float = 1.0,
    progress: Callable[[int, int], object] | None = None,
) -> TokenScores:
    """Compute confidence, entropy and losses of every token that a head predicts from hidden states.

    Under autocast the products with the head are cast as those of a linear layer.

    Args:
        known: Hidden states and targets, N of them.
        head: What reads them, with its scale, bias and softcap.
        temperature: That the capped logits are divided by.
        progress: Called with the number of tokens done and N.

    Returns:
        The statistics of :func:`kernel.head_statistics`, in float64 on the CPU.
    """
    parts, block = [], _BLOCK_CUDA if known.hidden.is_cuda else _BLOCK
    for start in range(0, len(known.target), block):
        part = slice(start, start + block)
        stats = head_statistics(
            known.hidden[part], head.weight, known.target[part], linear_bias=head.bias, softcap=head.softcap,
            logit_scale=head.logit_scale, temperatures=(temperature,),
        )  # fmt: skip
        assert stats.log_probability is not None
        assert stats.rank is not None
        columns = (
            stats.entropy[:, 0], -stats.log_probability[:, 0], stats.lse[:, 0] - stats.mean_logit / temperature,
            stats.confidence[:, 0], stats.log1m_confidence[:, 0],
        )  # fmt: skip
        numbers = (x.double().cpu().numpy() for x in columns)
        parts.append((stats.argmax.cpu().numpy(), *numbers, (stats.rank == 0).cpu().numpy()))
        if progress is not None:
            progress(min(start + block, len(known.target)), len(known.target))
    return TokenScores(*(np.concatenate(column) for column in zip(*parts, strict=True)))
