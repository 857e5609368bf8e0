"""Claim K7 on the loss: what smoothing costs in time and memory, from the benchmark of the kernels."""

from __future__ import annotations

from .judging import Tables, Verdict, word
from .statistics import Effect

__all__ = ["free_of_cost"]


def free_of_cost(tables: Tables) -> Verdict:
    """K7: the smoothed loss costs nothing in memory, speed or accuracy, which efficient losses could not do."""
    table = tables("kernel")
    timed = table.loc[(table["mode"] == "loss and gradients") & (table["ignored"] == 0) & table["softcap"].isna()]
    timed = timed.loc[timed["ms"].notna()]
    on = ["shape", "dtype", "implementation"]
    pairs = timed.loc[timed["label_smoothing"] > 0].merge(
        timed.loc[timed["label_smoothing"] == 0], on=on, suffixes=("_smoothed", "_plain")
    )
    ours = pairs.loc[pairs["implementation"].str.startswith("triton")]
    if ours.empty:
        raise LookupError("kernel.csv has no timed pair of our implementation with and without smoothing")
    ratio = (ours["ms_smoothed"] / ours["ms_plain"]).to_numpy()
    memory = float((ours["peak_mib_smoothed"] / ours["peak_mib_plain"]).max())
    others = timed.loc[
        (timed["label_smoothing"] > 0) & ~timed["implementation"].str.startswith(("triton", "matmul", "three products"))
    ]
    mine = timed.loc[(timed["label_smoothing"] > 0) & timed["implementation"].str.startswith("triton")]
    fastest = mine.groupby("shape")["ms"].min() / others.groupby("shape")["ms"].min()
    rivals = sorted({name for name in others["implementation"] if not name.startswith("torch")})
    efficient = [name for name in rivals if not name.startswith(("eager", "chunked"))]
    mean, low, high = float(ratio.mean()), float(ratio.min()), float(ratio.max())
    return Verdict(
        claim="K7",
        # the claim has two halves: that it costs nothing, and that no other efficient loss could smooth
        verdict=word(
            supported=mean < 1.05 and memory < 1.05 and fastest.max() < 1 and not efficient,
            refuted=mean > 1.2 or memory > 1.2,
        ),
        effect="time of loss and gradients of our kernel, with smoothing over without",
        size=Effect(mean, low, high, 0, len(ratio)),
        condition=f"the rival: {' and '.join(efficient) or 'no other efficient loss'} ran with smoothing too. The "
        f"interval is the range over shapes of the head in one run, without softcap; peak memory at most {memory:.2f} "
        "times",
        counter_evidence=f"time over that of the fastest rival: {fastest.min():.2f} to {fastest.max():.2f} over "
        f"shapes; all that ran with smoothing: {', '.join(rivals)}",
        tables=("kernel",),
    )
