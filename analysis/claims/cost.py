"""Claim K7 on the loss: what smoothing costs in time and memory, from the benchmark of the kernels."""

from __future__ import annotations

from .findings import Findings, word
from .sources import Tables
from .statistics import Effect

__all__ = ["free_of_cost"]

_OURS = "triton"
_FLOORS = ("matmul", "three products")  # parts of a loss, no implementations of one
_INEFFICIENT = ("eager", "chunked", "torch")  # these hold the logits, or take far longer


def free_of_cost(tables: Tables, found: Findings) -> str:
    """K7: whether smoothing costs time or memory, and whether no other efficient loss could smooth."""
    table = tables("kernel")
    timed = table.loc[(table["mode"] == "loss and gradients") & (table["ignored"] == 0) & table["softcap"].isna()]
    timed = timed.loc[timed["ms"].notna()]
    smoothed, plain = timed.loc[timed["label_smoothing"] > 0], timed.loc[timed["label_smoothing"] == 0]
    pairs = smoothed.merge(plain, on=["shape", "dtype", "implementation"], suffixes=("_smoothed", "_plain"))
    ours = pairs.loc[pairs["implementation"].str.startswith(_OURS)]
    if ours.empty:
        raise LookupError("kernel.csv has no timed pair of our implementation with and without smoothing")
    ratio = (ours["ms_smoothed"] / ours["ms_plain"]).to_numpy()
    time = Effect(float(ratio.mean()), float(ratio.min()), float(ratio.max()), 0, len(ratio))  # a range over shapes
    found.add("time_ratio", time, "ratio")
    memory = float((ours["peak_mib_smoothed"] / ours["peak_mib_plain"]).max())
    found.add("memory_ratio", memory, "ratio")
    others = smoothed.loc[~smoothed["implementation"].str.startswith((_OURS, *_FLOORS))]
    mine = smoothed.loc[smoothed["implementation"].str.startswith(_OURS)]
    fastest = mine.groupby("shape")["ms"].min() / others.groupby("shape")["ms"].min()
    for shape, value in fastest.items():
        found.add("time_over_fastest_rival", value, "ratio", shape=shape)
    for name, rows in others.groupby(others["implementation"].str.partition(", ")[0]):  # in whichever of its settings
        found.add("shapes_smoothed", rows["shape"].nunique(), "count", implementation=name)
    return word(
        supported=time.mean < 1.05 and memory < 1.05 and fastest.max() < 1 and not efficient_rivals(found),
        refuted=time.mean > 1.2 or memory > 1.2,
    )


def efficient_rivals(found: Findings) -> list[str]:
    """Other efficient losses that ran with smoothing."""
    names = [str(made.cell["implementation"]) for made in found.at("shapes_smoothed")]
    return [name for name in names if not name.startswith(_INEFFICIENT)]
