"""Problems of which a sparse backward may leave tiles out, in sizes that count the tiles of the device's kernels."""

from __future__ import annotations

import random

import torch

from kernel.fused.launch import launch_table

__all__ = ["COLUMNS", "DEVICE", "ROWS", "drawn", "text_like"]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_TILE = launch_table(torch.device(DEVICE), torch.float32).logit_gradient
ROWS, COLUMNS = _TILE.rows, _TILE.columns


def text_like(
    seed, *, dtype=torch.float32, tokens=4.2, tiles=9, rest=5, d=8, prior=1.5, sure=4.0, flat=None, shuffled=False
):
    """Hidden states and a head with a prior that falls along the vocabulary; tokens differ in how sure they are."""
    generator = torch.Generator().manual_seed(seed)
    launch = launch_table(torch.device(DEVICE), dtype).logit_gradient
    n, v = int(tokens * launch.rows), tiles * launch.columns + rest
    frequency = 1 / torch.arange(1, v + 1) ** prior
    target = torch.multinomial(frequency, n, replacement=True, generator=generator)
    weight = torch.randn(v, d, generator=generator) / d**0.5
    hidden = torch.randn(n, d, generator=generator) / 2
    hidden += sure * torch.rand(n, 1, generator=generator) * weight[target]
    hidden[:, 0], weight[:, 0] = 1, frequency.log()
    if flat is not None:  # the first tile has all targets, and rows that matter
        weight[launch.columns :] *= flat
        target %= launch.columns
    if shuffled:
        order = torch.randperm(v, generator=generator)
        weight, target = weight[order], order.argsort()[target]
    return hidden.to(DEVICE, dtype), weight.to(DEVICE, dtype), target.to(DEVICE)


def drawn(seed, dtype=torch.float32):
    """A random problem, sorted by frequency or shuffled, options of its loss and a tolerance."""
    choose = random.Random(seed)
    shape = {
        "tokens": choose.uniform(4, 4.5) if DEVICE == "cpu" else choose.uniform(4, 20),
        "tiles": 8 if DEVICE == "cpu" else choose.randint(8, 40),
        "rest": 2 * choose.randint(0, 10) + 1,
        "d": 8 if DEVICE == "cpu" else 64,
        "prior": choose.uniform(1.2, 2.2),
        "sure": choose.choice([choose.uniform(2, 8), 10 ** choose.uniform(-1, 2)]),
        "shuffled": choose.random() < 0.4,
    }
    options = {
        "label_smoothing": choose.choice([0.0, 0.1, choose.random()]),
        "temperature": choose.choice([1.0, choose.uniform(0.5, 2)]),
        "reduction": choose.choice(["mean", "sum"]),
        "workspace_bytes": choose.choice([0, 2**20, 2**28]),
    }
    hidden, weight, target = text_like(seed, dtype=dtype, **shape)
    target[
        torch.rand(len(target), generator=torch.Generator().manual_seed(seed)).to(DEVICE) < choose.choice([0, 0.3])
    ] = -100
    return (hidden, weight, target), options, choose.choice([0.05, 0.1, 0.3])
