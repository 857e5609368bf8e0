"""Claims K1, K2, K8 and K9 on instruction tuning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from .effects import CELL, paired_effects
from .judging import Tables, Verdict, difference, word
from .statistics import Effect, mean_effect

__all__ = ["degrades", "diversity", "keeps", "regularises"]

_CELL = ["vocab_size", "hidden_size"]
_SEEDS = ["data_seed", "model_seed"]
_HEAD = [
    "teacher", "vocab_size", "hidden_size", "norm", "norm_coefficient", "weight_decay", "features", "optimiser",
]  # fmt: skip
_SMALL_ACCURACY = 0.02
_SMALL = 0.01  # differences of ECE below this are called none
_RIVALS = ("weight_decay", "dropout")


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
    first, last = int(broad.loc[broad["epoch"] > 0, "epoch"].min()), int(broad["epoch"].max())
    change = _between_epochs(broad, "true_ece", last, 0)
    growth = _between_epochs(shifted, "true_ece", last, first)
    accuracy = _between_epochs(broad, "accuracy", last, 0)
    cells = [
        *_by_size(_between_epochs, broad, "true_ece", last, 0).values(),
        *_by_size(_between_epochs, shifted, "true_ece", last, first).values(),
    ]
    rises = [effect.mean > 0 for effect in cells]
    from_start = _by_size(_between_epochs, shifted, "true_ece", last, 0)
    verdict = word(supported=change.low > 0 and growth.low > 0 and all(rises), refuted=change.high < 0)
    return Verdict(
        claim="K1",
        verdict=verdict,
        effect=f"true ECE on the broad distribution, epoch {last} minus before tuning",
        size=change,
        condition=f"the distribution: without smoothing it rises on the broad one, and on new shifted contexts by "
        f"{growth} from epoch {first} to {last}; the means of {sum(rises)} of {len(rises)} (V, D) of both are above 0",
        counter_evidence="on the shifted distribution tuning changes the true ECE of the pretrained model, by "
        f"(V, D), by {_listed(from_start)}; on the broad one accuracy changes by {accuracy}",
        tables=("S7",),
    )


def _by_size(effect: Callable[..., Effect], table: pd.DataFrame, *arguments: object) -> dict[tuple[int, int], Effect]:
    """An effect in every pretrained model's (V, D)."""
    return {(int(v), int(d)): effect(rows, *arguments) for (v, d), rows in table.groupby(_CELL)}  # pyright: ignore


def _listed(effects: Mapping[tuple[int, int], Effect]) -> str:
    return ", ".join(f"{effect} at {size}" for size, effect in effects.items())


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
    in_tuning = [
        effect for rows in (final, broad) for effect in _by_size(_plain_minus, rows, "true_ece", "b=0.1").values()
    ]
    balance, population = _on_the_population(tables("S6"))
    contexts, sampled, harmed = _with_most_samples(tables("S4"))
    elsewhere = population, sampled  # heads without over-fitting, and heads of which smoothing may ask too much
    helps = all(effect.low > 0 for effect in in_tuning)
    verdict = word(
        supported=helps and all(effect.low > -_SMALL for effect in elsewhere),
        refuted=gain.high < 0 or all(effect.high < 0 for effect in in_tuning),
    )
    return Verdict(
        claim="K2",
        verdict=verdict,
        effect="true ECE on new shifted contexts at the last epoch, b = 0 minus b = .1",
        size=gain,
        condition=f"how far confidence exceeds accuracy: on the broad distribution {on_broad}, above 0 in "
        f"{sum(e.low > 0 for e in in_tuning)} of {len(in_tuning)} (V, D) of both; on the population, where |H - CE| of "
        f"plain heads is at most {balance:.4f}, the gain is {population}, with {contexts} samples a context {sampled} "
        f"({harmed}). Gains of others over b = 0 in tuning: "
        f"{', '.join(f'{name} {effect}' for name, effect in others.items())}",
        counter_evidence=f"lowers the true ECE further: {', '.join(better) or 'none'}; change in AURC {selective} "
        f"(positive: better). {_temperature_afterwards(tables('S5'))}",
        tables=("S7", "S4", "S5", "S6"),
    )


def _on_the_population(table: pd.DataFrame) -> tuple[float, Effect]:
    """How far heads trained on the conditionals are from H = CE, and what smoothing gains them (D2)."""
    keys = ["vocab_size", "hidden_size", "logit_std"]
    pairs = difference(table, "true_ece", column="label_smoothing", first=0.0, second=0.1, on=[*keys, *_SEEDS])
    balance = (table["entropy"] - table["cross_entropy"]).loc[table["label_smoothing"] == 0].abs().max()
    return float(balance), mean_effect(pairs, "difference", cell=keys)


def _with_most_samples(table: pd.DataFrame) -> tuple[int, Effect, str]:
    """Most samples a context in S4, the gain of b = .1 there, and in how many cells it harms."""
    pairs = paired_effects(table)
    most = int(pairs["samples_per_context"].max())
    chosen = (pairs["label_smoothing"] == 0.1) & (pairs["samples_per_context"] == most)
    gains = [mean_effect(rows, "true_ece_gain", cell=CELL) for _, rows in pairs.loc[chosen].groupby(CELL, dropna=False)]
    harmed = f"with an interval below 0 in {sum(gain.high < 0 for gain in gains)} of {len(gains)} cells"
    return most, mean_effect(pairs.loc[chosen], "true_ece_gain", cell=CELL), harmed


def _temperature_afterwards(table: pd.DataFrame) -> str:
    """Gain of a temperature fitted afterwards over plain heads of S5, by arm without a cap, and of smoothing."""
    on = [*_HEAD, "temperature", *_SEEDS]
    uncapped = table.loc[table["softcap"].isna()]
    plain = uncapped.loc[uncapped["label_smoothing"] == 0]
    fitted = difference(plain, "true_ece", column="evaluation", first="as_trained", second="post_hoc", on=on)
    trained = uncapped.loc[uncapped["evaluation"] == "as_trained"]
    smoothed = difference(trained, "true_ece", column="label_smoothing", first=0.0, second=0.1, on=on)
    both = fitted.merge(smoothed, on=on, suffixes=("_fitted", "_smoothed"))
    arms = [rows for _, rows in both.groupby([*_HEAD, "temperature"])]
    gains = np.array([rows[["difference_fitted", "difference_smoothed"]].mean() for rows in arms])
    raises, ahead = int((gains[:, 0] < 0).sum()), int((gains[:, 0] >= gains[:, 1]).sum())
    return (
        f"Heads of S5 without a cap: a temperature fitted afterwards raises the true ECE of the plain head in {raises} "
        f"of {len(gains)} arms (gain {gains[:, 0].min():.3f} to {gains[:, 0].max():.3f}) and does at least as well as "
        f"smoothing in {ahead}; of over-fitted heads at least as well had been predicted"
    )


def diversity(tables: Tables) -> Verdict:
    """K8: smoothing makes features more diverse, and that helps calibration."""
    shifted = _last(_as_trained(tables, "shifted"))
    unsmoothed = shifted.loc[~shifted["method"].str.startswith("b=0.")]
    rank = _by_size(_gained, shifted, "effective_rank", "b=0.1")
    others = _by_size(_within, unsmoothed, "effective_rank", "true_ece")
    along_b = _by_size(_within, shifted.loc[shifted["method"].str.startswith("b=")], "effective_rank", "true_ece")
    rivals = {
        name: (_gained(shifted, "effective_rank", name), _plain_minus(shifted, "true_ece", name)) for name in _RIVALS
    }
    tail = _gained(shifted, "smallest_share", "b=0.1")
    both_lower = [name for name, (ranks, gain) in rivals.items() if ranks.high < 0 and gain.low > 0]
    verdict = word(
        supported=all(e.low > 0 for e in rank.values()) and all(e.high < 0 for e in others.values()) and not both_lower,
        refuted=all(e.high < 0 for e in rank.values()) or all(e.low > 0 for e in others.values()),
    )
    return Verdict(
        claim="K8",
        verdict=verdict,
        effect="effective rank of the features on new shifted contexts at the last epoch, b = .1 minus b = 0",
        size=_gained(shifted, "effective_rank", "b=0.1"),
        condition=f"hidden size: the rank changes, by (V, D), by {_listed(rank)}. That it helps is another "
        f"question: correlation of rank and true ECE over methods without smoothing (plain, {', '.join(_RIVALS)}) "
        f"{_listed(others)}",
        counter_evidence="lower rank and error alike: "
        + ", ".join(f"{name} (rank {rivals[name][0]}, error {_negative(rivals[name][1])})" for name in both_lower)
        + f"; the smaller half of the spectrum gains {tail} of the variance; along b, which moves both and is no "
        f"evidence, the correlation is {_listed(along_b)}",
        tables=("S7",),
    )


def _gained(table: pd.DataFrame, value: str, method: str) -> Effect:
    return _negative(_plain_minus(table, value, method))


def _negative(effect: Effect) -> Effect:
    return Effect(-effect.mean, -effect.high, -effect.low, effect.seeds, effect.cells)


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
    rivals = {name: _plain_minus(both, "gap", name) for name in _RIVALS}
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
