"""Claims K1, K2, K8 and K9 on instruction tuning, simulated (S7) and of a real model: the same rules for both."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from .findings import SMALL, Findings, word
from .runs import STOPPED, Runs
from .statistics import Effect

__all__ = ["OTHERS", "RIVALS", "degrades", "diversity", "keeps", "lower_rank_and_error", "regularises"]

RIVALS = ("weight_decay", "dropout")  # other ways to regularise
_SMALL_ACCURACY = 0.02
_FEWEST = 3  # tunings that a correlation is computed of
OTHERS = ("b=0.05", "b=0.2", STOPPED, "b=0 post_hoc", "b=0.1 inverted", *RIVALS)  # what K2 sets beside b = .1


def degrades(runs: Runs, found: Findings) -> str:
    """K1: whether tuning without smoothing raises the error elsewhere, and over its epochs on new examples."""
    first, last = runs.first, runs.last
    found.add("first_epoch", first, "epoch")
    found.add("last_epoch", last, "epoch")
    runs.add(found, "rise_elsewhere", "ECE", runs.between, runs.elsewhere, "error", last, 0)
    runs.add(found, "rise_asked", "ECE", runs.between, runs.asked, "error", last, first)
    runs.add(found, "rise_asked_from_start", "ECE", runs.between, runs.asked, "error", last, 0)
    for name, table in (("elsewhere", runs.elsewhere), ("asked", runs.asked)):
        found.add(f"accuracy_rise_{name}", runs.between(table, "accuracy", last, 0), "probability")
    found.add("nll_rise_elsewhere", runs.between(runs.elsewhere, "nll", last, 0), "nats")
    if runs.options is not None:
        found.add("rise_options", runs.between(runs.options, "error", last, first), "ECE")
    change, growth = found("rise_elsewhere"), found("rise_asked")
    rises = [*found.at("rise_elsewhere"), *found.at("rise_asked")]
    return word(
        supported=change.low > 0 and growth.low > 0 and all(rise.mean > 0 for rise in rises),
        refuted=change.high < 0,
    )


def keeps(runs: Runs, found: Findings, elsewhere: Sequence[Effect] = ()) -> str:
    """K2: whether smoothing lowers the error in every cell, on new examples and elsewhere.

    ``elsewhere`` are gains on other heads, which smoothing must not harm. How much further than b = .1 a rival lowers
    the error, in pairs, is a finding that decides nothing: ``gain_beyond_smoothing``.
    """
    final = runs.final
    distant = runs.at_end(runs.elsewhere)
    runs.add(found, "gain", "ECE", runs.gain, final, "error")
    runs.add(found, "gain_elsewhere", "ECE", runs.gain, distant, "error")
    for method in (name for name in OTHERS if (final["method"] == name).any()):
        found.add("gain_of", runs.gain(final, "error", method), "ECE", method=method)
        found.add("gain_beyond_smoothing", runs.gain(final, "error", method, over="b=0.1"), "ECE", method=method)
        found.add("accuracy_loss_of", runs.gain(final, "accuracy", method), "probability", method=method)
        beside = runs.gain(_where_run(runs, final, method), "error")
        if beside.cells < found("gain").cells:  # a method that was not run in every cell is compared where it was
            found.add("gain_beside", beside, "ECE", method=method)
    found.add("accuracy_loss", runs.gain(final, "accuracy"), "probability")
    for name in ("aurc", "rms"):
        if name in final:
            found.add(f"{name}_gain", runs.gain(final, name), name.upper())
    if runs.options is not None:
        found.add("gain_options", runs.gain(runs.at_end(runs.options), "error"), "ECE")
    every = [*found.at("gain"), *found.at("gain_elsewhere")]
    return word(
        supported=all(gain.low > 0 for gain in every) and all(effect.low > -SMALL for effect in elsewhere),
        refuted=found("gain").high < 0 or all(gain.high < 0 for gain in every),
    )


def _where_run(runs: Runs, table: pd.DataFrame, method: str) -> pd.DataFrame:
    """The lines of the cells and seeds that a method was run in."""
    where = [*runs.cell, *runs.seeds]
    return table.merge(table.loc[table["method"] == method, where].drop_duplicates(), on=where)


def diversity(runs: Runs, found: Findings) -> str:
    """K8: whether smoothing raises the rank of the features in every cell, and whether rank helps without smoothing."""
    last = runs.at_end(runs.asked)
    unsmoothed, along_b = last.loc[last["label_smoothing"] == 0], last.loc[~last["method"].isin(RIVALS)]
    runs.add(found, "rank_rise", "rank", _rise(runs), last, runs.rank, "b=0.1")
    runs.add(found, "smallest_share_rise", "share", _rise(runs), last, "smallest_share", "b=0.1")
    runs.add(found, "correlation", "correlation", _within(runs), unsmoothed)
    runs.add(found, "correlation_along_b", "correlation", _within(runs), along_b)
    for method in (name for name in RIVALS if (last["method"] == name).any()):
        found.add("rank_rise_of", _rise(runs)(last, runs.rank, method), "rank", method=method)
        found.add("error_rise_of", _rise(runs)(last, "error", method), "ECE", method=method)
    ranks, helps = found.at("rank_rise"), found.at("correlation")
    return word(
        supported=all(rank.low > 0 for rank in ranks)
        and all(r.high < 0 for r in helps)
        and not lower_rank_and_error(found),
        refuted=all(rank.high < 0 for rank in ranks) or all(r.low > 0 for r in helps),
    )


def lower_rank_and_error(found: Findings) -> list[str]:
    """Other methods that lower both the rank and the error."""
    ranks, errors = found.at("rank_rise_of"), found.at("error_rise_of")
    return [r.cell["method"] for r, e in zip(ranks, errors, strict=True) if r.high < 0 and e.high < 0]


def _rise(runs: Runs) -> Callable[..., Effect]:
    def rise(table: pd.DataFrame, value: str, method: str) -> Effect:
        gain = runs.gain(table, value, method)
        return Effect(-gain.mean, -gain.high, -gain.low, gain.seeds, gain.cells)

    return rise


def _within(runs: Runs) -> Callable[[pd.DataFrame], Effect]:
    """Mean over pretrained models of the correlation of rank and error over their tunings."""

    def within(table: pd.DataFrame) -> Effect:
        keys, lines = [*runs.cell, "data_seed"], []
        for values, group in table.groupby(keys):
            if len(group) < _FEWEST:
                continue
            r = float(np.corrcoef(group[runs.rank], group["error"])[0, 1])
            lines.append(dict(zip(keys, values, strict=True)) | {"difference": r})  # pyright: ignore
        return runs.mean(pd.DataFrame(lines).dropna())

    return within


def regularises(runs: Runs, found: Findings) -> str:
    """K9: whether the gap of held-out minus training NLL narrows in every cell, and accuracy is kept in every one."""
    asked, train = runs.at_end(runs.asked), runs.at_end(runs.train)
    keys = ["method", *runs.cell, *runs.seeds]
    both = asked[[*keys, "held_out"]].merge(train[[*keys, "nll"]], on=keys)
    both["gap"] = both["held_out"] - both["nll"]
    runs.add(found, "gap_fall", "nats", runs.gain, both, "gap")
    runs.add(found, "accuracy_loss", "probability", runs.gain, asked, "accuracy")
    runs.add(found, "held_out_fall", "nats", runs.gain, asked, "held_out")
    runs.add(found, "aurc_gain", "AURC", runs.gain, asked, "aurc")
    for method in (name for name in RIVALS if (both["method"] == name).any()):
        found.add("gap_fall_of", runs.gain(both, "gap", method), "nats", method=method)
    gaps, losses = found.at("gap_fall"), found.at("accuracy_loss")
    kept = all(max(abs(loss.low), abs(loss.high)) < _SMALL_ACCURACY for loss in losses)
    return word(supported=kept and all(gap.low > 0 for gap in gaps), refuted=all(gap.high < 0 for gap in gaps))
