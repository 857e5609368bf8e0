"""What the README says of the study: its figure's caption, and what was found, in sentences that follow from tables."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from kernel_tables import OURS, SHAPES
from real_tables import accuracy_lost
from table_text import wrapped

__all__ = ["caption", "found"]


def caption(data: Path) -> str:
    """What the README's figure shows, and how many heads are drawn."""
    from analysis.lab.tables import find_table, read_table
    from paper_figures import response

    names = (*response.TABLES, *response.OPTIONAL)
    drawn = response.prepare({name: read_table(path) for name in names if (path := find_table(data, name)) is not None})
    squares, stars = drawn.loc[drawn["kind"] == "transformers"], drawn.loc[drawn["kind"].str.endswith(", tuned")]
    over, ratios = squares["predicted"] / squares["fall"], stars["fall"] / stars["clipped"]
    above = squares["fall"] / squares["clipped"]
    _still(bool(ratios.between(0.75, 2).all()), "tuned models fell once to twice as the rule says on training examples")
    new: Any = pd.read_csv(data / "shared_changes.csv").set_index(["group", "predictor"])
    _still(bool(new.xs("clipped", level=1)["ratio"].between(0.3, 3.2).all()), "on new texts 0.3 to 3.2 times the rule")
    lines: Any = pd.read_csv(data / "S9_accuracy.csv").set_index(["group", "predictor"])
    det, noisy = (lines.loc[(f"{kind}, arms too", "predicted_fall")] for kind in ("det", "noisy"))
    clipped = [lines.loc[(f"{kind}, arms too", "clipped_fall")] for kind in ("det", "noisy")]
    missed, farthest = ([line[name] for line in clipped] for name in ("missed", "largest_error"))
    settings = len(drawn) - len(squares) - len(stars)
    solved, kept = (
        lines.loc[(group, "predicted_fall"), "cells"] for group in ("all cells", "all cells, unsolved kept")
    )
    _still(kept - solved == 4, "in four settings the response was not solved")
    _still(settings == det["cells"] + noisy["cells"], "every setting that is judged is drawn")
    first = (
        f"Circles and triangles: {settings} settings of small simulated heads; on the line the fall is as computed "
        "from the head trained without smoothing."
    )
    panels = (
        "(a) The [response P](docs/theory.md#c6-how-far-confidence-falls) (each hidden state re-fitted, head frozen): "
        f"exact to {det['largest_error']:.3f} where one next token is right; where several are (noisy), as in text, "
        f"off by more than 0.01 in {noisy['missed']} of {noisy['cells']}, at most {noisy['largest_error']:.3f} "
        "(four more, unsolved, are left out). "
        f"Squares: transformers trained from scratch, P {over.min():.1f} to {over.max():.1f} times the fall.",
        "(b) The *clipped rule*, of mean confidence p, vocabulary V and [index A](docs/glossary.md#activity-index): "
        f"off by more than 0.01 in {sum(missed)} of {settings}, at most {max(farthest):.3f}. Squares fell by "
        f"{above.min():.1f} to {above.max():.1f} times what it says, stars (SmolLM2 and Gemma, tuned) by "
        f"{ratios.min():.1f} to {ratios.max():.1f} on training examples; on new texts, not drawn, by 0.3 to 3.2 "
        "times.",
    )
    return "\n".join([wrapped(first), *("- " + wrapped(panel).replace("\n", "\n  ") for panel in panels)])


def found(data: Path) -> str:
    """What the study found: what became of the claims, and six sentences with a number and a link each."""
    judged: Any = pd.read_csv(data / "verdicts.csv")
    words, kept = judged["verdict"].value_counts(), judged[judged["verdict"] == "supported"]
    holds = ", ".join(row.statement.replace("NLL", "loss") for row in kept.itertuples())
    for name in ("gemma", "smollm2"):
        real: Any = pd.read_csv(data / f"real_{name}_verdicts.csv").set_index("claim")["verdict"]
        _still(real["K4"] == "refuted" and real["K9"] == "supported", "K4 is refuted on both real models, K9 is not")
    lost = (_on_text(data).accuracy_lost, accuracy_lost(data, "gemma"), accuracy_lost(data, "smollm2"))
    _still(min(lost[:2]) > 0.005 > abs(lost[2]), "two of three real tunings lost accuracy on other text")
    holds_so, depend = words.get("supported", 0), words.get("depends on", 0)
    _still(
        (holds_so, depend, words.sum()) == (1, 8, 9), "of nine claims one holds as stated, eight depend on conditions"
    )
    first = wrapped(
        f"In simulation one claim of nine holds: {holds}. (Two of three real tunings lost accuracy on other text.) "
        "Eight depend on conditions; on both real models *little effect at small hidden size and large vocabulary* is "
        "refuted ([each verdict](docs/study.md#claims-and-verdicts))."
    )
    sentences = (*_of_tuning(data), *_of_heads(data), _of_the_loss(data))
    several = [
        textwrap.fill(f"{n}. {line}", 120, subsequent_indent="   ", break_long_words=False, break_on_hyphens=False)
        for n, line in enumerate(sentences, 1)
    ]
    return "\n".join([first, "", *several])


def _of_tuning(data: Path) -> tuple[str, str]:
    """What tuning does to calibration (K1), and what smoothing does about it (K2)."""
    numbers: Any = pd.read_csv(data / "findings.csv")
    of_all = numbers[numbers["cell"].isna()].set_index(["claim", "finding"])["mean"]
    beyond: Any = numbers[numbers["finding"] == "gain_beyond_smoothing"].set_index("cell")["low"]
    rise, early = of_all["K1", "rise_elsewhere"], of_all["K1", "rise_elsewhere_at_epoch_2"]
    gain, early_gain = of_all["K2", "gain"], of_all["K2", "gain_at_epoch_2"]
    left = _left(data)
    _still(0.45 < gain / (gain + left) < 0.55, "smoothing takes half of the error (K2)")
    rivals = beyond["method=b=0 post_hoc"], beyond["method=early stopping"]
    _still(min(rivals) > 0, "a temperature and early stopping take more of it (K2)")
    text, real = _on_text(data), pd.read_csv(data / "instruction_findings.csv")
    elsewhere: Any = real[real["cell"].isna()].set_index("finding")
    _still(text.excess > 0 and 2.5 < text.fall / text.excess < 3.5, "it takes three times SmolLM2's excess on text")
    _still(elsewhere.loc["gain_elsewhere", "high"] < 0, "smoothing harmed SmolLM2 on ordinary text")
    return (
        "**Long tuning makes models over-confident**: in simulation the calibration error on the pretraining "
        f"distribution rose by {early:.2f} in two epochs, {rise:.2f} in {of_all['K1', 'last_epoch']:.0f} "
        "([tuning](docs/study_notes.md#as-expected)).",
        f"**Smoothing mends a part**: it took {gain:.2f} off the calibration error on new examples of the task, half "
        f"of it, at the last epoch, {early_gain:.3f} at the second; a fitted temperature or early stopping mends more, "
        "and where little is wrong smoothing harms "
        "([where it helps](docs/study_notes.md#where-smoothing-helps-and-where-it-harms-k2)).",
    )


def _left(data: Path) -> float:
    """The error on new examples that smoothing leaves in simulated tuning, at the last epoch."""
    from analysis.lab.tables import find_table, read_table

    path = find_table(data, "S7")
    if path is None:
        raise FileNotFoundError(f"data must hold S7, got none in {data}.")
    rows: Any = read_table(path)
    rows = rows[(rows["distribution"] == "shifted") & (rows["method"] == "b=0.1") & (rows["reading"] == "as_trained")]
    return float(rows.loc[rows["epoch"] == rows["epoch"].max(), "true_ece"].mean())


def _of_heads(data: Path) -> tuple[str, str, str]:
    """Ceilings (K3), what predicts a fall, and temperature (K5)."""
    numbers: Any = pd.read_csv(data / "findings.csv")
    for name in ("smollm2", "gemma"):
        audit: Any = pd.read_csv(data / f"audit_{name}.csv", dtype={"group": str})
        least = audit.loc[(audit["part"] == "cap") & (audit["group"] == "0.1"), "value"].min()
        asked = audit.loc[(audit["name"] == "asked_gap") & (audit["group"] == "0.1"), "value"].iloc[0]
        _still(least > 10 * asked, "no real head is near a cap (K3)")
    tuned: Any = pd.read_csv(data / "real_gemma_findings.csv")
    gemma = tuned[tuned["cell"].isna()].set_index(["claim", "finding"])["mean"]
    _still(gemma["K4", "excess"] > 0.1, "Gemma became over-confident (K4)")
    scratch: Any = pd.concat([pd.read_csv(data / f"{name}_findings.csv") for name in ("S11", "S12")])
    law = scratch.loc[(scratch["claim"] == "law") & scratch["finding"].isin(["scale_ratio", "gain_ratio"]), "mean"]
    _still(law.min() > 1, "shared changes say too much in transformers trained from scratch")
    changes: Any = pd.read_csv(data / "shared_changes.csv").set_index(["group", "predictor"])["error"]
    _still(changes["all cells"].min() > 0.2, "nothing predicts the fall of real models well (C6)")
    both: Any = numbers[numbers["finding"] == "gain_of_both"]
    better, worse, arms = (both["low"] > 0).sum(), (both["high"] < 0).sum(), len(both)
    _still((better, worse, arms) == (1, 1, 5), "of five arms both were better than neither in one, worse in one (K5)")
    free: Any = numbers[
        (numbers["claim"] == "K5") & numbers["cell"].isin(["arm=free norms", "arm=trunk with free norms"])
    ]
    restored = free.loc[free["finding"].isin(["rise", "fall_rise"]), "mean"]
    _still(len(restored) == 4 and restored.abs().max() < 0.001, "with free norms a temperature restores nothing (K5)")
    shared: Any = pd.read_csv(data / "shared_changes.csv").query("predictor in ['scale', 'gain']")["ratio"]
    most = max(law.max(), (1 / shared).max())
    budget: Any = numbers[numbers["cell"] == "arm=budget"].set_index(["claim", "finding"])["mean"]
    return (
        "**Norms cap confidence in simulated heads, hidden size less**; Gemma, "
        f"of large vocabulary and small hidden size, became over-confident by {gemma['K4', 'excess']:.2f} in eight "
        "epochs ([how](docs/real_model_notes.md#two-models-tuned-on-pairs)).",
        "**What smoothing takes can be foretold in single simulated heads, hardly in transformers**: there the clipped "
        "rule gives the order of magnitude; changes shared by all features overstate the fall up "
        f"to {most:.0f} times ([what was tried](docs/theory.md#c6-how-far-confidence-falls)).",
        "**A lower training temperature gives smoothing its effect back** under a bound on the norms, "
        f"{budget['K5', 'rise']:.2f} of calibration error, not with free norms; smoothing with it beat using neither "
        "in one of five set-ups, lost in one, three open ([temperature](docs/study_notes.md#temperature-k5)).",
    )


def _of_the_loss(data: Path) -> str:
    """What the loss takes beside PyTorch's (K7)."""
    eager, compiled = (_against(data, name, ["ms", "peak_mib"]) for name in ("eager", "torch.compile"))
    times: Any = pd.concat([eager["ms"], compiled["ms"]])
    cost, other = eager["peak_mib"], compiled["peak_mib"]
    _still(abs(cost / other - 1).max() < 0.01, "torch.compile needs as much memory as eager PyTorch")
    ahead = [any(name.startswith("Liger") for name in names) for names in _ahead(data).values()]
    _still(0 < sum(ahead) < len(ahead), "tuned Liger is ahead at some sizes")
    return (
        f"**The loss is lean**: on an H200 it takes {times.min():.2f} to {times.max():.2f} of the time and "
        f"{100 * cost.min():.0f} to {cost.max():.0%} of the memory of eager PyTorch or torch.compile; tuned Liger is "
        "ahead at some sizes ([beside others](docs/kernel.md#ours-beside-every-rival))."
    )


def _ahead(data: Path) -> dict[str, list[str]]:
    """At each head the rivals that are faster than any of our workspaces of at most their memory."""
    from kernel.benchmark.results import Table, read

    table = Table(read(data / "kernel.csv"))
    return {shape: [beside.name for beside in table.ahead(shape) or []] for shape in table.shapes}


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


class _Text(NamedTuple):
    """SmolLM2-135M-Instruct on ordinary text at the last epoch, in probability."""

    excess: float  # confidence less accuracy without smoothing
    fall: float  # in confidence, by b = 0.1
    accuracy_lost: float  # by b = 0.1


def _on_text(data: Path) -> _Text:
    rows: Any = pd.read_csv(data / "instruction_full.csv")
    rows = rows[(rows["split"] == "test") & (rows["view"] == "text") & (rows["reading"] == "as_trained")]
    rows = rows[(rows["temperature"] == 1) & rows["softcap"].isna() & (rows["epoch"] == rows["epoch"].max())]
    of = rows.groupby("label_smoothing")[["confidence", "accuracy"]].mean()
    plain, smoothed = of.loc[0.0], of.loc[0.1]
    return _Text(
        excess=plain["confidence"] - plain["accuracy"],
        fall=plain["confidence"] - smoothed["confidence"],
        accuracy_lost=plain["accuracy"] - smoothed["accuracy"],
    )
