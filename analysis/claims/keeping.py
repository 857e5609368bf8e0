"""Claim K2 on synthetic models: tuning (S7), beside its rivals, and heads that smoothing may harm (S4, S5, S6)."""

from __future__ import annotations

import pandas as pd

from .effects import CELL, HEAD, SEEDS, difference, named, paired_effects, without_penalty
from .findings import Findings
from .runs import PENALTY, penalised_simulation, tuned_simulation
from .sources import Tables
from .statistics import Effect, mean_effect
from .tuning import OTHERS, keeps

__all__ = ["keeps_in_simulation"]


def keeps_in_simulation(tables: Tables, found: Findings) -> str:
    """K2 on S7, and on heads without over-fitting (S6) and heads of which smoothing may ask too much (S4)."""
    population = _on_the_population(tables("S6"), found)
    sampled = _with_most_samples(tables("S4"), found)
    decided = keeps(tuned_simulation(tables), found, (population, sampled))
    _temperature_afterwards(without_penalty(tables("S5")), found)
    _beside_the_penalty(tables, found)
    _penalised_heads(tables("S5"), found)
    return decided


def _on_the_population(table: pd.DataFrame, found: Findings) -> Effect:
    """How far heads trained on the conditionals are from H = CE, and what smoothing gains them (D2)."""
    keys = ["vocab_size", "hidden_size", "logit_std"]
    pairs = difference(table, "true_ece", column="label_smoothing", first=0.0, second=0.1, on=[*keys, *SEEDS])
    balance = (table["entropy"] - table["cross_entropy"]).loc[table["label_smoothing"] == 0].abs().max()
    found.add("population_balance", balance, "nats")
    return found.add("gain_population", mean_effect(pairs, "difference", cell=keys), "ECE").effect


def _with_most_samples(table: pd.DataFrame, found: Findings) -> Effect:
    """Most samples a context in S4, and the gain of b = .1 there, in all cells and in each."""
    pairs = paired_effects(table)
    most = int(pairs["samples_per_context"].max())
    rows = pairs.loc[(pairs["label_smoothing"] == 0.1) & (pairs["samples_per_context"] == most)]
    found.add("most_samples", most, "samples a context")
    for _, cell in rows.groupby(CELL, dropna=False):
        found.add("gain_sampled", mean_effect(cell, "true_ece_gain", cell=CELL), "ECE", **named(cell))
    return found.add("gain_sampled", mean_effect(rows, "true_ece_gain", cell=CELL), "ECE").effect


def _temperature_afterwards(table: pd.DataFrame, found: Findings) -> None:
    """Gain of a temperature fitted afterwards over plain heads of S5, by arm without a cap, and of smoothing."""
    on = [*HEAD, "temperature", *SEEDS]
    uncapped = table.loc[table["softcap"].isna()]
    plain = uncapped.loc[uncapped["label_smoothing"] == 0]
    fitted = difference(plain, "true_ece", column="evaluation", first="as_trained", second="post_hoc", on=on)
    trained = uncapped.loc[uncapped["evaluation"] == "as_trained"]
    smoothed = difference(trained, "true_ece", column="label_smoothing", first=0.0, second=0.1, on=on)
    both = fitted.merge(smoothed, on=on, suffixes=("_fitted", "_smoothed"))
    for _, arm in both.groupby([*HEAD, "temperature"]):
        for name in ("fitted", "smoothed"):
            effect = mean_effect(arm, f"difference_{name}", cell=HEAD)
            found.add(f"gain_s5_{name}", effect, "ECE", **named(arm))


def _beside_the_penalty(tables: Tables, found: Findings) -> None:
    """Gains over b = 0 in tuning where a confidence penalty is among the methods, each in the same cells."""
    runs = penalised_simulation(tables)
    if runs is None:
        return
    final = runs.final
    penalties = sorted(name for name in set(runs.asked["method"]) if name.startswith(PENALTY))
    scores = {
        "gain": ("error", "ECE"), "accuracy_loss": ("accuracy", "probability"), "held_out_fall": ("held_out", "nats"),
    }  # fmt: skip
    for method in ("b=0.1", *OTHERS, *penalties):
        for name, (column, unit) in scores.items():
            found.add(f"{name}_beside_penalty", runs.gain(final, column, method), unit, method=method)


def _penalised_heads(table: pd.DataFrame, found: Findings) -> None:
    """Gain of a confidence penalty in S5, and the fall in confidence, by arm and gamma; both heads read as trained."""
    if "confidence_penalty" not in table:
        return
    trained = table.loc[
        (table["evaluation"] == "as_trained") & (table["label_smoothing"] == 0) & table["softcap"].isna()
    ]
    on = [*HEAD, "temperature", *SEEDS]
    for gamma in sorted(set(trained["confidence_penalty"]) - {0.0}):
        names = {"gain_s5_penalised": ("true_ece", "ECE"), "fall_s5_penalised": ("confidence", "probability")}
        for name, (column, unit) in names.items():
            pairs = difference(trained, column, column="confidence_penalty", first=0.0, second=gamma, on=on)
            for _, arm in pairs.groupby([*HEAD, "temperature"]):
                found.add(name, mean_effect(arm, "difference", cell=HEAD), unit, gamma=gamma, **named(arm))
