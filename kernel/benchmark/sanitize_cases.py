"""Small calls that launch every kernel of the loss and of the statistics, for :mod:`.sanitize`.

Sizes count the tiles of the device's kernels, with a part of one more: an access beyond the end of a tensor is one of a
last tile. What pays at large sizes alone (columns in bytes, chunks of tokens) is forced. One more case is wrong on
purpose, so that a tool that sees nothing is noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import GradientTolerance, head_statistics, linear_cross_entropy
from ..fused import arguments, schedule, strip_times
from ..fused.call import LossCall
from ..fused.launch import launch_table
from ..fused.token_chunks import Chunks
from ..options import LossOptions
from .problems import Shape, make_data

__all__ = ["CASES", "PLANTED"]

PLANTED = "planted"
_ALL = 2**30
_OPTIONS: dict[str, Any] = {"softcap": 2.0, "temperature": 0.5, "logit_scale": 1.5, "z_loss": 1e-3}
_OPTIONS |= {"confidence_penalty": 0.3, "label_smoothing": 0.2}


def _tensors(
    device: torch.device, dtype: torch.dtype | None = None, *, tokens: float = 2.2, tiles: int = 3, beyond: int = 16
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, head, targets and bias, made on the CPU: 2.2 tiles of tokens, 3 of the vocabulary and 5 rows.

    The hidden size is ``beyond`` more than one step of a product takes.
    """
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)  # the interpreter has no bfloat16
    launch = launch_table(device, dtype).logit_gradient
    n, v = int(tokens * launch.rows), tiles * launch.columns + 5
    data = make_data(Shape("", n, v, launch.depth + beyond), torch.float32, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    target = torch.where(torch.rand(n, generator=generator) < 0.3, -100, data.target)
    bias = torch.randn(v, generator=generator)
    leaves = (t.detach().to(device, dtype).requires_grad_() for t in (data.hidden, data.weight, bias))
    hidden, weight, bias = leaves
    return hidden, weight, target.to(device), bias


def _step(hidden: Tensor, weight: Tensor, target: Tensor, upstream: float = 1.0, **options: Any) -> None:
    """Loss and gradients, which have to be finite: new tensors may have been filled with NaN."""
    leaves = [t for t in (hidden, weight, options.get("linear_bias")) if t is not None]
    loss: Any = linear_cross_entropy(hidden, weight, target, implementation="triton", **options)
    if options.get("return_statistics"):
        loss, of = loss
        kept = target != -100
        loss = loss + of.log_probability[kept].mean() - 0.1 * of.lse[kept].mean()
        if options.get("z_loss"):
            loss = loss + of.entropy[kept].mean()
    gradients = torch.autograd.grad((loss * upstream).sum(), leaves)
    if not all(bool(t.isfinite().all()) for t in (loss, *gradients)):
        raise ValueError("the loss or a gradient is not finite.")


def _forward(device: torch.device) -> None:
    hidden, weight, target, bias = _tensors(device)
    with torch.no_grad():
        for statistics in (False, True):
            options: Any = {"label_smoothing": 0.1, "return_statistics": statistics, "implementation": "triton"}
            linear_cross_entropy(hidden, weight, target, linear_bias=bias, **options)


def _recomputed(device: torch.device) -> None:
    hidden, weight, target, bias = _tensors(device)
    _step(hidden, weight, target, linear_bias=bias, label_smoothing=0.1, reduction="none", workspace_bytes=0)
    few = (t.detach()[:14].requires_grad_() for t in (weight[:, :8], bias))  # whose sums over tokens are cut
    weight, bias = few
    repeats = 280 // len(target) + 1
    hidden, target = hidden.detach()[:, :8].repeat(repeats, 1).requires_grad_(), target.repeat(repeats)
    _step(hidden, weight, target.clamp(max=13), linear_bias=bias, label_smoothing=0.1, workspace_bytes=0)


def _kept(device: torch.device) -> None:
    hidden, weight, target, bias = _tensors(device)
    given = {"linear_bias": bias, "label_smoothing": 0.1, "workspace_bytes": _ALL}
    _step(hidden, weight, target, token_weight=torch.rand(len(target)).to(device), **given)


def _softcap(device: torch.device) -> None:
    for workspace_bytes in (0, _ALL):
        _step(*_tensors(device)[:3], return_statistics=True, workspace_bytes=workspace_bytes, **_OPTIONS)


def _codes(device: torch.device) -> None:
    _step(*_tensors(device)[:3], z_loss=1e-3, workspace_bytes=_ALL)


@contextmanager
def _bytes_pay() -> Iterator[None]:
    """Keep columns in bytes, which in the interpreter serve what it multiplies, at any size and budget."""
    with (
        patch.multiple(strip_times, _STRIP=0.0, STRIP_DECODED=0.0, _LAUNCH=0.0, _RUN=0.0, _BYTES_DECODED=1e12),
        patch.object(schedule, "LEAST_DEFAULT_BYTES", 0),
        patch.object(arguments, "BYTES_SERVE", frozenset({torch.bfloat16, torch.float32})),
    ):
        schedule.schedule.cache_clear()
        yield
    schedule.schedule.cache_clear()


def _bytes(device: torch.device) -> None:
    hidden, weight, target, bias = _tensors(device)
    scalars = arguments.Scalars.of(LossOptions(label_smoothing=0.1))
    head = arguments.Head(hidden, weight, bias, target)
    most = len(target) * len(weight) * weight.element_size()
    kinds = set()
    with _bytes_pay():
        for workspace_bytes in range(most // 16, most, most // 16):
            plan = LossCall(head, scalars, workspace_bytes).plan(keep=True, consumed=True, weight_gradient=True)
            kind = tuple((run.in_gradient, run.in_bytes) for run in plan.kept)
            if any(in_bytes for _, in_bytes in kind) and kind not in kinds:
                kinds.add(kind)
                given = {"linear_bias": bias, "label_smoothing": 0.1, "workspace_bytes": workspace_bytes}
                _step(hidden, weight, target, **given)
    if not kinds:
        raise ValueError("no budget has columns in bytes.")


def _chunks(device: torch.device) -> None:
    # In half precision, whose sums are float16: of the interpreter float16, which a user's loss is not cut in.
    half = torch.bfloat16 if device.type == "cuda" else torch.float16
    hidden, weight, target, bias = _tensors(device, half)
    rows = launch_table(device, half).forward.rows
    cut = {"chunks": lambda self: Chunks(rows), "serves_chunks": lambda *args: True}
    with patch.multiple(LossCall, **cut):
        given = {"linear_bias": bias, "label_smoothing": 0.1, "workspace_bytes": len(target) * len(weight)}
        _step(hidden, weight, target, upstream=0.3, **given)


def _sparse(device: torch.device) -> None:
    """Of tiles whose rows are small and that no token names, all but the first two."""
    hidden, weight, target, _ = _tensors(device, tokens=4.2, tiles=9)
    named = 2 * launch_table(device, hidden.dtype).logit_gradient.columns
    small = torch.arange(len(weight), device=device).unsqueeze(1) >= named
    weight = torch.where(small, 0.1 * weight.detach(), weight.detach()).requires_grad_()
    told = GradientTolerance(0.3)
    options: Any = {"label_smoothing": 0.1, "gradient_tolerance": told, "workspace_bytes": 2**18}
    with patch("kernel.fused.call.most_active", lambda *args, **kwargs: 0.5):  # however small
        _step(hidden, weight, torch.where(target < 0, target, target % named), **options)
    if not 0 < told.input_active < 0.3:
        raise ValueError(f"some tiles must be left out, and some not, got {told}.")


def _statistics(device: torch.device) -> None:
    hidden, weight, target, bias = _tensors(device)
    for bias_, temperatures in ((None, (1.0,)), (bias, (0.5, 1.0, 2.0))):
        head_statistics(hidden, weight, target, linear_bias=bias_, temperatures=temperatures, implementation="triton")


def _odd(device: torch.device) -> None:
    """Rows that are not aligned, which take ordinary loads; float16; a transposed head; one token, two classes."""
    hidden, weight, target, bias = _tensors(device, torch.float16, beyond=11)
    _step(hidden, weight, target, linear_bias=bias, label_smoothing=0.1, workspace_bytes=_ALL)
    transposed = weight.detach().T.contiguous().T.requires_grad_()
    _step(hidden, transposed, target, linear_bias=bias, label_smoothing=0.1)
    few = (t.detach()[:k].requires_grad_() for t, k in ((hidden, 1), (weight, 2), (bias, 2)))
    hidden, weight, bias = few
    _step(hidden, weight, target.new_ones(1), linear_bias=bias, label_smoothing=0.1)


@triton.jit
def _planted_kernel(source, destination, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(destination + at, tl.load(source + at, mask=at <= n), mask=at <= n)  # one too many


def _planted(device: torch.device) -> None:
    """Reads what was never written, and one entry beyond the end; writes there."""
    source, destination = (torch.empty(1000, device=device) for _ in range(2))
    _planted_kernel[(1,)](source, destination, 1000, BLOCK=1024)  # pyright: ignore[reportArgumentType]


CASES: dict[str, Callable[[torch.device], None]] = {
    "forward": _forward,
    "recomputed": _recomputed,
    "kept": _kept,
    "softcap": _softcap,
    "codes": _codes,
    "bytes": _bytes,
    "chunks": _chunks,
    "sparse": _sparse,
    "statistics": _statistics,
    "odd sizes": _odd,
    PLANTED: _planted,
}
