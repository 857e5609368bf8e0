"""What the studies found, in sentences whose numbers are read from the committed tables."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..claims.law_pairs import joined
from ..command import committed_folder
from ..lab.tables import find_table, read_table
from ..response import clipped_fall

NEAR = (0.8, 1.25)  # of A: between them the rule of K4 says nothing
BLURRED = (1.0, 3.0)  # of A, where confidence falls if targets are noisy
_NO_TABLES = "What the studies found is not in this installation: it lacks their tables."
_TOKENS = 49152  # in the vocabulary of SmolLM2
# The second: those without smoothing again, beside the smoothed ones of the first.
TUNED_ON_QUESTIONS = ("instruction_full", "instruction_candidates")
TUNED_ON_PAIRS = {"real_gemma": "Gemma-3-270M", "real_smollm2": "SmolLM2-135M-Instruct"}


class Studies:
    """Numbers of the committed tables, each read once."""

    def __init__(self) -> None:
        self.read: dict[str, pd.DataFrame] = {}

    @staticmethod
    def path(name: str) -> Path:
        """The file of a table; a FileNotFoundError if there is none of the name."""
        path = find_table(committed_folder(), name)
        if path is None:
            raise FileNotFoundError(name)
        return path

    def table(self, name: str) -> pd.DataFrame:
        """A table; a FileNotFoundError if there is none of the name."""
        if name not in self.read:
            self.read[name] = read_table(self.path(name))
        return self.read[name]

    def __call__(self, claim: str, finding: str, cell: str = "", table: str = "findings") -> float:
        """The mean of a finding."""
        return float(self.found(claim, finding, table).loc[cell, "mean"])  # pyright: ignore[reportArgumentType]

    def found(self, claim: str, finding: str, table: str = "findings") -> pd.DataFrame:
        """The lines of a finding, by cell; that of all cells together has the name ``""``."""
        lines = self.table(table)
        lines = lines.loc[(lines["claim"] == claim) & (lines["finding"] == finding)]
        return lines.set_index(lines["cell"].fillna(""))

    def largest_error(self, rule: str) -> float:
        """The largest miss of a rule in a cell of S9."""
        found = self.table("S9_accuracy")
        return float(found.loc[found["predictor"] == rule, "largest_error"].max())

    def pairs(self, low: float, high: float, *, noisy: bool) -> pd.DataFrame:
        """The solved pairs of S9 with an index of ``low`` to ``high`` where several tokens are right, or else one."""
        pairs = joined(self.table("S9"), {name: self.table(name) for name in ("S3", "S4", "S5")})
        pairs = pairs.loc[pairs["confirmed"] & ((pairs["teacher"] != "det") == noisy)]
        return pairs.loc[pairs["activity_index"].between(low, high)]

    def tunings(self, view: str, reading: str = "as_trained", table: str = "instruction_full") -> pd.DataFrame:
        """New texts read by SmolLM2 after its last epoch, by smoothing and seed; T = 1 in training, no softcap."""
        return _tunings(self.table(table), view, reading)


def cited(*made: Callable[[], str]) -> str:
    """The sentences that the tables give, or one that says that there are none."""
    try:
        return " ".join(make() for make in made)
    except (OSError, LookupError):
        return _NO_TABLES


def inert(studies: Studies) -> str:
    """Where the index is above 1."""
    fall, settings = abs(studies("K4", "fall_where_inert")), studies("K4", "settings_inert")
    noisy, (low, high) = studies.pairs(*BLURRED, noisy=True), BLURRED
    return (
        f"In small simulated heads with A above {NEAR[1]:g} it lowered confidence by {fall:.4f} where one token was "
        f"right ({settings:.0f} settings) [K4, findings.csv]; where several were and A was {low:g} to {high:g}, by up "
        f"to {noisy['fall'].max():.3f} [S9, S9.csv.gz]."
    )


def acting(studies: Studies, asked: Sequence[str]) -> str:
    """Where it is below: for each b that was asked and that the heads had, else for the least and the largest."""
    falls = studies.found("K4", "fall_where_acting")
    falls = falls.loc[falls.index != ""]
    falls = falls.set_index(falls.index.str.removeprefix("b=").astype(float)).sort_index()
    if falls.empty:
        raise LookupError("fall_where_acting")
    had = [b for b in map(float, asked) if b in falls.index] or [falls.index[0], falls.index[-1]]
    shown = ", ".join(f"{falls.loc[b, 'mean']:.3f} (b = {b:g})" for b in dict.fromkeys(had))
    explained, norms = (studies("K4", "explained", f"teacher=noisy; predictor={name}") for name in ("A", "rho"))
    tuned = studies("K5", "activity", table="instruction_findings")
    return (
        f"In small simulated heads with A of 0 to {NEAR[0]:g} it lowered confidence by {shown} where one token was "
        f"right, about b times confidence; where several were, A explained {explained:.0%} of the fall, and rho, of "
        f"norms and sizes alone, {norms:.0%} [K4, findings.csv]. It acted on SmolLM2-135M-Instruct tuned to A = "
        f"{tuned:.2f} [K5, instruction_findings.csv]."
    )


def turning(studies: Studies) -> str:
    """About 1: how far confidence fell, and how much of that the index explains."""
    several, one = studies.pairs(*NEAR, noisy=True), studies.pairs(*NEAR, noisy=False)
    share, none = (pairs["fall"] / (pairs["label_smoothing"] * pairs["plain_confidence"]) for pairs in (several, one))
    det, noisy, norms = (
        studies("K4", "explained_of_transition", f"teacher={kind}")
        for kind in ("det; predictor=A", "noisy; predictor=A", "noisy; predictor=rho")
    )
    return (
        f"In small simulated heads with A of {NEAR[0]:g} to {NEAR[1]:g} it lowered confidence by {share.min():.2f} "
        f"to {share.max():.2f} times b times confidence where several tokens were right ({len(several)} pairs), by "
        f"{abs(none.mean()):.2f} times where one was ({len(one)} pairs, A = "
        f"{one['activity_index'].mean():.2f}) [S9, S9.csv.gz]. Of the fall about the turn A explained"
        f" {det:.0%} where one token was right; where several were, {noisy:.0%}, and rho, of norms and sizes "
        f"alone, {norms:.0%} [K4, findings.csv]."
    )


def nothing(studies: Studies) -> str:
    """Where no study looked."""
    return "No study had such a model."


def capped(studies: Studies, cap: float) -> str:
    """Of a model with a softcap."""
    verdicts = studies.table("verdicts").set_index("claim")
    on = verdicts.loc["K6", "depends_on"]
    word = f"{verdicts.loc['K6', 'verdict']} {on}" if isinstance(on, str) else f"is {verdicts.loc['K6', 'verdict']}"
    return (
        f"The index is of logits capped at {cap:g}, as this model's are; whether a cap adds to what smoothing does "
        f"{word} [K6, verdicts.csv]."
    )


def missed(studies: Studies, rules: Sequence[str]) -> str:
    """By how much rules were wrong."""
    shown = ", ".join(f"{rule} by up to {studies.largest_error(rule):.3f}" for rule in rules)
    return f"In small simulated models {shown.replace(' by', ' missed by', 1)} [S9, S9_accuracy.csv]."


def tuned(studies: Studies) -> str:
    """How ``clipped_fall`` fared in real models."""
    ratios, cites = [], []
    for table in TUNED_ON_QUESTIONS:
        with contextlib.suppress(FileNotFoundError):
            ratios += question_ratios(studies.table(table))
            cites.append(f"[{table}.csv]")
    if not ratios:
        raise FileNotFoundError(TUNED_ON_QUESTIONS[0])
    told = (
        "Tunings of SmolLM2-135M-Instruct on questions, with b = 0.1 and 0.2, lowered confidence on new texts by "
        f"{_span(ratios)} times clipped_fall in the mean over seeds {' '.join(cites)}"
    )
    for table, model in TUNED_ON_PAIRS.items():
        with contextlib.suppress(FileNotFoundError):
            path, of_pairs = studies.path(table), pair_ratios(studies.table(table))
            told += f"; those of {model} on pairs, with b = 0.1, by {_span(of_pairs)} [{path.name}]"
    return f"{told}."


def _tunings(table: pd.DataFrame, view: str, reading: str) -> pd.DataFrame:
    rows = table.loc[(table["split"] == "test") & (table["view"] == view) & (table["reading"] == reading)]
    rows = rows.loc[(rows["temperature"] == 1) & rows["softcap"].isna() & (rows["epoch"] == rows["epoch"].max())]
    return rows.set_index(["label_smoothing", "data_seed"]).sort_index()


def question_ratios(table: pd.DataFrame) -> list[float]:
    """Falls of tunings on questions over ``clipped_fall``, one for each kind of text and b, in the mean over seeds."""
    ratios = []
    for view in ("letter", "tokens", "text"):
        rows = _tunings(table, view, "as_trained")
        plain = rows.loc[0.0]
        for b in (0.1, 0.2):
            p, a = plain["confidence"].to_numpy(), plain["activity"].to_numpy() * 0.1 / b  # the index is that of .1
            fall = p - rows.loc[b].loc[plain.index, "confidence"].to_numpy()
            ratios.append(float(np.mean(fall) / np.mean(clipped_fall(p, a, _TOKENS, b))))
    return ratios


def _span(ratios: Sequence[float]) -> str:
    low, high = f"{min(ratios):.1f}", f"{max(ratios):.1f}"
    return low if low == high else f"{low} to {high}"


def pair_ratios(table: pd.DataFrame) -> list[float]:
    """Falls of tunings on pairs over ``clipped_fall``, one for each view and vocabulary, in the mean over seeds."""
    ends = table.loc[(table["split"] == "scored") & (table["reading"] == "as_trained") & table["bin"].isna()]
    ends = ends.loc[ends["view"].isin(["response", "text"]) & (ends["epoch"] == ends["epoch"].max())]
    ratios = []
    for (size, *_), lines in ends.groupby(["rows", "within", "view"], dropna=False):
        plain, smoothed = (lines.loc[lines["label_smoothing"] == b].set_index("data_seed") for b in (0.0, 0.1))
        both = plain.index.intersection(smoothed.index)
        if both.empty:
            continue
        p, a = (plain.loc[both, name].to_numpy() for name in ("confidence", "activity"))
        fall = np.mean(p - smoothed.loc[both, "confidence"].to_numpy())
        ratios.append(float(fall / np.mean(clipped_fall(p, a, int(size), 0.1))))
    return ratios


def rivals(studies: Studies) -> str:
    """What mends over-confidence, and what it costs."""

    def gains(table: str, cost: str = "") -> str:
        fitted, early = (studies("K2", "gain_of", f"method={m}", table) for m in ("b=0 post_hoc", "early stopping"))
        return f"{fitted:.3f}, {early:.3f}{cost} and {studies('K2', 'gain', table=table):.3f}"

    real, arms = "instruction_findings", studies.table("findings").query("finding == 'gain_s5_fitted'")["mean"]
    cost = f" (at {studies('K2', 'accuracy_loss_of', 'method=early stopping', real):.3f} of the accuracy)"
    before, after = (studies.tunings("text", reading).loc[0.0]["ece"].mean() for reading in ("as_trained", "post_hoc"))
    return (
        f"A temperature, early stopping and b = 0.1 lowered the ECE by {gains('findings')} in simulated tuning [K2, "
        f"findings.csv], by {gains(real, cost)} on SmolLM2-135M-Instruct [K2, {real}.csv]. A temperature does not "
        f"carry over: there the one fitted to answers raised the ECE of ordinary text from {before:.3f} to {after:.3f} "
        f"[instruction_full.csv]; in simulated heads fitted to few samples one raised it in {(arms < 0).sum()} of "
        f"{len(arms)} arms [K2, findings.csv]."
    )


def harm(studies: Studies) -> str:
    """What smoothing does where it is not needed."""
    raised = -studies("K2", "gain_population")
    held, cells = (studies("K4", f"sign_rule_{name}") for name in ("holds", "cells"))
    return (
        f"Where simulated heads were calibrated, b = 0.1 raised the ECE by {raised:.3f} [K2, findings.csv]; it helped "
        f"where H - CE on new data was below 0, and only there, in {held:.0f} of {cells:.0f} cells [K4, findings.csv]."
    )
