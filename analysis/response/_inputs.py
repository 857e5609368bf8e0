"""What a response is computed from: a head, hidden states and distributions over tokens, checked, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import as_numpy, interval

__all__ = ["Distributions", "Reduced", "ScaledHead", "blocks", "head_of", "matrix", "reduced", "smoothings"]

_ENTRIES = {"cpu": 2**20, "cuda": 2**25}  # float64 entries of one block of logits; some six such arrays live at once
_NULL = 1e-12  # share of the largest squared singular value below which an axis is rounding
_TOLERANCE = 1e-4  # by which probabilities may miss the sum 1


@dataclass(frozen=True)
class ScaledHead:
    """Rows over the temperature, ``(V, D)``, and the softcap c / T that their products meet, or None."""

    rows: Tensor
    softcap: float | None

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.rows.shape[0]

    @property
    def scale(self) -> float:
        """Largest norm of a centred row: what a unit step of a hidden state does to a difference of logits."""
        return float((self.rows - self.rows.mean(0)).norm(dim=1).max()) or 1.0


def head_of(weight: Any, temperature: Any, softcap: Any, device: torch.device | str | None) -> ScaledHead:
    """The head, checked, where ``device`` says, by default where ``weight`` lives."""
    rows = matrix("weight", weight, device)
    if rows.shape[0] < 2:
        raise ValueError(f"weight must have at least 2 rows, got the shape {tuple(rows.shape)}.")
    t = float(interval("temperature", temperature, 0, open_low=True))
    c = None if softcap is None else float(interval("softcap", softcap, 0, open_low=True))
    return ScaledHead(rows / t, None if c is None else c / t)  # c tanh(x / c) / T = (c / T) tanh((x / T) / (c / T))


@dataclass(frozen=True)
class Reduced:
    """A head in the principal axes of its rows, of which it keeps those that move a logit.

    Attributes:
        head: Rows ``(V, r)``, without a softcap centred, as a shift of all logits changes no probability; their
            products W^T W are diagonal.
        axes: ``(D, r)``: hidden states times this are hidden states of ``head``, up to a part that no logit sees.
        squares: The diagonal, ``(r,)``.
    """

    head: ScaledHead
    axes: Tensor
    squares: Tensor


def reduced(head: ScaledHead) -> Reduced:
    """The head in its principal axes, r <= min(D, V - 1) of them without a softcap."""
    rows = head.rows if head.softcap is not None else head.rows - head.rows.mean(0)
    squares, axes = torch.linalg.eigh(rows.T @ rows)
    kept = squares > _NULL * squares[-1]
    kept[-1] = True  # a head without any effect keeps one axis
    return Reduced(ScaledHead(rows @ axes[:, kept], head.softcap), axes[:, kept], squares[kept])


def matrix(name: str, value: Any, device: torch.device | str | None, width: int | None = None) -> Tensor:
    """A finite float64 tensor of two dimensions, the second of size ``width`` where that is given."""
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(f"{name} must have a floating dtype, got {value.dtype}.")
        if value.layout is not torch.strided:
            raise TypeError(f"{name} must be a dense tensor, got {value.layout}.")
        found = value.detach().to(device=device or value.device, dtype=torch.float64)
        finite = bool(found.isfinite().all())
        if not finite:
            raise ValueError(f"{name} must be finite, got a value that is not.")
    else:
        found = torch.from_numpy(np.ascontiguousarray(interval(name, value))).to(device or "cpu")
    if found.ndim != 2 or 0 in found.shape or width not in (None, found.shape[1]):
        wanted = "(N, D)" if name == "hidden" else "(V, D)"
        with_width = "" if width is None else f" with D = {width}"
        raise ValueError(f"{name} must have shape {wanted}{with_width}, got the shape {tuple(found.shape)}.")
    return found


def smoothings(value: Any) -> np.ndarray:
    """Label smoothings b in [0, 1] of shape () or (B,)."""
    b = interval("label_smoothing", value, 0, 1)
    if b.ndim > 1 or b.size == 0:
        raise ValueError(f"label_smoothing must have shape () or (B,), got the shape {b.shape}.")
    return b


class Distributions:
    """Distributions over tokens, one a context, made a block of contexts at a time.

    Args:
        name: Of the argument, for errors.
        value: ``(N, V)`` probabilities (array or tensor); ``(N,)`` token indices, for one-hot rows; an object with
            ``context``, ``token`` and ``weight`` (pairs; :class:`analysis.teachers.Observations`), whose weights are
            divided by their sum in each context; or a function of a slice of contexts that returns ``(n, V)``.
        n_contexts: N.
        vocab_size: V.
        device: Where the blocks are made.
    """

    def __init__(self, name: str, value: Any, n_contexts: int, vocab_size: int, device: torch.device) -> None:
        self._name, self._shape, self._device = name, (n_contexts, vocab_size), device
        self._make: Callable[[slice], Any]
        if all(hasattr(value, field) for field in ("context", "token", "weight")):
            self._make = self._from_pairs(value)
        elif callable(value):
            self._make = value
        else:
            array = value.detach() if isinstance(value, Tensor) else torch.from_numpy(as_numpy(name, value))
            if array.layout is not torch.strided:
                raise TypeError(f"{name} must be a dense tensor, got {array.layout}.")
            if array.ndim == 1 and not array.is_floating_point() and array.dtype != torch.bool:
                self._make = self._from_tokens(array)
            elif array.ndim == 2 and array.is_floating_point():
                if tuple(array.shape) != self._shape:
                    raise ValueError(f"{name} must have shape {self._shape}, got the shape {tuple(array.shape)}.")
                self._make = lambda part: array[part]
            else:
                raise TypeError(
                    f"{name} must be probabilities (N, V), token indices (N,), pairs with context, token and weight, "
                    f"or a function of a slice, got {array.dtype} of the shape {tuple(array.shape)}."
                )

    def block(self, part: slice) -> Tensor:
        """Distributions of a block of contexts, ``(n, V)`` float64, each row summing to 1."""
        q = self._make(part)
        wanted = (part.stop - part.start, self._shape[1])
        if not isinstance(q, Tensor) or tuple(q.shape) != wanted:
            came = tuple(q.shape) if hasattr(q, "shape") else type(q).__name__
            raise ValueError(f"{self._name} must give a tensor of shape {wanted} for {part}, got {came}.")
        q = q.to(device=self._device, dtype=torch.float64)
        sums = q.sum(-1, keepdim=True)
        if not bool((q >= 0).all()):  # nan is not
            raise ValueError(f"{self._name} must be at least 0 and not NaN, got {float(q.min())}.")
        if bool(((sums - 1).abs() > _TOLERANCE).any()):
            worst = float(sums.flatten()[(sums - 1).abs().argmax()])
            raise ValueError(f"{self._name} must sum to 1 over its last axis, got a sum of {worst:.6g}.")
        return q / sums

    def _from_tokens(self, tokens: Tensor) -> Callable[[slice], Tensor]:
        n, v = self._shape
        if len(tokens) != n:
            raise ValueError(f"{self._name} must hold {n} tokens, one a context, got {len(tokens)}.")
        if int(tokens.min()) < 0 or int(tokens.max()) >= v:
            found = f"{int(tokens.min())} to {int(tokens.max())}"
            raise ValueError(f"{self._name} must be in [0, {v}), got values from {found}.")
        tokens = tokens.long().to(self._device)

        def make(part: slice) -> Tensor:
            index = tokens[part].unsqueeze(-1)
            return torch.zeros(len(index), v, dtype=torch.float64, device=self._device).scatter_(-1, index, 1.0)

        return make

    def _from_pairs(self, pairs: Any) -> Callable[[slice], Tensor]:
        n, v = self._shape
        context, token = (torch.as_tensor(x).long().to(self._device) for x in (pairs.context, pairs.token))
        weight = torch.as_tensor(pairs.weight).double().to(self._device)
        if len(context) and (int(context.min()) < 0 or int(context.max()) >= n):
            found = f"{int(context.min())} to {int(context.max())}"
            raise ValueError(f"{self._name}.context must be in [0, {n}), got values from {found}.")
        if len(token) and (int(token.min()) < 0 or int(token.max()) >= v):
            raise ValueError(f"{self._name}.token must be in [0, {v}), got {int(token.min())} to {int(token.max())}.")
        order = context.argsort(stable=True)
        context, token, weight = context[order], token[order], weight[order]
        total = torch.zeros(n, dtype=torch.float64, device=self._device).index_add_(0, context, weight)
        if not bool((total > 0).all()):
            raise ValueError(f"{self._name} must have a pair in every context, got none in {int((total <= 0).sum())}.")

        def make(part: slice) -> Tensor:
            ends = torch.tensor([part.start, part.stop], device=self._device)
            low, high = torch.searchsorted(context, ends).tolist()
            rows = torch.zeros(part.stop - part.start, v, dtype=torch.float64, device=self._device)
            where = context[low:high]
            return rows.index_put_((where - part.start, token[low:high]), weight[low:high] / total[where], True)

        return make


def blocks(n_contexts: int, vocab_size: int, device: torch.device, entries: int | None) -> Iterator[slice]:
    """Contexts in blocks of at most ``entries`` logits (None: what suits the device), or of one context."""
    if entries is not None and (isinstance(entries, bool) or not isinstance(entries, int) or entries < 1):
        raise ValueError(f"block_entries must be None or a whole number of at least 1, got {entries!r}.")
    size = max(1, (entries or _ENTRIES.get(device.type, _ENTRIES["cpu"])) // vocab_size)
    even = math.ceil(n_contexts / math.ceil(n_contexts / size))  # no small block at the end
    for start in range(0, n_contexts, even):
        yield slice(start, min(start + even, n_contexts))
