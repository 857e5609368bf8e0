"""Shared by the tests: problems to lose on, gradients, the error budget that float64 and eager code set, faults."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from kernel import linear_cross_entropy

# Every option alone, and all of them.
ALL_OPTIONS = {"softcap": 2.0, "temperature": 0.5, "logit_scale": 1.5, "z_loss": 1e-3, "label_smoothing": 0.2}
ALL_OPTIONS |= {"confidence_penalty": 0.3}
OPTIONS = [
    {},
    {"label_smoothing": 0.1},
    {"label_smoothing": 1.0},
    {"softcap": 3.0},
    {"temperature": 0.25},
    {"logit_scale": -0.5},
    {"z_loss": 1e-2},
    {"confidence_penalty": 0.2},
    ALL_OPTIONS,
]
NAMES = ("loss", "input", "linear_weight", "linear_bias")


class Problem(NamedTuple):
    """Arguments of a loss, in the order of its signature; the last two are keywords there."""

    input: Tensor
    linear_weight: Tensor
    target: Tensor
    linear_bias: Tensor | None
    token_weight: Tensor | None

    def to(self, dtype: torch.dtype, device: str | None = None) -> Problem:
        """The same numbers in another dtype, as fresh leaves, and on another device if one is given."""
        moved = [None if t is None else t.detach().to(device) for t in self]
        leaves = [None if t is None else t.to(dtype).requires_grad_() for t in (*moved[:2], moved[3])]
        return Problem(leaves[0], leaves[1], moved[2], leaves[2], moved[4])


def problem(
    n: int,
    v: int,
    d: int,
    *,
    seed: int = 0,
    bias: bool = False,
    weighted: bool = False,
    ignored: float = 0.0,
    dtype: torch.dtype = torch.float64,
    scale: float = 2.0,
) -> Problem:
    """Logits with standard deviation ``scale`` whose targets are likely half of the time; values exact in float16."""
    generator = torch.Generator().manual_seed(seed)
    input = (torch.randn(n, d, generator=generator)).half().double()
    weight = (torch.randn(v, d, generator=generator) * scale / d**0.5).half().double()
    target = torch.randint(v, (n,), generator=generator)
    likely = torch.rand(n, generator=generator) < 0.5
    target = torch.where(likely, (input @ weight.T).argmax(-1), target)
    target[torch.rand(n, generator=generator) < ignored] = -100
    linear_bias = torch.randn(v, generator=generator).half().double() if bias else None
    token_weight = torch.rand(n, generator=generator) + 0.1 if weighted else None
    return Problem(input, weight, target, linear_bias, token_weight).to(dtype)


@contextmanager
def free_launches() -> Iterator[None]:
    """Let the fused kernels plan as if launches cost nothing: what pays at large sizes alone is then tried at small ones."""
    from kernel.fused import planner, schedule, strip_times

    free = ("_STRIP", "STRIP_DECODED", "_LAUNCH", "_RUN", "_EPILOGUE_INPUT", "KEPT", "ENCODED")
    ranks = patch.object(planner, "MEMORY", 0.0), patch.object(schedule, "_MEMORY_IN_BYTES", 0.0)
    with patch.multiple(strip_times, **dict.fromkeys(free, 0.0)), ranks[0], ranks[1]:
        schedule.schedule.cache_clear()
        yield
    schedule.schedule.cache_clear()


class Peak(TorchDispatchMode):
    """The most bytes of memory made inside that were in use at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage()._cdata for x in args if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        self.alive = {key: kept for key, kept in self.alive.items() if not kept[0].expired()}
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given:
                    self.alive.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.bytes = max(self.bytes, sum(size for _, size in self.alive.values()))
        return out


def ours(*args: Any, **options: Any) -> Any:
    """The package's loss by the fused kernels."""
    return linear_cross_entropy(*args, implementation="triton", **options)


def call(args: Problem, **options: Any) -> Any:
    """The package's loss of a problem."""
    bias, weight = args.linear_bias, args.token_weight
    return linear_cross_entropy(*args[:3], linear_bias=bias, token_weight=weight, **options)


def value_and_gradients(loss: Callable[..., Tensor], args: Problem, **options: Any) -> list[Tensor | None]:
    """Loss and the gradients of input, weight and bias in float64; per-token losses get uneven upstream gradients."""
    args = args.to(args.input.dtype)
    value = loss(*args[:3], linear_bias=args.linear_bias, token_weight=args.token_weight, **options)
    upstream = torch.linspace(0.5, 2.0, max(value.numel(), 1), dtype=value.dtype, device=value.device)
    upstream = upstream[: value.numel()].reshape(value.shape)
    value.backward(upstream)
    leaves = (args.input, args.linear_weight, args.linear_bias)
    return [value.detach().double(), *(None if t is None or t.grad is None else t.grad.double() for t in leaves)]


def eager(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    token_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    logit_scale: float = 1.0,
    z_loss: float = 0.0,
    confidence_penalty: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """What a user writes with torch's own functions, in the dtype of the inputs: independent of the package."""
    z = logit_scale * F.linear(input, linear_weight)
    if linear_bias is not None:
        z = z + linear_bias
    if softcap is not None:
        z = torch.tanh(z / softcap) * softcap
    z = z / temperature
    loss = F.cross_entropy(z, target, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="none")
    kept = (target != ignore_index).to(loss.dtype)
    loss = loss + z_loss * kept * torch.logsumexp(z, -1) ** 2
    if confidence_penalty:
        loss = loss - confidence_penalty * kept * torch.distributions.Categorical(logits=z).entropy()
    weight = kept if token_weight is None else kept * token_weight.to(loss.dtype)
    if reduction == "none":
        return loss * weight
    total = (loss * weight).sum()
    return total if reduction == "sum" else total / weight.sum()


def capped_gradients(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor,
    *,
    softcap: float,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the mean in float64, with the slope from cosh: eager code loses half of its digits at saturation."""
    hidden, weight, bias = (t.detach().double() for t in (input, linear_weight, linear_bias))
    x = (hidden @ weight.T + bias) / softcap
    q = F.one_hot(target, len(weight)) * (1 - label_smoothing) + label_smoothing / len(weight)
    p = torch.softmax(softcap * torch.tanh(x) / temperature, -1)
    dz = (p - q) / torch.cosh(x) ** 2 / temperature / len(hidden)
    return dz @ weight, dz.T @ hidden, dz.sum(0)


def relative_error(got: Tensor, exact: Tensor) -> float:
    """Norm-wise; absolute where the exact value is zero."""
    norm = exact.norm().item()
    return (got - exact).norm().item() / (norm if norm > 0 else 1.0)


def assert_within_budget(
    ours: list[Tensor | None],
    eager: list[Tensor | None],
    exact: list[Tensor | None],
    *,
    floor: float,
    factor: float = 2.0,
) -> None:
    """Each of loss and gradients within max(floor, factor x eager's own error) of float64, norm-wise."""
    compared = 0
    for name, a, b, c in zip(NAMES, ours, eager, exact, strict=True):
        if c is None:
            assert a is None, f"{name}: a gradient where the definition has none"
            continue
        assert a is not None, f"{name}: gradient missing"
        assert b is not None, f"{name}: gradient of eager missing"
        assert a.shape == c.shape
        budget = max(floor, factor * relative_error(b, c))
        error = relative_error(a, c)
        assert error <= budget, f"{name}: error {error:.2e} above the budget {budget:.2e}"
        compared += 1
    assert compared >= 2, "nothing was compared"


def refused(module: Any, arguments: Sequence[object], capsys: Any) -> str:
    """The last line of a call that is refused, by argparse or by the command."""
    try:
        status = module.main(list(map(str, arguments)))
    except SystemExit as end:
        status = end.code
    assert status == 2
    *usage, line = capsys.readouterr().err.splitlines()
    assert not usage or usage[0].startswith("usage: ")
    return line.partition("error: ")[2]


def write_csv(path: Path, rows: Sequence[dict[str, str]], columns: Sequence[str] | None = None) -> Path:
    """Write a table; without ``columns`` those of its first row."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Files of this process grow to so many bytes and no further, as on a disk that is full."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
