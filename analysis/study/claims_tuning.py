"""Claims K1, K2, K8 and K9 on instruction tuning, and K7 on the loss's speed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from .judging import Tables, Verdict, difference, word
from .statistics import Effect, mean_effect

__all__ = ["degrades", "diversity", "free_of_cost", "keeps", "regularises"]

_CELL = ["vocab_size", "hidden_size"]
_SEEDS = ["data_seed", "model_seed"]
_SMALL_ACCURACY = 0.02


def _as_trained(tables: Tables, distribution: str) -> pd.DataFrame:
    table = tables("S7")
    return table.loc[(table["distribution"] == distribution) & (table["reading"] == "as_trained")]


def _last(table: pd.DataFrame) -> pd.DataFrame:
    return table.loc[table["epoch"] == table["epoch"].max()]


def _between_epochs(table: pd.DataFrame, value: str, first: int, second: int) -> Effect:
    rows = table.loc[table["method"] == "b=0"]
    return mean_effect(
        difference(rows, value, column="epoch", first=first, second=second, on=[*_CELL, *_SEEDS]),
        "difference",
        cell=_CELL,
    )


def _plain_minus(table: pd.DataFrame, value: str, method: str) -> Effect:
    pairs = difference(table, value, column="method", first="b=0", second=method, on=[*_CELL, *_SEEDS])
    return mean_effect(pairs, "difference", cell=_CELL)


def degrades(tables: Tables) -> Verdict:
    """K1: instruction tuning degrades calibration."""
    broad, shifted = _as_trained(tables, "broad"), _as_trained(tables, "shifted")
    last = int(broad["epoch"].max())
    change = _between_epochs(broad, "true_ece", last, 0)
    growth = _between_epochs(shifted, "true_ece", last, 4)
    from_start = _between_epochs(shifted, "true_ece", last, 0)
    accuracy = _between_epochs(broad, "accuracy", last, 0)
    verdict = word(supported=change.low > 0 and growth.low > 0, refuted=change.high < 0)
    return Verdict(
        claim="K1",
        verdict=verdict,
        effect=f"true ECE on the broad distribution, epoch {last} minus before tuning",
        size=change,
        condition=f"no smoothing; on new shifted contexts the true ECE grows by {growth} from epoch 4 to {last}",
        counter_evidence=f"on the shifted distribution tuning changes the true ECE of the pretrained model by "
        f"{from_start}; on the broad one accuracy changes by {accuracy}",
        tables=("S7",),
    )


def _early_stopped(shifted: pd.DataFrame) -> pd.DataFrame:
    """Rows of plain runs at the epoch with the least validation NLL, under the method name ``early stopping``."""
    plain = shifted.loc[(shifted["method"] == "b=0") & (shifted["epoch"] > 0)]
    best = plain.groupby([*_CELL, *_SEEDS])["validation_nll"].idxmin()
    return plain.loc[best].assign(method="early stopping")


def keeps(tables: Tables) -> Verdict:
    """K2: smoothing keeps calibration during tuning."""
    table = tables("S7")
    shifted, broad = _as_trained(tables, "shifted"), _last(_as_trained(tables, "broad"))
    rivals = _last(table.loc[(table["distribution"] == "shifted") & (table["reading"] != "as_trained")])
    rivals = rivals.assign(method=rivals["method"] + " " + rivals["reading"])
    final = pd.concat([_last(shifted), _early_stopped(shifted), rivals])
    gain, on_broad = _plain_minus(final, "true_ece", "b=0.1"), _plain_minus(broad, "true_ece", "b=0.1")
    names = ("b=0.05", "b=0.2", "early stopping", "b=0 post_hoc", "b=0.1 inverted", "weight_decay", "dropout")
    others = {name: _plain_minus(final, "true_ece", name) for name in names if (final["method"] == name).any()}
    better = [name for name, effect in others.items() if effect.mean > gain.mean]
    selective = _plain_minus(final, "aurc", "b=0.1")
    verdict = word(supported=gain.low > 0 and on_broad.low > 0, refuted=gain.high < 0)
    return Verdict(
        claim="K2",
        verdict=verdict,
        effect="true ECE on new shifted contexts at the last epoch, b = 0 minus b = .1",
        size=gain,
        condition=f"on the broad distribution {on_broad}. Gains of others over b = 0: "
        + ", ".join(f"{name} {effect}" for name, effect in others.items()),
        counter_evidence=f"lowers the true ECE further: {', '.join(better) or 'none'}; change in AURC {selective} "
        "(positive: better)" + _harm_without_overfitting(tables),
        tables=("S7", "S6"),
    )


def _harm_without_overfitting(tables: Tables) -> str:
    """What smoothing does to heads trained on the conditionals themselves (D2)."""
    table = tables("S6")
    keys = ["vocab_size", "hidden_size", "logit_std"]
    pairs = difference(table, "true_ece", column="label_smoothing", first=0.0, second=0.1, on=[*keys, *_SEEDS])
    harm = mean_effect(pairs, "difference", cell=keys)
    balance = (table["entropy"] - table["cross_entropy"]).loc[table["label_smoothing"] == 0].abs().max()
    return f"; on the population, where |H - CE| of plain heads is at most {balance:.4f}, its gain is {harm}"


def diversity(tables: Tables) -> Verdict:
    """K8: smoothing makes features more diverse, and that helps calibration."""
    shifted = _last(_as_trained(tables, "shifted"))
    rank = _plain_minus(shifted, "effective_rank", "b=0.1")
    more = Effect(-rank.mean, -rank.high, -rank.low, rank.seeds, rank.cells)
    tail = _plain_minus(shifted, "smallest_share", "b=0.1")
    smoothed = shifted.loc[shifted["method"].str.startswith("b=")]
    along_b = _within(smoothed, "effective_rank", "true_ece")
    every = _within(shifted, "effective_rank", "true_ece")
    others = _within(shifted.loc[~shifted["method"].str.startswith("b=0.")], "effective_rank", "true_ece")
    verdict = word(supported=more.low > 0 and others.high < 0 and every.high < 0, refuted=more.high < 0)
    return Verdict(
        claim="K8",
        verdict=verdict,
        effect="effective rank of the features on new shifted contexts at the last epoch, b = .1 minus b = 0",
        size=more,
        condition=f"what is asked: that features become more diverse, or that this helps. Correlation of rank and true "
        f"ECE within one pretrained model: {along_b} along b, which is no evidence, as b moves both; {every} over all "
        "methods",
        counter_evidence=f"over methods without smoothing (plain, weight decay, dropout) the correlation is {others}; "
        f"the smaller half of the spectrum gains {Effect(-tail.mean, -tail.high, -tail.low, tail.seeds, tail.cells)} "
        "of the variance",
        tables=("S7",),
    )


def _within(table: pd.DataFrame, x: str, y: str) -> Effect:
    """Mean over pretrained models of the correlation over their tunings."""
    lines = []
    for keys, group in table.groupby([*_CELL, "data_seed"]):
        values: Sequence[object] = keys if isinstance(keys, tuple) else (keys,)
        r = float(np.corrcoef(group[x], group[y])[0, 1])
        lines.append(dict(zip([*_CELL, "data_seed"], values, strict=True)) | {"correlation": r})
    return mean_effect(pd.DataFrame(lines).dropna(), "correlation", cell=_CELL)


def regularises(tables: Tables) -> Verdict:
    """K9: accuracy kept, gap between training and held-out NLL narrower."""
    shifted, train = _last(_as_trained(tables, "shifted")), _last(_as_trained(tables, "train"))
    accuracy = _plain_minus(shifted, "accuracy", "b=0.1")
    keys = ["method", *_CELL, *_SEEDS]
    both = shifted[[*keys, "true_nll"]].merge(train[[*keys, "nll"]], on=keys)
    both["gap"] = both["true_nll"] - both["nll"]  # held-out minus training, in nats
    gap = _plain_minus(both, "gap", "b=0.1")
    held_out = _plain_minus(shifted, "true_nll", "b=0.1")
    kept = max(abs(accuracy.low), abs(accuracy.high)) < _SMALL_ACCURACY
    verdict = word(supported=gap.low > 0 and kept, refuted=gap.high < 0)
    rivals = {name: _plain_minus(both, "gap", name) for name in ("weight_decay", "dropout")}
    return Verdict(
        claim="K9",
        verdict=verdict,
        effect="gap of held-out minus training NLL (nats) at the last epoch, b = 0 minus b = .1",
        size=gap,
        condition=f"accuracy, b = 0 minus b = .1: {accuracy}; few examples, each seen once an epoch",
        counter_evidence=f"held-out NLL itself falls by {held_out}; the gap narrows by {rivals['dropout']} with "
        f"dropout and {rivals['weight_decay']} with weight decay",
        tables=("S7",),
    )


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
    mean, low, high = float(ratio.mean()), float(ratio.min()), float(ratio.max())
    return Verdict(
        claim="K7",
        verdict=word(supported=mean < 1.05 and memory < 1.05 and fastest.max() < 1, refuted=mean > 1.2 or memory > 1.2),
        effect="time of loss and gradients of our kernel, with smoothing over without",
        size=Effect(mean, low, high, 0, len(ratio)),
        condition=f"the shape of the head and the rival: the interval is the range over shapes in one run, without "
        f"softcap; peak memory at most {memory:.2f} times",
        counter_evidence=f"time over that of the fastest rival: {fastest.min():.2f} to {fastest.max():.2f} over "
        f"shapes; rivals that ran with smoothing too: {', '.join(rivals)}",
        tables=("kernel",),
    )
