"""What limits the loss and its rivals: sustained time, power and clock, from the committed table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from table_text import wrapped

__all__ = ["kernel_power"]

_PRODUCT, _ZEROS, _COPY = "input @ weight.T", "input @ zeros.T", "copy of the head"
_THREE = "three products by the library"
_ALWAYS = 0.9  # of the samples: at the power limit for all that a reader cares


def kernel_power(data: Path) -> str:
    """A line a loss and head, after a line for the library's three products; empty without a table."""
    if not (data / "kernel_power.csv").exists():
        return ""
    from kernel.benchmark.power import FLUSHED, PRODUCTS

    rows: Any = pd.read_csv(data / "kernel_power.csv")
    about = json.loads((data / "kernel_power.json").read_text(encoding="utf-8"))
    rows = rows[rows["ms"].notna()]
    config, versions = about["config"], about["versions"]
    rival = f", Liger-Kernel {versions['liger_kernel']}" if versions["liger_kernel"] else ""
    where = (
        f"In loops of {config['seconds']:g} s after {config['warm']:g} s of the same, smoothing 0.1 (one "
        f"{about['device']} with a power limit of {config['limit_watts']:.0f} W and clocks up to {config['most_mhz']} "
        f"MHz, torch {versions['torch']}, Triton {versions['triton']}{rival}, commit "
        f"`{about['commit'][:12]}`): ms a call, that over `{_PRODUCT}` in a loop of its own, power, clock, energy, and "
        "the share of the samples in which the power limit holds the clock down; from "
        "`paper_figures/data/kernel_power.csv`, made by `python -m kernel.benchmark.power`:"
    )
    lines = [wrapped(where), "", "| head | | ms | in products | W | MHz | J | at the limit |", "|---|---|" + "---|" * 6]
    told = []
    for shape, found in rows.groupby("shape", sort=False):
        cases = found.set_index("case")
        unit = cases["ms"][_PRODUCT]
        lines.append(_line(shape, _THREE, _sum(cases.loc[list(PRODUCTS)]), unit))
        losses = cases.drop(index=[*PRODUCTS, *FLUSHED, _ZEROS, _COPY])
        lines += [_line(shape, f"`{name}`", row, unit) for name, row in losses.iterrows()]
        told += ["", wrapped(_products(str(shape), cases))]
    lines += [*told, "", wrapped(_limited(rows, config["limit_watts"]))]
    if after := _settled(data):
        lines += ["", wrapped(after)]
    if doubts := [f"{row.shape}, {row.case} ({row.doubt})" for row in rows[rows["doubt"].notna()].itertuples()]:
        lines += ["", wrapped(f"Not to be trusted: {'; '.join(doubts)}.")]
    return "\n".join(lines)


def _sum(cases: Any) -> dict[str, float]:
    """Of cases one after the other: times and energies add up, the rest are means over time."""
    ms = cases["ms"].sum()
    means = {name: (cases[name] * cases["ms"]).sum() / ms for name in ("watts", "mhz", "at_limit")}
    return {"ms": ms, "joules": cases["joules"].sum(), **means}


def _line(shape: Any, name: str, row: Any, unit: float) -> str:
    cells = [f"{row['ms']:.2f}", f"{row['ms'] / unit:.2f}", f"{row['watts']:.0f}", f"{row['mhz']:.0f}"]
    return f"| {shape} | {name} | {' | '.join(cells)} | {row['joules']:.1f} | {row['at_limit']:.0%} |"


def _products(shape: str, cases: Any) -> str:
    """One product alone, in a loop and of zeros, beside a copy; the others with and without small entries of dz."""
    from kernel.benchmark.power import FLUSHED, PRODUCTS

    product, zeros, copy = (cases.loc[name] for name in (_PRODUCT, _ZEROS, _COPY))
    whole, flushed = (cases["ms"][list(names)].sum() for names in (PRODUCTS[1:], FLUSHED))
    return (
        f"At {shape} `{_PRODUCT}` takes {product.ms_alone:.2f} ms after a pause and {product.ms:.2f} in its loop, at "
        f"{product.watts:.0f} W and {product.mhz:.0f} MHz; of a head of zeros {zeros.ms:.2f} at {zeros.watts:.0f} W "
        f"and {zeros.mhz:.0f} MHz; a copy of the head takes {copy.ms:.2f} ms at {copy.watts:.0f} W and {copy.mhz:.0f} "
        f"MHz. The two products of dz take {whole:.2f} ms, and {flushed:.2f} if its entries below 2^-20 are zeros."
    )


def _limited(rows: Any, limit: float) -> str:
    """At which heads power limits ours, whatever its workspace, and how often it does at the others."""
    shares = rows[rows["case"].str.startswith("triton, ")].groupby("shape", sort=False)["at_limit"].agg(["min", "max"])
    always = [str(shape) for shape in shares.index[shares["min"] >= _ALWAYS]]
    told = []
    if always:
        told.append(
            f"Whatever its workspace, ours is at the limit of {limit:.0f} W in at least {_ALWAYS:.0%} of the samples "
            f"at {'; '.join(always)}: there a call's time is about its energy over the power."
        )
    for shape, low, high in shares[shares["min"] < _ALWAYS].itertuples():
        told.append(f"At {shape} ours is there in {low:.0%} to {high:.0%} of the samples.")
    return " ".join(told)


def _settled(data: Path) -> str:
    """How long after a pause a product takes less than in the end; empty without a table."""
    if not (data / "kernel_settle.csv").exists():
        return ""
    rows: Any = pd.read_csv(data / "kernel_settle.csv")
    about = json.loads((data / "kernel_settle.json").read_text(encoding="utf-8"))
    told = []
    for shape, found in rows.groupby("shape", sort=False):
        shares = [f"{share:.3f} ({low} to {high} ms)" for low, high, share in zip(*_ranges(found), strict=True)]
        told.append(f"at {shape} {', '.join(shares)}")
    return (
        f"After a pause of {about['config']['pause_ms']} ms `{_PRODUCT}` runs again and again. Its time over that of "
        f"the last range, by when a run began: {'; '.join(told)} (`kernel_settle.csv`, commit "
        f"`{about['commit'][:12]}`, made by `python -m kernel.benchmark.settle`). So what the benchmarks time comes "
        f"behind {about['config']['ahead_ms']:.0f} ms of products."
    )


def _ranges(rows: Any) -> tuple[list[int], list[int], list[float]]:
    """Bounds of all ranges but the last, and the time in each over that in the last."""
    but_last = rows.iloc[:-1]
    return but_last["from_ms"].tolist(), but_last["to_ms"].tolist(), but_last["of_last"].tolist()
