"""Random losses for the fused kernels: families that share compiled kernels, and calls of every other kind in each."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from kernel import linear_cross_entropy

__all__ = ["FAMILIES", "FORCED", "Call", "Draw", "Family", "errors", "forced", "replace", "run"]

EPSILON = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-21}


@dataclass(frozen=True)
class Family:
    """What decides which kernels are compiled; ``options`` are those that are not 0."""

    dtype: torch.dtype
    options: tuple[str, ...] = ()
    bias: bool = False
    statistics: bool = False
    aligned: bool = True  # hidden sizes that are multiples of 16
    transposed: bool = False  # head


F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
FAMILIES = [
    Family(BF16),
    Family(BF16, ("label_smoothing",), bias=True),
    Family(BF16, ("softcap",), statistics=True),
    Family(BF16, ("softcap", "label_smoothing"), bias=True),
    Family(BF16, ("z_loss", "label_smoothing")),
    Family(BF16, ("confidence_penalty",), bias=True, statistics=True),
    Family(BF16, ("softcap", "label_smoothing", "z_loss", "confidence_penalty"), bias=True),
    Family(BF16, ("label_smoothing", "softcap"), aligned=False),
    Family(BF16, ("label_smoothing",), transposed=True, statistics=True),
    Family(F16, ("label_smoothing",), bias=True),
    Family(F16, ("softcap", "confidence_penalty")),
    Family(F32, ("label_smoothing",), bias=True, statistics=True),
    Family(F32, ("softcap", "label_smoothing", "z_loss"), aligned=False),
]
# Those of :func:`forced`.
FORCED = [
    Family(BF16, ("label_smoothing",), bias=True),
    Family(BF16, ("z_loss", "confidence_penalty")),  # never in chunks
    Family(BF16, ("confidence_penalty",)),
]


@contextmanager
def forced(rows: int, seed: int, dtype: torch.dtype = BF16) -> Iterator[list[Any]]:
    """Let small losses keep columns in bytes, and be computed in chunks of some times ``rows`` tokens every other time.

    What pays at large sizes alone is planned as if it were free. Yields the plans that are made meanwhile.
    """
    from kernel.fused import arguments, schedule, strip_times
    from kernel.fused.call import LossCall
    from kernel.fused.token_chunks import Chunks

    choose, plans, plan = random.Random(seed), [], LossCall.plan

    def chunks(call: LossCall) -> Chunks:
        n = len(call.head.hidden)
        return Chunks(choose.choice([n, rows * choose.randint(1, 3)]))

    def noted(call: LossCall, **kinds: Any) -> Any:
        plans.append(plan(call, **kinds))
        return plans[-1]

    with (
        patch.object(strip_times, "_BYTES_DECODED", 1e12),
        patch.object(schedule, "LEAST_DEFAULT_BYTES", 0),
        patch.object(arguments, "BYTES_SERVE", frozenset({dtype})),
        patch.multiple(LossCall, chunks=chunks, plan=noted),
    ):
        schedule.schedule.cache_clear()
        yield plans
    schedule.schedule.cache_clear()


@dataclass
class Call:
    """One call and its upstream gradients."""

    input: Tensor
    weight: Tensor
    target: Tensor
    bias: Tensor | None
    options: dict[str, Any]
    workspace_bytes: int
    upstream: list[Tensor | None]  # of loss, log-probability, log-partition, entropy
    grad: bool = True
    said: dict[str, Any] = field(default_factory=dict)


class Draw:
    """Draws calls of a family, on a device, up to a size.

    If ``long``, of many tokens, and with a workspace that holds few of their columns.
    """

    def __init__(
        self, family: Family, seed: int, device: str, most: tuple[int, int, int], tile: int, *, long: bool = False
    ) -> None:
        self.family, self.device, self.most, self.tile, self.long = family, device, most, tile, long
        self.random = random.Random(seed)
        self.generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *size: int) -> Tensor:
        return torch.randn(size, device=self.device, generator=self.generator)

    def sizes(self, first: int) -> tuple[int, int, int]:
        choose, (most_n, most_v, most_d) = self.random, self.most
        # The first two calls have a vocabulary of several tiles and a part of one: what smaller ones need is among its kernels.
        v = most_v if first else choose.choice([2, 3, self.tile - 1, self.tile + 1, choose.randint(2, most_v), most_v])
        v += v % 16 == 0  # never whole tiles, nor a stride of a transposed head that the compiler would make use of
        n = choose.choice([1, 2, 16, 17, choose.randint(1, most_n), choose.randint(1, most_n)])
        if self.long:
            n = choose.randint(most_n // 4, most_n)
            if v <= self.tile and choose.random() < 0.8:  # of which nothing would be kept
                v = choose.randint(2 * self.tile, most_v) | 1
        d = choose.randint(1, most_d // 16) * 16
        if first:  # the tiles of both gradients are transposed at some hidden sizes (:mod:`kernel.fused.launch`)
            d = {1: most_d, 2: min(d, 128)}[first]
        return n, v, d if self.family.aligned else max(3, d - choose.choice([1, 3, 5, 7]))

    def input(self, n: int, d: int) -> tuple[Tensor, str]:
        layout = self.random.choice(["plain", "plain", "transposed", "offset", "wide"])
        values = self.normal(n, d).to(self.family.dtype)
        if layout == "transposed":
            values = values.T.contiguous().T
        elif layout == "offset":
            values = torch.cat([values.new_ones(3), values.reshape(-1)])[3:].view(n, d)
        elif layout == "wide":
            values = torch.cat([values, values], 1)[:, :d]
        return values, layout

    def call(self, first: int = 0) -> Call:
        choose, family = self.random, self.family
        n, v, d = self.sizes(first)
        temperature = choose.choice([1.0, choose.uniform(0.1, 2)])
        values = {
            "label_smoothing": choose.choice([0.1, choose.uniform(0.01, 1)]),
            "softcap": temperature * 10 ** choose.uniform(-0.5, 1.6),
            "z_loss": 10 ** choose.uniform(-4, -1),
            "confidence_penalty": choose.uniform(0.01, 1),
        }
        options: dict[str, Any] = {name: values[name] for name in family.options}
        options |= {"temperature": temperature, "logit_scale": choose.choice([1.0, -0.7, 2.3])}
        options["reduction"] = choose.choice(["none", "mean", "sum"])
        spread = (options["softcap"] * 10 ** choose.uniform(-1, 1)) if "softcap" in options else choose.uniform(0.2, 6)
        input, layout = self.input(n, d)
        weight = (self.normal(v, d) * spread / d**0.5).to(family.dtype)
        bias = (self.normal(v) * choose.choice([0.1, spread])).to(family.dtype) if family.bias else None
        target = torch.randint(v, (n + 1,), device=self.device, generator=self.generator)[1:]  # an odd address
        if choose.random() < 0.5:
            target = (input.float() @ weight.float().T * options["logit_scale"]).argmax(-1)
        ignored = choose.choice([0, 0, 0.3, 0.9, 1.0 if n > 1 else 0])
        drop = torch.rand(n, device=self.device, generator=self.generator) < ignored
        target = torch.where(drop, -100, target)
        if family.transposed:
            weight = weight.T.contiguous().T
        leaves = [None if t is None else t.requires_grad_() for t in (input, weight, bias)]
        if choose.random() < 0.3:
            options["token_weight"] = torch.rand(n, device=self.device, generator=self.generator) + 0.1
        shape = (n,) if options["reduction"] == "none" else ()
        upstream: list[Tensor | None] = [self.normal(*shape), None, None, None]
        if family.statistics and choose.random() < 0.5:
            upstream[1:] = [self.normal(n) if choose.random() < 0.7 else None for _ in range(3)]
        half = choose.randint(0, 3 * n * v)
        workspace_bytes = choose.randint(1, n * v) if self.long else choose.choice([0, 2**30, half])
        said = {"n": n, "v": v, "d": d, "layout": layout, "ignored": ignored, "workspace": workspace_bytes}
        return Call(leaves[0], leaves[1], target, leaves[2], options, workspace_bytes, upstream, said=said)  # pyright: ignore[reportArgumentType]


def run(call: Call, statistics: bool, implementation: str, dtype: torch.dtype | None = None) -> list[Tensor | None]:
    """Loss, statistics and gradients; in another dtype of the same numbers if asked for."""
    leaves = [None if t is None else t.detach() for t in (call.input, call.weight, call.bias)]
    if dtype is not None:
        leaves = [None if t is None else t.to(dtype) for t in leaves]
    leaves = [None if t is None else t.requires_grad_() for t in leaves]
    loss_of: Any = linear_cross_entropy
    found = loss_of(
        leaves[0],
        leaves[1],
        call.target,
        linear_bias=leaves[2],
        implementation=implementation,
        workspace_bytes=call.workspace_bytes,
        return_statistics=statistics,
        **call.options,
    )
    loss, of = found if statistics else (found, None)
    kept = call.target != -100
    # A loss of nothing is nan as a mean; its gradients are 0.
    outputs, upstream = [loss], [call.upstream[0].to(loss.dtype)]  # pyright: ignore[reportOptionalMemberAccess]
    for field_, given in zip(() if of is None else of[:3], call.upstream[1:], strict=False):
        if given is not None and kept.any():
            outputs.append(field_[kept])
            upstream.append(given[kept].to(loss.dtype))
    gradients = torch.autograd.grad(outputs, [t for t in leaves if t is not None], upstream)
    named = iter(gradients)
    fields = [] if of is None else [x.detach() for x in of[:4]]
    return [loss.detach(), *(None if t is None else next(named) for t in leaves), *fields]


def bounds(call: Call) -> tuple[float, list[Tensor | None]]:
    """Magnitude of the logits, and of each gradient if nothing in its sums cancelled."""
    options, kept = call.options, call.target != -100
    hidden, weight = call.input.detach().double()[kept], call.weight.detach().double()
    z = options["logit_scale"] * (hidden @ weight.T)
    if call.bias is not None:
        z = z + call.bias.detach().double()
    slope, largest = torch.ones_like(z), float(z.abs().max()) if z.numel() else 0.0
    if "softcap" in options:
        x = z / options["softcap"]
        slope, z = 1 / torch.cosh(x.clamp(-300, 300)) ** 2, options["softcap"] * torch.tanh(x)
    log_p = torch.log_softmax(z / options["temperature"], -1)
    p, v = log_p.exp(), len(weight)
    lse = torch.logsumexp(z / options["temperature"], -1, keepdim=True).abs()
    entropy = -(p * log_p).sum(-1, keepdim=True)
    token_weight = options.get("token_weight")
    g = torch.ones(len(z), dtype=z.dtype, device=z.device) if token_weight is None else token_weight[kept].double()
    if options["reduction"] == "mean":
        g = g / g.sum()
    upstream = call.upstream[0].double()  # pyright: ignore[reportOptionalMemberAccess]
    g = (g * (upstream[kept] if options["reduction"] == "none" else upstream)).abs()
    others = [torch.zeros_like(g) if t is None else t.double()[kept].abs() for t in call.upstream[1:]]
    penalty = options.get("confidence_penalty", 0.0)
    plain = g * (1 + 2 * options.get("z_loss", 0.0) * lse.squeeze(-1)) + others[0] + others[1]
    bend = g * penalty + others[2]
    size = p * (plain[:, None] + bend[:, None] * (log_p.abs() + entropy))
    size += (g * options.get("label_smoothing", 0.0) / v)[:, None]
    size[torch.arange(len(z)), call.target[kept]] += g + others[0]
    size *= slope / options["temperature"]
    of_input = torch.zeros(call.input.shape, dtype=z.dtype, device=z.device)
    of_input[kept] = abs(options["logit_scale"]) * (size @ weight.abs())
    of_weight = abs(options["logit_scale"]) * (size.T @ hidden.abs())
    return largest / options["temperature"], [of_input, of_weight, None if call.bias is None else size.sum(0)]


def errors(call: Call, family: Family) -> dict[str, float]:
    """Errors of the fused loss in units of what rounding explains: all of them at most 1, or it is wrong."""
    exact = run(call, family.statistics, "reference", torch.float64)
    found = run(call, family.statistics, "triton")
    largest, sizes = bounds(call)
    of_logits = 5e-7 * (1 + largest)  # float32 sums, and the slope of a cap whose argument is large
    names = ["loss", "input", "weight", "bias", "log_probability", "lse", "entropy", "confidence"]
    result: dict[str, float] = {}
    for i, (name, a, b) in enumerate(zip(names, found, exact, strict=False)):
        assert (a is None) == (b is None), name
        if a is None or b is None:
            continue
        a = a.double()
        if not torch.equal(a.isnan(), b.isnan()):
            result[name] = float("inf")
            continue
        difference = (a - b).nan_to_num().norm()
        if 1 <= i <= 3:
            scale = sizes[i - 1].norm()  # pyright: ignore[reportOptionalMemberAccess]
            smallest = 6e-8 if family.dtype == torch.float16 else 1e-38
            allowed = (1.2 * EPSILON[family.dtype] + of_logits) * scale + smallest * b.numel() ** 0.5
        else:
            terms = len(call.target) if call.options["reduction"] == "sum" else 1
            allowed = of_logits * (b.nan_to_num().abs().sum() + max(terms, b.numel() ** 0.5))
        result[name] = float(difference / allowed) if torch.isfinite(difference) else float("inf")
    return result
