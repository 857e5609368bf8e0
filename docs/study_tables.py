"""What the study found: the claims, figures and thresholds of its pages."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from real_tables import ASKED, ASKED_EARLY, MODELS
from table_text import shown, wrapped

__all__ = ["figures", "thresholds", "verdicts"]

_FALLS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02)  # in confidence
_KEY = (
    "Epoch 2: the same rule where tuning ends after two epochs, the budget of the paper; neither: it is neither "
    "supported nor refuted there. Of the solver alone: deterministic targets are the same for every seed."
)


def verdicts(data: Path) -> str:
    """The claims, what became of them, and the real model; where the full table leaves one open, the quick line."""
    quick = data / "quick" / "verdicts.csv"
    path = next(p for p in (data / "verdicts.csv", quick) if p.exists())
    table: Any = _judged(path)
    undecided = set(table.loc[table["verdict"] == "not decided", "claim"]) if path != quick else set()
    if undecided:
        small: Any = _judged(quick)
        table = pd.concat([table[~table["claim"].isin(undecided)], small[small["claim"].isin(undecided)]])
        table = table.sort_values("claim", kind="stable")
    model = json.loads((data / "instruction_full.json").read_text(encoding="utf-8"))["source"]["model"]
    names = {
        "instruction_verdicts": f"on {model.partition('.')[0]}, tuned on questions",
        **{f"real_{short}_verdicts": f"on {name}, tuned on pairs" for short, name in MODELS.items()},
    }
    texts = dict.fromkeys(("early_verdict", "depends_on"), object)  # a column that is empty would be one of numbers
    real: dict[str, Any] = {
        name: pd.read_csv(data / f"{table}.csv", dtype=texts).fillna(dict.fromkeys(texts, "")).set_index("claim")
        for table, name in names.items()
        if (data / f"{table}.csv").exists()
    }
    lines = [
        f"| | claim of the paper | verdict | measured | 95% interval | {' | '.join(real)} |",
        "|---" * (5 + len(real)) + "|",
    ]
    for row in table.itertuples():
        size = "" if pd.isna(row.mean) else f": {row.mean:.3f}"
        interval = "" if pd.isna(row.low) else f"{row.low:.3f} to {row.high:.3f}"
        interval += {"shapes": " (range over shapes and workspaces)", "seeds": ""}.get(
            row.interval_over, " (of the solver alone)"
        )
        verdict = f"{row.verdict} {row.depends_on}".strip() + (" (quick)" if row.claim in undecided else "")
        if row.early_verdict:
            size += f" (at epoch 2: {row.early_mean:.3f})"
            verdict += _then(row.verdict, row.early_verdict)
        on_models = [_on_model(judged, row.claim, "pairs" in name) for name, judged in real.items()]
        cells = (row.claim, row.statement, verdict, row.effect + size, interval, *on_models)
        lines.append(f"| {' | '.join(cells)} |")
    unfinished = f"(quick): from `{shown(quick)}`, as the full grid is unfinished there; " if undecided else ""
    source = (
        f"From `{shown(path)}`, preset {table['preset'].iloc[0]}; {unfinished}questions: 8 epochs of {model}, "
        f"which had been instruction-tuned before, `{shown(data / 'instruction_verdicts.csv')}`."
    )
    if len(real) > 1:
        source += " Pairs: 8 epochs on instructions and responses, `paper_figures/data/real_*_verdicts.csv`."
    law = ["", wrapped(_law(data))] if (data / "S9_predictions.csv").exists() else []
    return "\n".join([*lines, "", wrapped(f"{_KEY} {source}"), *law])


def _law(data: Path) -> str:
    """The package's own law, which is no claim of the paper: how many parts of what was predicted hold."""
    holds: Any = pd.read_csv(data / "S9_predictions.csv")
    words = holds["holds"].value_counts()
    whole = holds.groupby("prediction")["holds"].agg(lambda each: (each == "yes").all())
    return (
        "The package's own law (S9), how far confidence falls, is no claim of the paper: of its "
        f"{len(whole)} predictions {int(whole.sum()) or 'none'} holds in all parts; of {len(holds)} parts "
        f"{words['yes']} hold, {words['no']} do not, {len(holds) - words['yes'] - words['no']} are open "
        f"([each part](law_notes.md), `{shown(data / 'S9_predictions.csv')}`, "
        "`python -m analysis.claims.response`)."
    )


def _on_model(judged: Any, claim: str, on_pairs: bool) -> str:
    """The verdict on a real model; empty where the claim was not asked of it."""
    if claim not in judged.index:
        return ""
    row = judged.loc[claim]
    asked, early = (f" {words[claim]}" if on_pairs and claim in words else "" for words in (ASKED, ASKED_EARLY))
    word = f"{row['verdict']} {row['depends_on']}".strip()
    return word + asked + _then(row["verdict"], row["early_verdict"], early)


def _then(word: str, early: str, asked: str = "") -> str:
    """What the verdict is where tuning ends after two epochs, if it is another; it has no condition of its own."""
    return "" if early in ("", word) else f" (at epoch 2: {'neither' if early == 'depends on' else early}{asked})"


def _judged(path: Path) -> pd.DataFrame:
    """Verdicts with the numbers of their findings, which lie beside them."""
    from analysis.claims.findings import headlines

    return headlines(pd.read_csv(path), pd.read_csv(path.with_name("findings.csv")))


def figures(data: Path) -> str:
    """Every figure, what it shows, the tables that it draws and the command that makes the first of them."""
    from paper_figures import FIGURES
    from paper_figures.tables import needed_command

    lines = ["| figure | shows | tables | the first made by |", "|---|---|---|---|"]
    for name, path in FIGURES.items():
        module = import_module(path)
        shows = (module.__doc__ or "").partition("\n")[0].rstrip(".")
        command, _, needs = needed_command(module.TABLES[0], "quick").partition(" (")
        made = f"`{command}`" + (f" ({needs}" if needs else "")
        lines.append(f"| `{name}` | {shows} | {', '.join(f'`{table}`' for table in module.TABLES)} | {made} |")
    return "\n".join(lines)


def thresholds(data: Path) -> str:
    """Predictors of where smoothing acts below full rank: heads on the wrong side, by what is called acting."""
    rows: Any = pd.read_csv(data / "transition.csv")
    rows = rows[rows["hidden_size"] < np.log(rows["vocab_size"])]
    fall = (rows["confidence_plain"] - rows["confidence_smoothed"]).abs()
    asked = 1 - rows["label_smoothing"] * (1 - 1 / rows["vocab_size"])
    acting = {
        "rho > 1": ("m, V, b", rows["effectiveness_ratio"] > 1),
        "rho with the rank-aware bound > 1": ("m, V, D, b", rows["rank_ratio"] > 1),
        "activity index A < 1": ("forward passes of the plain head", rows["activity_index"] < 1),
        "predicted activity < 1": ("m, V, D, b", rows["predicted_activity"] < 1),
        "plain confidence > 1 - b + b/V": ("forward passes of the plain head", rows["confidence_plain"] > asked),
    }
    head = f"| wrong of {len(rows)}, where a fall counts from | needs | {' | '.join(map('{:g}'.format, _FALLS))} |"
    lines = [head, "|---|---|" + "---|" * len(_FALLS)]
    for name, (needs, acts) in acting.items():
        wrong = [str(int((acts != (fall > least)).sum())) for least in _FALLS]
        lines.append(f"| {name} | {needs} | {' | '.join(wrong)} |")
    counted = [str(int((fall > least).sum())) for least in _FALLS]
    return "\n".join([*lines, f"| heads that fall by more | | {' | '.join(counted)} |"])
