"""What the study found: in the README's sentences, and the claims, figures and thresholds of its pages."""

from __future__ import annotations

import json
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from kernel_tables import OURS, RIVAL, SHAPES
from real_tables import MODELS
from table_text import shown, wrapped

__all__ = ["caption", "figures", "found", "thresholds", "verdicts"]

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
    names = {
        "instruction_verdicts": "on a real model",
        **{f"real_{short}_verdicts": f"on {name}" for short, name in MODELS.items()},
    }
    real: dict[str, Any] = {
        name: pd.read_csv(data / f"{table}.csv").fillna({"early_verdict": ""}).set_index("claim")
        for table, name in names.items()
        if (data / f"{table}.csv").exists()
    }
    model = json.loads((data / "instruction_full.json").read_text(encoding="utf-8"))["source"]["model"]
    lines = [
        f"| | claim of the paper | verdict | measured | 95% interval | {' | '.join(real)} |",
        "|---" * (5 + len(real)) + "|",
    ]
    for row in table.itertuples():
        size = "" if pd.isna(row.mean) else f": {row.mean:.3f}"
        interval = "" if pd.isna(row.low) else f"{row.low:.3f} to {row.high:.3f}"
        interval += {"shapes": " (range over shapes)", "seeds": ""}.get(row.interval_over, " (of the solver alone)")
        verdict = f"{row.verdict} {row.depends_on}".strip() + (" (quick)" if row.claim in undecided else "")
        if row.early_verdict:
            size += f" (at epoch 2: {row.early_mean:.3f})"
            verdict += _then(row.verdict, row.early_verdict)
        on_models = [_on_model(judged, row.claim) for judged in real.values()]
        cells = (row.claim, row.statement, verdict, row.effect + size, interval, *on_models)
        lines.append(f"| {' | '.join(cells)} |")
    unfinished = f"(quick): from `{shown(quick)}`, as the full grid is unfinished there; " if undecided else ""
    source = (
        f"From `{shown(path)}`, preset {table['preset'].iloc[0]}; {unfinished}real model: tunings of {model}, "
        f"which had been instruction-tuned before, `{shown(data / 'instruction_verdicts.csv')}`."
    )
    if len(real) > 1:
        source += " Named models: tuned on pairs of instruction and response, `paper_figures/data/real_*_verdicts.csv`."
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
        f"([each part](study_notes.md#the-law-s9), `{shown(data / 'S9_predictions.csv')}`, "
        "`python -m analysis.claims.response`)."
    )


def _on_model(judged: Any, claim: str) -> str:
    """The verdict on a real model; empty where the claim was not asked of it."""
    if claim not in judged.index:
        return ""
    row = judged.loc[claim]
    return row["verdict"] + _then(row["verdict"], row["early_verdict"])


def _then(word: str, early: str) -> str:
    """What the verdict is where tuning ends after two epochs, if it is another."""
    return "" if early in ("", word) else f" (at epoch 2: {early})"


def _judged(path: Path) -> pd.DataFrame:
    """Verdicts with the numbers of their findings, which lie beside them."""
    from analysis.claims.findings import headlines

    return headlines(pd.read_csv(path), pd.read_csv(path.with_name("findings.csv")))


def caption(data: Path) -> str:
    """What the README's figure shows, and how many heads are drawn."""
    from analysis.lab.tables import find_table, read_table
    from paper_figures import response

    names = (*response.TABLES, *response.OPTIONAL)
    drawn = response.prepare({name: read_table(path) for name in names if (path := find_table(data, name)) is not None})
    heads, stars = int(drawn["heads"].max()), drawn.loc[drawn["heads"].isna()]
    ratios = stars["fall"] / stars["clipped"]
    _still(bool(ratios.between(0.75, 1.35).all()), "tuned models fell about as the rule says on training examples")
    new: Any = pd.read_csv(data / "shared_changes.csv").set_index(["group", "predictor"])
    _still(bool(new.xs("clipped", level=1)["ratio"].between(0.7, 3.1).all()), "on new texts 0.7 to 3.1 times the rule")
    lines: Any = pd.read_csv(data / "S9_accuracy.csv").set_index(["group", "predictor"])
    det, noisy = (lines.loc[(f"{kind}, arms too", "predicted_fall")] for kind in ("det", "noisy"))
    rough, other = (lines.loc[("noisy, arms too", f"{rule}_fall"), "missed"] for rule in ("clipped", "rational"))
    return wrapped(
        f"Each mark is a setting of small simulated heads ({heads:,}), last linear layers, trained with and without "
        "smoothing. (a) The fall in confidence, told from the head without it, nothing fitted "
        "([how](docs/theory.md#c6-how-far-confidence-falls)): exact to "
        f"{det['largest_error']:.3f} where one next token is right; where several are (noisy), as in text, off by more "
        f"than 0.01 in {noisy['missed']} of {noisy['cells']} settings, {noisy['largest_error']:.3f} at most "
        "([where](docs/study_notes.md#the-law-s9)). (b) Two numbers, confidence p and index A (below), miss so in "
        f"{rough}; `b (p - 1/V) / (1 + A)` in only {other}, but it fails for one right token. SmolLM2 and Gemma "
        f"fell by {ratios.min():.1f} to {ratios.max():.1f} times (b) on training examples (stars; (a) has no say); on "
        "new texts, not drawn, by 0.7 to 3.1 times."
    )


def found(data: Path) -> str:
    """What the study found, in sentences with a number and a link each."""
    numbers: Any = pd.read_csv(data / "findings.csv")
    of_all = numbers[numbers["cell"].isna()].set_index(["claim", "finding"])["mean"]
    budget: Any = numbers[numbers["cell"] == "arm=budget"].set_index(["claim", "finding"])["mean"]
    remedies: Any = numbers[numbers["finding"] == "gain_of"].set_index("cell")["mean"]
    fitted, early = (remedies[f"method={method}"] for method in ("b=0 post_hoc", "early stopping"))
    both: Any = numbers.loc[numbers["finding"] == "gain_of_both", "mean"]
    real: Any = pd.read_csv(data / "instruction_findings.csv")
    elsewhere = real[real["cell"].isna()].set_index("finding")["mean"]["gain_elsewhere"]
    steps, of_64 = (numbers.loc[numbers["finding"] == f"step_from_{size}", "mean"] for size in (16, 64))
    cost, time = _against(data, "eager", "peak_mib"), _against(data, "eager", "ms")
    rivals: Any = pd.concat([_against(data, name, ["ms", "peak_mib"]) for name in ("torch.compile", RIVAL)])
    rise, early_rise = of_all["K1", "rise_elsewhere"], of_all["K1", "rise_elsewhere_at_epoch_2"]
    gain, early_gain = of_all["K2", "gain"], of_all["K2", "gain_at_epoch_2"]
    _still(rise > 0 and 5 * early_rise < rise, "hardly after two epochs (K1)")
    _still(
        5 * early_gain < gain < min(fitted, early) and elsewhere < 0, "a temperature and early stopping did more (K2)"
    )
    step = of_all["K3", "step_from_64"]
    _still(0 < step < min(0.02, steps.max()) and of_64.max() < steps.max(), "hardly gains above 64 dimensions (K3)")
    tuned: Any = pd.read_csv(data / "real_gemma_findings.csv")
    gemma = tuned[tuned["cell"].isna()].set_index(["claim", "finding"])["mean"]
    _still(gemma["K4", "fall"] > gemma["K4", "excess"] > 0, "smoothing took Gemma's excess (K4)")
    _still(gemma["K2", "gain"] > 0 > gemma["K2", "gain_at_epoch_2"], "smoothing harmed Gemma after two epochs")
    scratch: Any = pd.concat([pd.read_csv(data / f"{name}_findings.csv") for name in ("S11", "S12")])
    _still((both <= 0).mean() > 0.5, "doing neither was as good or better in most arms (K5)")
    _still((rivals["ms"] > 1).mean() > 0.5, "torch.compile and tuned Liger are mostly faster")
    _still(time.min() > 0.8 and time.max() < 1.1, "the loss takes about eager PyTorch's time")
    _still(bool((rivals["peak_mib"] < 1).all()), "torch.compile and tuned Liger need more memory")
    inert = of_all["K4", "fall_where_inert"], of_all["K4", "obeyed_inert"]
    _still(abs(inert[0]) < 0.001 and inert[1] == 1, "next to nothing where an index is well above one (K4)")
    excess, taken = _on_text(data)
    _still(excess > 0 and 2.5 < taken / excess < 3.5, "smoothing takes three times SmolLM2's excess on text")
    law = scratch.loc[(scratch["claim"] == "law") & scratch["finding"].isin(["scale_ratio", "gain_ratio"]), "mean"]
    least, most = law.min(), law.max()
    _still(least > 1, "predictions were too large in transformers trained from scratch")
    sentences = (
        "**Long tuning makes models over-confident**: in simulated instruction tuning the calibration error on the "
        f"pretraining distribution rose by {rise:.2f}, hardly any of it in the first two epochs "
        "([tuning](docs/study_notes.md#as-expected)).",
        f"**Smoothing mends a part of that**, {gain:.2f} of error on new questions, little after two epochs; a fitted "
        "temperature or early stopping mends more. It takes confidence with or without an excess: it harmed "
        "SmolLM2 on text, Gemma after two epochs "
        "([where it helps](docs/study_notes.md#where-smoothing-helps-and-where-it-harms-k2)).",
        "**Norms (lengths of states, head rows) cap confidence, hidden size less**: at fixed norms it hardly gains "
        "above 64 dimensions. Large-vocabulary, small Gemma-3-270M became over-confident by "
        f"{gemma['K4', 'excess']:.2f} in eight epochs; smoothing took that "
        "([how](docs/real_model_notes.md#two-models-tuned-on-pairs)).",
        "**What smoothing takes can be predicted in single simulated heads**: next to nothing in each with "
        "deterministic targets and an index well above one. For transformers from scratch predictions were "
        f"{least:.1f} to {most:.1f} times the fall, tuned models have none "
        "([the index](docs/study_notes.md#two-numbers-that-say-when-smoothing-acts-k4)).",
        "**A lower training temperature gives smoothing its effect back** under a bound on the norms, "
        f"{budget['K5', 'rise']:.2f} of calibration error, but doing neither was mostly as good "
        "([temperature](docs/study_notes.md#temperature-k5)).",
        "**The loss is lean**: in about eager PyTorch's time on an H200 with "
        f"{100 * cost.min():.0f} to {cost.max():.0%} of its memory at three sizes; torch.compile and tuned "
        "Liger are mostly faster and need more ([beside others](docs/kernel.md#what-it-costs)).",
    )
    judged: Any = pd.read_csv(data / "verdicts.csv")
    words, kept = judged["verdict"].value_counts(), judged[judged["verdict"] == "supported"]
    holds = ", ".join(row.statement.replace("NLL", "loss") for row in kept.itertuples())
    first = wrapped(
        f"Of {words.sum()} claims {words.get('supported', 0)} holds as stated, in simulation ({holds}), and "
        f"{words.get('depends on', 0)} depend on conditions ([each verdict](docs/study.md#claims-and-verdicts))."
    )
    several = [
        textwrap.fill(f"{n}. {line}", 120, subsequent_indent="   ", break_long_words=False, break_on_hyphens=False)
        for n, line in enumerate(sentences, 1)
    ]
    return "\n".join([first, "", *several])


def _still(holds: bool, words: str) -> None:
    """Words that stand for a number must be written anew where the tables say something else."""
    if not holds:
        raise ValueError(f"the tables no longer say what docs/study_tables.py writes without a number: {words}.")


def _against(data: Path, rival: str, columns: str | list[str]) -> Any:
    """What the loss takes over what a rival does, at each shape of the kernel's table."""
    rows: Any = pd.read_csv(data / "kernel.csv")
    rows = rows[(rows["mode"] == "loss and gradients") & (rows["label_smoothing"] == 0.1) & rows["shape"].isin(SHAPES)]
    rows = rows[rows["softcap"].isna() & (rows["ignored"] == 0)].set_index(["shape", "implementation"])[columns]
    return rows.xs(OURS, level=1) / rows.xs(rival, level=1)


def _on_text(data: Path) -> tuple[float, float]:
    """By how much SmolLM2, tuned without smoothing, is surer than right on ordinary text, and what b = 0.1 takes."""
    rows: Any = pd.read_csv(data / "instruction_full.csv")
    rows = rows[(rows["split"] == "test") & (rows["view"] == "text") & (rows["reading"] == "as_trained")]
    rows = rows[(rows["temperature"] == 1) & rows["softcap"].isna() & (rows["epoch"] == rows["epoch"].max())]
    of = rows.groupby("label_smoothing")[["confidence", "accuracy"]].mean()
    plain = of.loc[0.0]
    return plain["confidence"] - plain["accuracy"], plain["confidence"] - of.loc[0.1, "confidence"]


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
