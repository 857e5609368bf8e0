"""Claims on real models tuned on pairs of instruction and response: what each rule asks of the table, and its word.

Written before the first run. K1, K2 and K9 are judged by the rules of all tunings, with held-out responses for what was
asked, ordinary text for elsewhere, and the options of questions, by length-normalised cloze, beside them. K4 and K8 are
asked as the paper puts them:

    K4   refuted where smoothing of .1 lowers the confidence on held-out responses by more than .01, at the whole
         vocabulary and at every cut of it, and by no more than .03 less at the whole than at the smallest cut;
         supported where the fall at the whole is below .01, or shrinks by more than .03 (ends of 95 % intervals over
         seeds, each time); and whether confidence exceeds accuracy without smoothing stands beside it
    K8   supported or refuted where the effective rank of the features on held-out responses rises or falls: that it
         helps is not asked of two losses
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pandas as pd

from ..lab.registry import Prediction
from . import report
from .effects import difference
from .findings import SMALL, Findings, word
from .judging import EARLY, Judged, line_of, verdict_of
from .runs import Runs
from .statistics import Effect, mean_effect
from .tuning import degrades, keeps, regularises

__all__ = ["PAIR_CLAIMS", "judge_pairs", "small_hidden_size", "tuned_pairs"]

SHRINKS = 0.03  # of the fall in confidence, from the smallest vocabulary to the whole
_OTHERWISE = {"lora": 0, "weight_decay": 0, "confidence_penalty": 0}  # of the runs that are judged


def tuned_pairs(table: pd.DataFrame) -> Runs:
    """Return the runs of a table of :mod:`analysis.real_tuning` on all documents, T = 1 and no cap; one cell.

    Raises:
        ValueError: If there is no such run.
    """
    table = _plainly_tuned(table)
    table = table.loc[table["within"].isna() & table["vocabulary"].isna()]
    if table.empty:
        raise ValueError("table must hold runs of tier 1 on all documents, got none.")
    run = ["method", "data_seed"]
    trained = table.loc[table["reading"] == "as_trained"]
    responses = trained.loc[trained["view"] == "response"]
    validation = responses.loc[responses["split"] == "fit"].set_index([*run, "epoch"])["nll"]
    responses = responses.merge(validation.rename("validation_nll").reset_index(), on=[*run, "epoch"], how="left")
    scored = table.loc[(table["split"] == "scored") & (table["source"] == "all")]
    post_hoc = scored.loc[(scored["view"] == "response") & (scored["reading"] == "post_hoc")]
    asked = scored.loc[(scored["view"] == "cloze_norm") & (scored["reading"] == "as_trained")]
    return Runs(
        asked=responses.loc[responses["split"] == "scored"],
        elsewhere=trained.loc[(trained["view"] == "text") & (trained["split"] == "scored")],
        train=responses.loc[responses["split"] == "train"],
        read=post_hoc.assign(method=post_hoc["method"] + " post_hoc"),
        options=asked.loc[(asked["exam"] == "along") & asked["ece"].notna()],
        cell={"view": "kind"},
        run=["data_seed"],
        seeds=["data_seed"],
        named={"response": "responses"},
    )


def _plainly_tuned(table: pd.DataFrame) -> pd.DataFrame:
    """Runs of tier 1: nothing set but b, the seed and the vocabulary."""
    kept = (table["temperature"] == 1) & table["softcap"].isna()
    for column, value in _OTHERWISE.items():
        kept &= table[column] == value
    kept &= (table["step_size"] == 2e-5) & (table["pairs"] == 1024)
    table = table.loc[kept]
    return table.assign(
        method="b=" + table["label_smoothing"].map("{:g}".format), error=table["ece"], held_out=table["nll"]
    )


def small_hidden_size(table: pd.DataFrame, runs: Runs, found: Findings) -> str:
    """K4: whether smoothing acts at the whole vocabulary, and as much as where the vocabulary was cut."""
    final = runs.at_end(runs.asked)
    plain = final.loc[final["method"] == "b=0"]
    whole = found.add("fall", runs.gain(final, "confidence"), "probability")
    found.add("accuracy_loss", runs.gain(final, "accuracy"), "probability")
    found.add("excess", _mean(runs, plain, plain["confidence"] - plain["accuracy"]), "probability")
    for epoch in (0, runs.last):
        train = runs.train.loc[(runs.train["epoch"] == epoch) & (runs.train["method"] == "b=0")]
        found.add("activity", _mean(runs, train, train["activity"]), "index", epoch=epoch)
    responses = _plainly_tuned(table)
    responses = responses.loc[
        (responses["view"] == "response") & (responses["split"] == "scored") & (responses["reading"] == "as_trained")
    ]
    cut = responses.loc[responses["within"].notna() & (responses["epoch"] == runs.last)]
    falls = difference(cut, "confidence", column="method", first="b=0", second="b=0.1", on=["rows", *runs.seeds])
    for size, rows in falls.groupby("rows"):
        found.add("fall_at", mean_effect(rows, "difference", cell=["rows"]), "probability", V=int(str(size)))
    every = found.at("fall_at")
    shrinks = None
    if len(every) > 1:
        least, most = (f(falls["rows"]) for f in (min, max))
        pairs = difference(falls, "difference", column="rows", first=least, second=most, on=runs.seeds)
        shrinks = found.add("shrinks", runs.mean(pairs.assign(view="response")), "probability")
    inert = whole.high < SMALL or any(fall.high < SMALL for fall in every)
    return word(
        supported=inert or (shrinks is not None and shrinks.low > SHRINKS),
        refuted=min(fall.low for fall in (whole, *every)) > SMALL and (shrinks is None or shrinks.high < SHRINKS),
    )


def _mean(runs: Runs, rows: pd.DataFrame, values: pd.Series) -> Effect:
    return runs.mean(rows.assign(difference=values))


def rank(runs: Runs, found: Findings) -> str:
    """K8: whether smoothing raises the effective rank of the features."""
    final = runs.at_end(runs.asked)
    for name, column, unit in (("rank_rise", runs.rank, "rank"), ("smallest_share_rise", "smallest_share", "share")):
        fall = runs.gain(final, column)
        found.add(name, Effect(-fall.mean, -fall.high, -fall.low, fall.seeds, fall.cells), unit)
    plain = final.loc[final["method"] == "b=0"]
    found.add("rank", _mean(runs, plain, plain[runs.rank]), "rank")
    rise = found("rank_rise")
    return word(supported=rise.low > 0, refuted=rise.high < 0)


Rule = Callable[[pd.DataFrame, Runs, Findings], str]
PAIR_CLAIMS: dict[str, Rule] = {
    "K1": lambda _, runs, found: degrades(runs, found),
    "K2": lambda _, runs, found: keeps(runs, found),
    "K4": small_hidden_size,
    "K8": lambda _, runs, found: rank(runs, found),
    "K9": lambda _, runs, found: regularises(runs, found),
}
_ENDS_ALONE = ("K8",)  # what is measured before tuning and at the end, not at the paper's budget


def judge_pairs(table: pd.DataFrame, predictions: Sequence[Prediction]) -> Judged:
    """Judge what tier 1 says of one real model: a line for each claim, and one for each number behind it.

    Args:
        table: As ``python -m analysis.real_tuning table`` writes it, of tier 1.
        predictions: What had been expected.

    Returns:
        Columns as of :func:`~.judging.judge_model`.

    Raises:
        ValueError: If runs are missing that a claim compares.
    """
    words, runs = {prediction.claim: prediction.verdict for prediction in predictions}, tuned_pairs(table)
    begun = table.loc[table["epoch"] <= EARLY]
    lines, several = [], []
    for name, rule in PAIR_CLAIMS.items():
        found = Findings(name)
        decided = rule(table, runs, found)
        if lacking := next((made.finding for made in found.listed if not made.cells), None):
            raise ValueError(f"table must hold all runs of tier 1; {name} lacks some (of {lacking})")
        early = None if name in _ENDS_ALONE else partial(rule, begun, tuned_pairs(begun))
        verdict = verdict_of(found, decided, report.PAIRS[name](found), ("real_tuning",), early)
        lines.append(line_of(verdict, words[name]))
        several.append(found)
    return Judged(pd.DataFrame(lines), Findings.table(several))
