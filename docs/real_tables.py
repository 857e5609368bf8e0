"""Tables of the docs on real models tuned on pairs, from the short tables of tier 1 and their verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import real_predictions
import real_sentences
from table_text import signed, wrapped

__all__ = [
    "ASKED",
    "MODELS",
    "found",
    "models",
    "predicted",
    "shared_changes",
    "verdicts",
    "vocabulary",
]

MODELS = {"gemma": "Gemma-3-270M", "smollm2": "SmolLM2-135M-Instruct"}
# Of a claim, what the rules of pairs ask alone; and what the word after two epochs hangs on.
ASKED = {"K8": "of the rise in rank; that it helps was not asked"}
ASKED_EARLY = {"K2": "on held-out responses"}
_VIEWS = {
    "response": "held-out responses",
    "text": "ordinary text",
    "cloze_norm": "questions, normalised cloze",
    "letters": "questions, letters",
}
_SCORES = {
    "accuracy": "accuracy",
    "confidence": "confidence",
    "ece": "ECE",
    "rms": "RMS-CE",
    "rms_sorted": "RMS-CE, sorted",
    "nll": "NLL",
}
_STAGES = (
    "before tuning", "b = 0, epoch 2", "b = 0.1, epoch 2", "b = 0", "b = 0.1", "b = 0, T fitted",
    "b = 0, stopped early",
)  # fmt: skip


_PREDICTORS = {
    "scale": "one scale",
    "gain": "a gain for each dimension",
    "low_rank": "scale, shift and a matrix of rank 8",
    "affine": "any matrix and a shift",
    "clipped": "$b(p-1/V)\\max(0,1-A)$",
    "rational": "$b(p-1/V)/(1+A)$",
}


def shared_changes(data: Path) -> str:
    """What shared changes of the features predict of the falls of tuned models, beside two rules of thumb."""
    table = pd.read_csv(data / "shared_changes.csv").set_index(["group", "predictor"])
    lines = ["| | fall over prediction, responses | text | error over all | numbers |", "|---|---|---|---|---|"]
    for name, said in _PREDICTORS.items():
        every, *views = (table.loc[group, name] for group in ("all cells", "view response", "view text"))
        cells = [
            "not solved" if pd.isna(x) else f"{x:.2f}" for x in (*(view["ratio"] for view in views), every["error"])
        ]
        lines.append(f"| {said} | {' | '.join(cells)} | {every['predicted']:.0f} of {every['cells']:.0f} |")
    return "\n".join(lines)


def models(data: Path) -> str:
    """The models before and after tuning, in the paper's terms: mean over seeds with its 95% interval."""
    from analysis.lab.tables import find_table

    lines = [f"| model | read on | | {' | '.join(_STAGES)} |", "|---" * (3 + len(_STAGES)) + "|"]
    first = {f"first_{short}": f"{name}, one seed" for short, name in MODELS.items() if short not in _judged(data)}
    for table_name, name in {**{f"real_{short}": name for short, name in _judged(data).items()}, **first}.items():
        if table_name in first and find_table(data, table_name) is None:
            continue  # of a model whose runs are not finished
        table = _table(data, table_name)
        stages = _stages(table.loc[table["within"].isna()])
        for view, read in _VIEWS.items():
            for score, called in _SCORES.items():
                cells = [_mean(rows.loc[rows["view"] == view, score]) for rows in stages.values()]
                if any(cells):
                    lines.append(f"| {name} | {read} | {called} | {' | '.join(cells)} |")
    return "\n".join(lines)


def found(data: Path) -> str:
    """What both models say of the claims, in sentences, and what smoothing takes of Gemma beside calibration."""
    from analysis.claims.judging import EARLY

    table = _table(data, "real_gemma")
    scored, last = _scored(table.loc[table["within"].isna()]), table["epoch"].max()

    def over(b: float, epoch: float) -> str:
        rows = scored.loc[(scored["view"] == "response") & (scored["label_smoothing"] == b)]
        rows = rows.loc[rows["epoch"] == epoch]
        return _mean(rows["confidence"] - rows["accuracy"])

    text, options = (_mean(_lost(scored, view)) for view in ("text", "cloze_norm"))
    sentence = (
        "**Whether smoothing helps is a matter of the excess that it meets** (Gemma): on held-out responses confidence "
        f"less accuracy is {over(0.0, EARLY)} after two epochs without it and {over(0.1, EARLY)} with it; "
        f"after {last:.0f} epochs {over(0.0, last)} and {over(0.1, last)}. And it is not free where nothing was tuned "
        f"on: at the last epoch accuracy falls by {text} on ordinary text and by {options} among the options of all "
        "scored questions (normalised cloze)."
    )
    judged = _judged(data)
    early = {short: _early_text(table if short == "gemma" else _table(data, f"real_{short}")) for short in judged}
    return real_sentences.found(data, judged, early) + "\n- " + wrapped(sentence).replace("\n", "\n  ")


def _lost(scored: pd.DataFrame, view: str) -> pd.Series:
    """Accuracy that b = .1 takes at the last epoch, seed by seed."""
    from analysis.claims.effects import difference

    rows = scored.loc[(scored["view"] == view) & (scored["epoch"] == scored["epoch"].max())]
    rows = rows.loc[rows["exam"].isna() | (rows["exam"] == "whole")]
    pairs = difference(rows, "accuracy", column="label_smoothing", first=0.0, second=0.1, on=["data_seed"])
    return pairs["difference"]


def _early_text(table: pd.DataFrame) -> str:
    """The error on ordinary text where tuning ends after the paper's two epochs, without smoothing and with it."""
    plain, smoothed = (_stages(table.loc[table["within"].isna()])[f"b = {b}, epoch 2"] for b in ("0", "0.1"))
    plain, smoothed = (_mean(rows.loc[rows["view"] == "text", "ece"]) for rows in (plain, smoothed))
    return f"on ordinary text the ECE is {plain} without it then and {smoothed} with it"


def vocabulary(data: Path) -> str:
    """What b = .1 changes in Gemma on held-out responses, by rows of the head that are kept and by epoch."""
    from analysis.claims.effects import difference
    from analysis.claims.judging import EARLY

    table = _table(data, "real_gemma")
    inside = _scored(table.loc[table["within"].notna()])
    inside = inside.loc[inside["view"] == "response"]
    lines = [
        "| rows kept | epoch | confidence less accuracy, b = 0 | confidence falls by "
        "| ECE, b = 0 | ECE falls by | accuracy falls by |",
        "|---" * 7 + "|",
    ]
    for size in sorted(inside["rows"].unique()):
        for epoch in (EARLY, inside["epoch"].max()):
            at = inside.loc[(inside["rows"] == size) & (inside["epoch"] == epoch)]
            plain = at.loc[at["label_smoothing"] == 0]
            falls = [
                difference(at, value, column="label_smoothing", first=0.0, second=0.1, on=["data_seed"])["difference"]
                for value in ("confidence", "ece", "accuracy")
            ]
            values = (plain["confidence"] - plain["accuracy"], falls[0], plain["ece"], *falls[1:])
            lines.append(f"| {size:,.0f} | {epoch:.0f} | {' | '.join(_mean(each) for each in values)} |")
    return "\n".join(lines)


def verdicts(data: Path) -> str:
    """The claims of the study on both models, beside what had been predicted."""
    lines = ["| | model | verdict | predicted | measured |", "|---|---|---|---|---|"]
    both = {
        name: pd.read_csv(data / f"real_{short}_verdicts.csv").set_index("claim")
        for short, name in _judged(data).items()
    }
    for claim in next(iter(both.values())).index:
        for name, table in both.items():
            row: Any = table.loc[claim]
            size = f"{row['effect']}: {signed(row['mean'])} [{signed(row['low'])}, {signed(row['high'])}]"
            asked = f" {ASKED[claim]}" if claim in ASKED else ""
            lines.append(f"| {claim} | {name} | {row['verdict']}{asked} | {row['predicted']} | {size} |")
    return "\n".join(lines)


def predicted(data: Path) -> str:
    """What had been predicted of both models, part by part."""
    return real_predictions.predictions({name: _table(data, f"real_{short}") for short, name in _judged(data).items()})


def _judged(data: Path) -> dict[str, str]:
    """The models whose runs were enough for verdicts; Gemma, whose vocabulary was cut, is one."""
    there = {short: name for short, name in MODELS.items() if (data / f"real_{short}_verdicts.csv").exists()}
    return {"gemma": MODELS["gemma"], **there}


def _table(data: Path, name: str) -> pd.DataFrame:
    from analysis.lab.tables import find_table, read_table

    path = find_table(data, name)
    if path is None:
        raise FileNotFoundError(f"data must hold {name}.csv or {name}.csv.gz, got neither in {data}.")
    return read_table(path)


def _scored(table: pd.DataFrame, reading: str = "as_trained") -> pd.DataFrame:
    """Scores of what was not tuned on, of all files of questions together."""
    kept = (table["split"] == "scored") & (table["source"] == "all") & (table["reading"] == reading)
    return table.loc[kept & table["bin"].isna()]


def _stages(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    from analysis.claims.judging import EARLY

    asked = table.loc[table["exam"].isna() | (table["exam"] == "whole")]
    trained, fitted, last = _scored(asked), _scored(asked, "post_hoc"), table["epoch"].max()
    plain = trained.loc[trained["label_smoothing"] == 0]
    fit = table.loc[(table["split"] == "fit") & (table["view"] == "response") & (table["epoch"] > 0)]
    fit = fit.loc[(fit["label_smoothing"] == 0) & (fit["reading"] == "as_trained")]
    best = fit.loc[fit.groupby("data_seed")["nll"].idxmin(), ["data_seed", "epoch"]]
    stopped = plain.loc[plain["exam"].isna()].merge(best, on=["data_seed", "epoch"])
    smoothed = trained.loc[trained["label_smoothing"] == 0.1]
    rows = (
        plain.loc[plain["epoch"] == 0],
        plain.loc[plain["epoch"] == EARLY],
        smoothed.loc[smoothed["epoch"] == EARLY],
        plain.loc[plain["epoch"] == last],
        smoothed.loc[smoothed["epoch"] == last],
        fitted.loc[(fitted["label_smoothing"] == 0) & (fitted["epoch"] == last)],
        stopped,
    )
    return dict(zip(_STAGES, rows, strict=True))


def _mean(values: pd.Series) -> str:
    """Mean over seeds with its interval, where seeds differ."""
    from analysis.claims.statistics import mean_interval

    if values.empty:
        return ""
    low, high = (float(x[0]) for x in mean_interval(values.to_numpy(float)[:, None]))
    interval = f" [{signed(low)}, {signed(high)}]" if values.nunique() > 1 else ""
    return f"{signed(values.mean())}{interval}"
