"""The claims of the study on a real model: what its tuning says, beside what had been predicted.

The claims are those of the simulated tuning (:mod:`analysis.study`), with ordinary text in the place of the broad
distribution and new questions in that of the shifted one. The rules are near to its own, not the same: true accuracies
are not known here, so every error is estimated; K5 and K6 ask first whether there was something to restore; K8 and K9
must hold in each kind of question. The rules of K2, K5, K6, K8 and K9 were made stricter after the tables had been
seen; docs/real_model_notes.md says how, and which words that changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import pandas as pd

from ..study.judging import Verdict, difference, word
from ..study.registry import Prediction
from ..study.statistics import Effect, mean_effect

__all__ = ["CLAIMS", "PREDICTIONS", "judge"]

# Written before the first run of the full preset.
PREDICTIONS = (
    Prediction(
        claim="K1",
        verdict="supported",
        statement="Tuning without smoothing raises the ECE on ordinary text above that of the model before tuning; on "
        "new questions it falls while the format is learnt and grows from epoch 1 to the last.",
    ),
    Prediction(
        claim="K2",
        verdict="depends on",
        statement="At the last epoch b = .1 has a lower ECE on new questions than b = 0, and a temperature fitted "
        "afterwards lowers that of b = 0 at least as far; on ordinary text b = .1 changes the ECE by less than .02.",
    ),
    Prediction(
        claim="K5",
        verdict="depends on",
        statement="Norms are free and smoothing acts at T = 1 already: training at T = .5 or 2 changes the gain of "
        "smoothing in ECE, read as trained, by less than .02.",
    ),
    Prediction(
        claim="K6",
        verdict="depends on",
        statement="A cap of 30 or 15 changes the gain of smoothing in ECE by less than .02.",
    ),
    Prediction(
        claim="K8",
        verdict="not decided",
        statement="No expectation: measure the effective rank of the features on new questions against b.",
    ),
    Prediction(
        claim="K9",
        verdict="supported",
        statement="b = .1 changes the accuracy on new questions by less than .02 and narrows the gap between held-out "
        "and training NLL, at the last epoch.",
    ),
)
# Full-vocabulary confidence in multiple choice and in short answers.
_VIEWS = {"letter": "multiple choice", "tokens": "short answers"}
_SEED = ["data_seed"]
_SMALL_ACCURACY = 0.02


def _rows(
    table: pd.DataFrame, split: str, *, reading: str = "as_trained", views: Sequence[str] = tuple(_VIEWS)
) -> pd.DataFrame:
    return table.loc[(table["split"] == split) & (table["reading"] == reading) & table["view"].isin(views)]


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """Runs at T = 1 and without a cap."""
    return table.loc[(table["temperature"] == 1) & table["softcap"].isna()]


def _last(table: pd.DataFrame) -> pd.DataFrame:
    return table.loc[table["epoch"] == table["epoch"].max()]


def _effect(pairs: pd.DataFrame) -> Effect:
    return mean_effect(pairs, "difference", cell=["view"])


def _change(table: pd.DataFrame, value: str, first: int, second: int) -> Effect:
    """``value`` at epoch ``first`` minus at ``second``, without smoothing."""
    rows = _plain(table).loc[lambda t: t["label_smoothing"] == 0]
    return _effect(difference(rows, value, column="epoch", first=first, second=second, on=["view", *_SEED]))


def _gain(table: pd.DataFrame, value: str, smoothing: float = 0.1) -> Effect:
    """``value`` of b = 0 minus that of ``smoothing``."""
    return _effect(_gains(table, value, smoothing))


def _gains(table: pd.DataFrame, value: str, smoothing: float = 0.1) -> pd.DataFrame:
    return difference(table, value, column="label_smoothing", first=0.0, second=smoothing, on=["view", *_SEED])


def _in_views(table: pd.DataFrame, effect: Callable[[pd.DataFrame], Effect]) -> dict[str, Effect]:
    return {name: effect(table.loc[table["view"] == view]) for view, name in _VIEWS.items()}


def _by_view(table: pd.DataFrame, value: str) -> dict[str, Effect]:
    """The gain of b = .1 in each view alone."""
    return _in_views(table, lambda rows: _gain(rows, value))


def _listed(effects: dict[str, Effect]) -> str:
    return ", ".join(f"{name} {effect}" for name, effect in effects.items())


def _reversed(effect: Effect) -> Effect:
    return Effect(-effect.mean, -effect.high, -effect.low, effect.seeds, effect.cells)


def degrades(table: pd.DataFrame) -> Verdict:
    """K1: instruction tuning degrades calibration."""
    last = int(table["epoch"].max())
    text, asked = _rows(table, "test", views=("text",)), _rows(table, "test")
    change, growth = _change(text, "ece", last, 0), _change(asked, "ece", last, 1)
    options = _rows(table, "test", views=("options",))
    return Verdict(
        claim="K1",
        verdict=word(supported=change.low > 0 and growth.low > 0, refuted=change.high < 0),
        effect=f"ECE on ordinary text, epoch {last} minus before tuning",
        size=change,
        condition=f"no smoothing; on new questions the ECE changes by {growth} from epoch 1 to {last}, among the four "
        f"options by {_change(options, 'ece', last, 1)}",
        counter_evidence=f"on new questions the ECE of the model before tuning changes by "
        f"{_change(asked, 'ece', last, 0)}, accuracy by {_change(asked, 'accuracy', last, 0)}; NLL on text by "
        f"{_change(text, 'nll', last, 0)}",
        tables=("instruction",),
    )


def keeps(table: pd.DataFrame) -> Verdict:
    """K2: smoothing keeps calibration during tuning."""
    runs = _plain(table)
    asked, text = _last(_rows(runs, "test")), _last(_rows(runs, "test", views=("text",)))
    gain, on_text = _gain(asked, "ece"), _gain(text, "ece")
    plain = asked.loc[asked["label_smoothing"] == 0]
    post_hoc = _last(_rows(runs, "test", reading="post_hoc")).loc[lambda t: t["label_smoothing"] == 0]
    stopped = _early_stopped(runs)
    others = {
        "b = .2": _gain(asked, "ece", 0.2),
        "post-hoc temperature of b = 0 (one a view)": _instead(plain, post_hoc),
        "early stopping of b = 0 (one epoch a run)": _instead(plain, stopped),
    }
    better = [name for name, effect in others.items() if effect.mean > gain.mean]
    options = _last(_rows(runs, "test", views=("options",)))
    return Verdict(
        claim="K2",
        verdict=word(supported=gain.low > 0 and on_text.low > 0, refuted=gain.high < 0),
        effect="ECE on new questions at the last epoch, b = 0 minus b = .1",
        size=gain,
        condition=f"{_listed(_by_view(asked, 'ece'))}; on ordinary text {on_text}; among the four options "
        f"{_gain(options, 'ece')}. Gains of others over b = 0: {_listed(others)}",
        counter_evidence=f"lowers the ECE further: {', '.join(better) or 'none'}; change in AURC "
        f"{_gain(asked, 'aurc')} and in RMS error {_gain(asked, 'rms')} (positive: better); early stopping costs "
        f"{_instead(plain, stopped, 'accuracy')} of the accuracy, b = .1 {_gain(asked, 'accuracy')}",
        tables=("instruction",),
    )


def _instead(plain: pd.DataFrame, other: pd.DataFrame, value: str = "ece") -> Effect:
    """``value`` of the plain runs minus that of the same runs read or stopped otherwise."""
    both = plain.merge(other, on=["view", *_SEED], suffixes=("", "_other"))
    return _effect(both.assign(difference=both[value] - both[f"{value}_other"]))


def _early_stopped(runs: pd.DataFrame) -> pd.DataFrame:
    """Test rows of b = 0 at the epoch with the least validation NLL, mean of the views: one model a seed."""
    plain = runs.loc[(runs["label_smoothing"] == 0) & (runs["epoch"] > 0)]
    validation = _rows(plain, "validation")
    validation = validation.assign(mean=validation.groupby([*_SEED, "epoch"])["nll"].transform("mean"))
    best = validation.loc[validation.groupby(_SEED)["mean"].idxmin(), [*_SEED, "epoch"]]
    return _rows(plain, "test").merge(best, on=[*_SEED, "epoch"])


def _restored(table: pd.DataFrame, claim: str, column: str, values: Sequence[float], name: str) -> Verdict:
    """Whether training with another temperature or with a cap raises a gain of smoothing that was not there without.

    Where smoothing acts without, there is nothing to restore: then a larger gain does not support the claim, nor does
    a smaller one refute it, and the verdict is that it depends on this.
    """
    asked = _last(_rows(table, "test"))
    base = _gains(_plain(asked), "ece").rename(columns={"difference": "base"})
    rest = "softcap" if column == "temperature" else "temperature"
    neutral = asked[rest].isna() if rest == "softcap" else asked[rest] == 1
    arms = {value: asked.loc[(asked[column] == value) & neutral] for value in values}
    found: dict[float, Effect] = {}
    for value, at in arms.items():
        both = _gains(at, "ece").merge(base, on=["view", *_SEED])
        found[value] = _effect(both.assign(difference=both["difference"] - both["base"]))
    strongest = values[0]
    trained = _last(_rows(_plain(table).loc[lambda t: t["label_smoothing"] == 0], "train"))
    activity = mean_effect(trained, "activity", cell=["view"])
    return Verdict(
        claim=claim,
        verdict=word(
            supported=found[strongest].low > 0 and activity.low > 1,
            refuted=found[strongest].high < 0 and activity.low > 1,
        ),
        effect=f"gain of b = .1 in ECE on new questions at {name} {strongest:g} minus that without, read as trained",
        size=found[strongest],
        condition="; ".join(f"at {name} {value:g}: {effect}" for value, effect in found.items() if value != strongest)
        + f"; without, the gain is {_gain(_plain(asked), 'ece')} and the activity index of b = 0 on its examples "
        f"{activity} ({_acted(activity)})",
        counter_evidence=_lowest({f"at {name} {v:g}": at for v, at in arms.items()} | {"without": _plain(asked)}),
        tables=("instruction",),
    )


def _acted(activity: Effect) -> str:
    if activity.low <= 1 <= activity.high:
        return "1 is within: not known whether there was something to restore"
    return "below 1: smoothing acted, nothing to restore" if activity.high < 1 else "above 1: smoothing did not act"


def _lowest(arms: dict[str, pd.DataFrame]) -> str:
    """Least ECE of each arm over the b that all have, means over views and seeds."""
    common = sorted(set.intersection(*(set(arm["label_smoothing"]) for arm in arms.values())))
    means = {
        name: min(float(arm.loc[arm["label_smoothing"] == b, "ece"].mean()) for b in common)
        for name, arm in arms.items()
    }
    among = ", ".join(f"{b:g}" for b in common)
    return f"the lowest ECE over b of {among} is " + ", ".join(f"{mean:.4f} {name}" for name, mean in means.items())


def temperature(table: pd.DataFrame) -> Verdict:
    """K5: temperature restores the effect of smoothing."""
    return _restored(table, "K5", "temperature", (0.5, 2.0), "training T =")


def capping(table: pd.DataFrame) -> Verdict:
    """K6: logit capping restores the effect of smoothing."""
    return _restored(table, "K6", "softcap", (15.0, 30.0), "a training cap of")


def diversity(table: pd.DataFrame) -> Verdict:
    """K8: smoothing makes features more diverse, and that helps calibration."""
    # In each view, as for K9.
    asked = _last(_rows(table, "test"))
    more = {name: _reversed(effect) for name, effect in _by_view(_plain(asked), "effective_rank").items()}
    tail = _reversed(_gain(_plain(asked), "smallest_share"))
    unsmoothed = asked.loc[asked["label_smoothing"] == 0]
    correlations = [*_in_views(asked, _within).values(), *_in_views(unsmoothed, _within).values()]
    return Verdict(
        claim="K8",
        verdict=word(
            supported=all(rank.low > 0 for rank in more.values()) and all(r.high < 0 for r in correlations),
            refuted=all(rank.high < 0 for rank in more.values()),
        ),
        effect="effective rank of the features on new questions at the last epoch, b = .1 minus b = 0",
        size=_reversed(_gain(_plain(asked), "effective_rank")),
        condition=f"{_listed(more)}; that it helps: correlation of rank and ECE over the tunings of one seed is "
        f"{_within(asked)} ({_listed(_in_views(asked, _within))})",
        counter_evidence=f"over tunings without smoothing {_within(unsmoothed)} "
        f"({_listed(_in_views(unsmoothed, _within))}); the smaller half of the spectrum gains {tail} of the variance",
        tables=("instruction",),
    )


def _within(table: pd.DataFrame) -> Effect:
    """Mean over seeds of the correlation of effective rank and ECE over tunings."""
    lines = []
    for keys, group in table.groupby(["view", "data_seed"]):
        view, seed = cast("tuple[str, int]", keys)
        r = float(np.corrcoef(group["effective_rank"], group["ece"])[0, 1])
        lines.append({"view": view, "data_seed": seed, "difference": r})
    return _effect(pd.DataFrame(lines).dropna())


def regularises(table: pd.DataFrame) -> Verdict:
    """K9: accuracy kept, gap between training and held-out NLL narrower."""
    # In each view: a loss in one and a gain in the other are two changes, not none.
    runs = _last(_plain(table))
    asked, train = _rows(runs, "test"), _rows(runs, "train")
    keys = ["view", *_SEED, "label_smoothing"]
    both = asked[[*keys, "nll"]].merge(train[[*keys, "nll"]], on=keys, suffixes=("", "_train"))
    both = both.assign(gap=both["nll"] - both["nll_train"])
    gaps, accuracies = _by_view(both, "gap"), _by_view(asked, "accuracy")
    kept = all(max(abs(change.low), abs(change.high)) < _SMALL_ACCURACY for change in accuracies.values())
    return Verdict(
        claim="K9",
        verdict=word(
            supported=kept and all(gap.low > 0 for gap in gaps.values()),
            refuted=all(gap.high < 0 for gap in gaps.values()),
        ),
        effect="gap of held-out minus training NLL (nats) at the last epoch, b = 0 minus b = .1",
        size=_gain(both, "gap"),
        condition=f"{_listed(gaps)}; accuracy, b = 0 minus b = .1: {_listed(accuracies)}, mean "
        f"{_gain(asked, 'accuracy')}",
        counter_evidence=f"held-out NLL itself falls by {_gain(asked, 'nll')} ({_listed(_by_view(asked, 'nll'))}), "
        f"AURC by {_gain(asked, 'aurc')} ({_listed(_by_view(asked, 'aurc'))})",
        tables=("instruction",),
    )


CLAIMS: dict[str, Callable[[pd.DataFrame], Verdict]] = {
    "K1": degrades,
    "K2": keeps,
    "K5": temperature,
    "K6": capping,
    "K8": diversity,
    "K9": regularises,
}


def judge(table: pd.DataFrame) -> pd.DataFrame:
    """One line for each claim that the tuning of a real model speaks to.

    Args:
        table: Rows of the preset ``full``, as ``run`` writes them.

    Returns:
        Columns as in the study's ``verdicts.csv``: ``claim``, ``statement``, ``verdict``, ``predicted``, ``effect``,
        ``mean``, ``low``, ``high`` (95 % bootstrap over seeds), ``seeds``, ``cells`` (views), ``condition``,
        ``counter_evidence``, ``tables``.

    Raises:
        ValueError: If runs that a claim compares are missing.
    """
    words = {prediction.claim: prediction.verdict for prediction in PREDICTIONS}
    lines = []
    for claim, decide in CLAIMS.items():
        try:
            verdict = decide(table)
        except ValueError as error:
            raise ValueError(f"table must hold all runs of the preset full; {claim} lacks some ({error})") from error
        size = verdict.size
        assert size is not None
        lines.append(
            {
                "claim": claim,
                "statement": (decide.__doc__ or "").split(": ", 1)[-1].strip().rstrip("."),
                "verdict": verdict.verdict,
                "predicted": words[claim],
                "effect": verdict.effect,
                "mean": round(size.mean, 5),
                "low": round(size.low, 5),
                "high": round(size.high, 5),
                "seeds": size.seeds,
                "cells": size.cells,
                "condition": verdict.condition,
                "counter_evidence": verdict.counter_evidence,
                "tables": " ".join(verdict.tables),
            }
        )
    return pd.DataFrame(lines)
