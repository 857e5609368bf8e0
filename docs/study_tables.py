"""What the study found: in the README's sentences, and the claims, figures and thresholds of its pages."""

from __future__ import annotations

import json
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from table_text import shown, wrapped

__all__ = ["figures", "found", "thresholds", "verdicts"]

_LEAN = "Gemma-2-2B"  # the shape of the kernel's sentence
_FALLS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02)  # in confidence
_KEY = (
    "Epoch 2: the same rule where tuning ends after "
    "two epochs, the budget of the paper. Of the solver alone: deterministic targets are the same for every seed."
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
    real: Any = pd.read_csv(data / "instruction_verdicts.csv").fillna({"early_verdict": ""}).set_index("claim")
    model = json.loads((data / "instruction_full.json").read_text(encoding="utf-8"))["source"]["model"]
    lines = [
        "| | claim of the paper | verdict | measured | 95 % interval | on a real model |",
        "|---|---|---|---|---|---|",
    ]
    for row in table.itertuples():
        size = "" if pd.isna(row.mean) else f": {row.mean:.3f}"
        interval = "" if pd.isna(row.low) else f"{row.low:.3f} to {row.high:.3f}"
        interval += {"shapes": " (range over shapes)", "seeds": ""}.get(row.interval_over, " (of the solver alone)")
        verdict = f"{row.verdict} {row.depends_on}".strip() + (" (quick)" if row.claim in undecided else "")
        if row.early_verdict:
            size += f" (at epoch 2: {row.early_mean:.3f})"
            verdict += _then(row.verdict, row.early_verdict)
        there = real.loc[row.claim] if row.claim in real.index else None
        on_model = "" if there is None else there["verdict"] + _then(there["verdict"], there["early_verdict"])
        cells = (row.claim, row.statement, verdict, row.effect + size, interval, on_model)
        lines.append(f"| {' | '.join(cells)} |")
    unfinished = f"(quick): from `{shown(quick)}`, as the full grid is unfinished there; " if undecided else ""
    source = (
        f"From `{shown(path)}`, preset {table['preset'].iloc[0]}; {unfinished}real model: tunings of {model}, "
        f"which had been instruction-tuned before, `{shown(data / 'instruction_verdicts.csv')}`."
    )
    return "\n".join([*lines, "", wrapped(f"{_KEY} {source}")])


def _then(word: str, early: str) -> str:
    """What the verdict is where tuning ends after two epochs, if it is another."""
    return "" if early in ("", word) else f" (at epoch 2: {early})"


def _judged(path: Path) -> pd.DataFrame:
    """Verdicts with the numbers of their findings, which lie beside them."""
    from analysis.claims.findings import headlines

    return headlines(pd.read_csv(path), pd.read_csv(path.with_name("findings.csv")))


def found(data: Path) -> str:
    """What the study found, in sentences with one number each."""
    from analysis.lab.registry import experiment

    numbers: Any = pd.read_csv(data / "findings.csv")
    of_all = numbers[numbers["cell"].isna()].set_index(["claim", "finding"])["mean"]
    budget: Any = numbers[numbers["cell"] == "arm=budget"].set_index(["claim", "finding"])["mean"]
    cost: Any = pd.read_csv(data / "kernel.csv")
    cost = cost[
        (cost["shape"] == _LEAN)
        & (cost["mode"] == "loss and gradients")
        & (cost["label_smoothing"] == 0.1)
        & cost["softcap"].isna()
        & (cost["ignored"] == 0)
    ].set_index("implementation")
    share = cost.at["triton, default", "peak_mib"] / cost.at["eager", "peak_mib"]
    judged: Any = pd.read_csv(data / "verdicts.csv")
    words, kept = judged["verdict"].value_counts(), judged[judged["verdict"] == "supported"]
    holds = ", ".join(f"{row.claim}: {row.statement}".replace("NLL", "loss") for row in kept.itertuples())
    steps, of_64 = (numbers.loc[numbers["finding"] == f"step_from_{size}", "mean"] for size in (16, 64))
    remedies: Any = numbers[numbers["finding"].isin(["gain_of", "accuracy_loss_of"])]
    remedies = remedies.set_index(["finding", "cell"])["mean"]
    fitted, early = (remedies["gain_of", f"method={method}"] for method in ("b=0 post_hoc", "early stopping"))
    (examples,) = {config.examples for config in experiment("S7").configs("full")}
    both: Any = numbers.loc[numbers["finding"] == "gain_of_both", "mean"]
    real: Any = pd.read_csv(data / "instruction_findings.csv")
    elsewhere = real[real["cell"].isna()].set_index("finding")["mean"]["gain_elsewhere"]
    sentences = (
        "**Long tuning makes models over-confident**: in simulated instruction tuning the calibration error on the "
        f"pretraining distribution rose by {of_all['K1', 'rise_elsewhere_at_epoch_2']:.2f} after two epochs and "
        f"{of_all['K1', 'rise_elsewhere']:.2f} after {of_all['K1', 'last_epoch']:.0f} (over {examples} examples).",
        "**Smoothing helps if tuning is long**: with b = 0.1 the error on new questions was "
        f"{of_all['K2', 'gain']:.3f} lower at the end, {of_all['K2', 'gain_at_epoch_2']:.3f} after two epochs. A "
        f"fitted temperature ({fitted:.3f}) and early stopping ({early:.3f}, at "
        f"{remedies['accuracy_loss_of', 'method=early stopping']:.3f} of accuracy) did more. Smoothing harms where "
        "confidence exceeds accuracy by less than half of what it takes; on SmolLM2 it cost ordinary text "
        f"{-elsewhere:.2f} of calibration and {_lost_on_text(data):.2f} of accuracy.",
        "**Norms cap confidence, hidden size less so**: at fixed norms, hidden size 64 to 256 adds "
        f"{of_all['K3', 'step_from_64']:.2f} on average (at most {of_64.max():.2f}), 16 to 64 up to {steps.max():.2f}.",
        "**What smoothing takes can be predicted** in simulation (figure). It took less than 0.01 of confidence in all "
        f"{of_all['K4', 'settings_inert']:.0f} settings with deterministic targets and an index above 1.25.",
        "**Training at a lower temperature gives smoothing its effect back** under a bound on the norms, by "
        f"{budget['K5', 'rise']:.2f} of calibration error; but doing neither was as good or better in "
        f"{(both <= 0).sum()} of {len(both)} arms. Capping the logits rarely does.",
        f"**The loss is lean**: at {_LEAN}'s size it needs {share:.0%} of the memory of eager PyTorch's in the "
        "same time ([beside Liger-Kernel and others](docs/kernel.md#what-it-costs)).",
    )
    first = textwrap.fill(
        f"Of {words.sum()} claims {words.get('supported', 0)} holds as stated ({holds}) and "
        f"{words.get('depends on', 0)} depend on conditions ([each verdict](docs/study.md#claims-and-verdicts)).",
        120,
    )
    several = [
        textwrap.fill(f"{n}. {line}", 120, subsequent_indent="   ", break_long_words=False, break_on_hyphens=False)
        for n, line in enumerate(sentences, 1)
    ]
    return "\n".join([first, "", *several])


def _lost_on_text(data: Path) -> float:
    """Accuracy that b = .1 costs the tuned real model on ordinary text, at the last epoch, mean over seeds."""
    from analysis.lab.tables import find_table, read_table

    path = find_table(data, "instruction_full")
    assert path is not None
    rows: Any = read_table(path)
    rows = rows[(rows["view"] == "text") & (rows["reading"] == "as_trained") & (rows["epoch"] == rows["epoch"].max())]
    rows = rows[rows["softcap"].isna() & (rows["temperature"] == 1)]
    accuracy = rows.groupby("label_smoothing")["accuracy"].mean()
    return float(accuracy[0] - accuracy[0.1])


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
