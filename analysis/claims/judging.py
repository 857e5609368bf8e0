"""Claims K1 to K9 against the tables: one line each, beside what had been predicted; and the findings behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, cast

import pandas as pd

from ..lab.registry import EXPERIMENTS, Prediction, Preset, experiment
from . import report
from .capping import capping, restored, temperature
from .cost import free_of_cost
from .findings import Findings, Verdict
from .heads import capacity, small_hidden_size
from .keeping import keeps_in_simulation
from .runs import Runs, tuned_model, tuned_simulation
from .sources import MissingTableError, Tables
from .tuning import degrades, diversity, keeps, regularises

__all__ = [
    "CLAIMS", "EARLY", "MODEL_CLAIMS", "Judged", "counted", "decide", "judge", "judge_model", "line_of", "verdict_of",
]  # fmt: skip

ClaimRule = Callable[[Tables, Findings], str]
_NUMBERS = ("mean", "low", "high")
EARLY = 2  # epochs of tuning, the budget of the paper


class Claim(NamedTuple):
    """A rule, which fills in findings and returns the word, and the tables that it reads, the main one first."""

    rule: ClaimRule
    tables: tuple[str, ...]


def _of_tuning(rule: Callable[[Runs, Findings], str]) -> ClaimRule:
    return lambda tables, found: rule(tuned_simulation(tables), found)


CLAIMS = {
    "K1": Claim(_of_tuning(degrades), ("S7",)),
    "K2": Claim(keeps_in_simulation, ("S7", "S4", "S5", "S6")),
    "K3": Claim(capacity, ("S1", "S3", "S10")),
    "K4": Claim(small_hidden_size, ("S3", "S4")),
    "K5": Claim(temperature, ("S5",)),
    "K6": Claim(capping, ("S5",)),
    "K7": Claim(free_of_cost, ("kernel",)),
    "K8": Claim(_of_tuning(diversity), ("S7",)),
    "K9": Claim(_of_tuning(regularises), ("S7",)),
}
# Of a real model; K5 and K6 ask first whether there was something to restore.
MODEL_CLAIMS: dict[str, Callable[[Runs, Findings], str]] = {
    "K1": degrades,
    "K2": keeps,
    "K5": restored("temperature", (0.5, 2.0)),
    "K6": restored("softcap", (15.0, 30.0)),
    "K8": diversity,
    "K9": regularises,
}


class _Early:
    """Tables of which tunings end at the paper's budget."""

    def __init__(self, tables: Tables) -> None:
        self._tables, self.has = tables, tables.has

    def __call__(self, name: str) -> pd.DataFrame:
        table = self._tables(name)
        return table.loc[table["epoch"] <= EARLY] if "epoch" in table else table


class Judged(NamedTuple):
    """Verdicts, one line a claim, and their findings, one line a number (:class:`~.findings.Finding`)."""

    verdicts: pd.DataFrame
    findings: pd.DataFrame


def verdict_of(
    found: Findings,
    decided: str,
    said: report.Sentences,
    tables: tuple[str, ...],
    early: Callable[[Findings], str] | None = None,
) -> Verdict:
    """The verdict in words; an effect that no complete cell shows decides nothing. ``early`` judges at ``EARLY``."""
    known = bool(said.headline.cells)
    decided = decided if known else "not decided"
    then, size = "", None
    if early is not None:
        before = Findings(found.claim)
        then, made = early(before), before(said.headline.finding, **said.headline.cell)
        size = found.add(f"{made.finding}_at_epoch_{EARLY}", made.effect, made.unit, **made.cell)
        then = then if size.cells else "not decided"
    return Verdict(
        early=then,
        early_size=size,
        interval_over=said.interval_over,
        claim=found.claim,
        verdict=decided,
        depends_on=said.depends_on if decided == "depends on" else "",
        effect=said.effect,
        size=said.headline if known else None,
        condition=said.condition,
        counter_evidence=said.counter_evidence,
        tables=tables,
    )


def decide(claim: str, tables: Tables) -> tuple[Verdict, Findings]:
    """Judge one claim of the study: the verdict, and its findings.

    Raises:
        MissingTableError: If a table is missing that the claim cannot do without.
    """
    found, (rule, reads) = Findings(claim), CLAIMS[claim]
    word, said = rule(tables, found), report.STUDY[claim](found)
    early = (lambda before: rule(cast("Tables", _Early(tables)), before)) if reads[0] == "S7" else None
    return verdict_of(found, word, said, tuple(filter(tables.has, reads)), early), found


def judge(tables: Tables, preset: Preset) -> Judged:
    """Judge every claim of the study: one line for each claim, and one for each number behind it.

    Returns:
        Verdicts: ``claim``, ``statement`` (the claim), ``verdict``, ``depends_on``, ``predicted`` (each experiment's
        word), ``effect``, ``finding`` and ``cell`` (which of the findings it is), ``mean``, ``low``, ``high`` (95 %,
        :func:`~.statistics.mean_effect`), ``seeds``, ``cells``, ``interval_over`` (what varies within the interval:
        ``seeds``; only the ``first values of the solver`` where targets are deterministic; ``shapes``),
        ``early_verdict``, ``early_mean``, ``early_low``, ``early_high`` (of the same rule where tuning ends after 2
        epochs, the budget of the paper; empty where nothing is tuned), ``condition``, ``counter_evidence``, ``tables``,
        ``rows_left_out`` (not converged, of all), ``cells_not_run`` (not complete, of all in the grid; only of tables
        whose sidecar tells), ``preset``. A claim whose table is missing is ``not decided``, with the reason as its
        condition, and one whose effect no complete cell shows. And the findings.
    """
    lines, several = [], []
    for name in CLAIMS:
        try:
            verdict, found = decide(name, tables)
        except KeyError as column:
            raise ValueError(f"the tables that {name} reads have no column {column}.") from column
        except MissingTableError as missing:
            reason = f"{missing}; S8 needs a GPU" if name == "K7" else str(missing)
            verdict = Verdict(claim=name, verdict="not decided", condition=reason)
        else:
            several.append(found)
        lines.append(
            line_of(verdict, _predicted(name))
            | {
                "rows_left_out": counted(tables.left_out, verdict.tables),
                "cells_not_run": counted(tables.not_run, verdict.tables),
                "preset": preset if preset == "full" else f"{preset} (preliminary)",
            }
        )
    return Judged(pd.DataFrame(lines), Findings.table(several))


def _predicted(claim: str) -> str:
    """What each experiment expected: ``"S5: refuted; S7: supported"``; S11 and S12 are no part of these."""
    studies = [study for study in EXPERIMENTS if study not in ("S11", "S12")]
    made = [(study, prediction) for study in studies for prediction in experiment(study).predictions]
    words = [f"{study}: {prediction.verdict}" for study, prediction in made if prediction.claim == claim]
    return "; ".join(dict.fromkeys(words))  # of several predictions of one word, one


def judge_model(table: pd.DataFrame, predictions: Sequence[Prediction]) -> Judged:
    """Judge every claim that the tuning of a real model speaks to: a line each, and one for each number behind it.

    The rules are those of the simulated tuning, with ordinary text in the place of the broad distribution, new
    questions in that of the shifted one, and kinds of question for cells. True accuracies are not known here, so every
    error is estimated; K5 and K6 ask first whether there was something to restore.

    Args:
        table: Rows of the preset ``full``, as ``python -m analysis.instruction run`` writes them.
        predictions: What had been expected.

    Returns:
        Columns as of :func:`judge`, without those that count rows and cells.

    Raises:
        ValueError: If runs that a claim compares are missing.
    """
    words, runs = {prediction.claim: prediction.verdict for prediction in predictions}, tuned_model(table)
    begun = tuned_model(table.loc[table["epoch"] <= EARLY])
    lines, several = [], []
    for name, rule in MODEL_CLAIMS.items():
        found = Findings(name)
        decided = rule(runs, found)
        if not all(made.cells for made in found.listed):
            lacking = next(made.finding for made in found.listed if not made.cells)
            raise ValueError(f"table must hold all runs of the preset full; {name} lacks some (of {lacking})")
        verdict = verdict_of(found, decided, report.MODEL[name](found), ("instruction",), partial(rule, begun))
        lines.append(line_of(verdict, words[name]))
        several.append(found)
    return Judged(pd.DataFrame(lines), Findings.table(several))


def line_of(verdict: Verdict, predicted: str) -> dict[str, object]:
    """The line of a table of verdicts, beside the word that had been predicted."""
    size, early = verdict.size, verdict.early_size
    return {
        "claim": verdict.claim,
        "statement": report.STATEMENTS.get(verdict.claim, report.LAW),
        "verdict": verdict.verdict,
        "depends_on": verdict.depends_on,
        "predicted": predicted,
        "effect": verdict.effect,
        "finding": "" if size is None else size.finding,
        "cell": "" if size is None else size.where,
        **{name: None if size is None else round(getattr(size, name), 5) for name in _NUMBERS},
        **{name: None if size is None else getattr(size, name) for name in ("seeds", "cells")},
        "interval_over": "" if size is None else verdict.interval_over,
        "early_verdict": verdict.early,
        **{f"early_{name}": None if early is None else round(getattr(early, name), 5) for name in _NUMBERS},
        "condition": verdict.condition,
        "counter_evidence": verdict.counter_evidence,
        "tables": " ".join(verdict.tables),
    }


def counted(counts: Mapping[str, tuple[int, int]], tables: Sequence[str]) -> str:
    """``"3 of 40"``, summed over tables."""
    chosen = [counts[name] for name in tables if name in counts]
    return f"{sum(out for out, _ in chosen)} of {sum(total for _, total in chosen)}"
