"""What the README says of the study: its figure's caption, and what was found, in sentences that follow from tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import fall_ratios
import pandas as pd
from kernel_frontier import CLOSE, settings
from kernel_tables import OURS, SHAPES
from table_text import wrapped

__all__ = ["caption", "figure", "found"]


def caption(data: Path) -> str:
    """What the README's figure shows, in short."""
    squares, exact = _squares(_drawn(data)), _accuracy(data).loc[("det, arms too", "predicted_fall")]
    under, over = squares["fall"] / squares["clipped"], squares["predicted"] / squares["fall"]
    _still(under.min() > 0.98, "the clipped rule says too little in most transformers")
    _still(over.min() > 0.98, "P says too much in transformers")
    first = (
        "Each point is a setting trained with and without smoothing; on the line confidence fell as foretold from the "
        "latter."
    )
    panels = (
        "(a) The fall by the [response P](docs/theory.md#c6-how-far-confidence-falls) (hidden states fitted anew, head "
        f"frozen): exact to {exact['largest_error']:.3f} where one next token is right, less so where several are, too "
        "large for transformers.",
        "(b) The fall by the *clipped rule*, of mean confidence p, vocabulary V and "
        "[index A](docs/glossary.md#activity-index): rougher, too small for most transformers "
        "([how far off](docs/law_notes.md#the-readmes-figure)).",
    )
    return "\n".join([wrapped(first), *(f"- {panel}" for panel in panels)])


def figure(data: Path) -> str:
    """The README's figure in numbers: how many heads are drawn, and how far each prediction is off."""
    drawn = _drawn(data)
    squares, stars = _squares(drawn), drawn.loc[drawn["kind"].str.endswith(", tuned")]
    over, ratios = squares["predicted"] / squares["fall"], stars["fall"] / stars["clipped"]
    above = squares["fall"] / squares["clipped"]
    _still(bool(ratios.between(0.75, 2).all()), "tuned models fell once to twice as the rule says on training examples")
    new = fall_ratios.on_new_texts(data)
    lines = _accuracy(data)
    det, noisy = (lines.loc[(f"{kind}, arms too", "predicted_fall")] for kind in ("det", "noisy"))
    clipped = [lines.loc[(f"{kind}, arms too", "clipped_fall")] for kind in ("det", "noisy")]
    missed, farthest = ([line[name] for line in clipped] for name in ("missed", "largest_error"))
    settings = len(drawn) - len(squares) - len(stars)
    solved, kept = (
        lines.loc[(group, "predicted_fall"), "cells"] for group in ("all cells", "all cells, unsolved kept")
    )
    _still(kept - solved == 4, "in four settings the response was not solved")
    _still(settings == det["cells"] + noisy["cells"], "every setting that is judged is drawn")
    panels = (
        f"Circles and triangles are {settings} settings of small simulated heads, squares transformers trained from "
        "scratch, stars SmolLM2 and Gemma, tuned.",
        f"(a) *P* is exact to {det['largest_error']:.3f} where one next token is right; where several are (noisy), as "
        f"in text, it is off by more than 0.01 in {noisy['missed']} of {noisy['cells']}, at most by "
        f"{noisy['largest_error']:.3f} (four more, unsolved, are left out). In transformers trained from scratch it is "
        f"{over.min():.1f} to {over.max():.1f} times the fall.",
        f"(b) The *clipped rule* is off by more than 0.01 in {sum(missed)} of {settings}, at most by "
        f"{max(farthest):.3f}. Transformers trained from scratch fell by {above.min():.1f} to {above.max():.1f} times "
        f"what it says, SmolLM2 and Gemma, tuned, by {ratios.min():.1f} to {ratios.max():.1f} on training examples; on "
        f"new texts, not drawn, by {min(new):.1f} to {max(new):.1f} times.",
    )
    return "\n".join("- " + wrapped(panel).replace("\n", "\n  ") for panel in panels)


def _drawn(data: Path) -> Any:
    """The points of the README's figure."""
    from analysis.lab.tables import find_table, read_table
    from paper_figures import response

    names = (*response.TABLES, *response.OPTIONAL)
    return response.prepare({name: read_table(path) for name in names if (path := find_table(data, name)) is not None})


def _squares(drawn: Any) -> Any:
    """Those of transformers trained from scratch."""
    return drawn.loc[drawn["kind"] == "transformers"]


def _accuracy(data: Path) -> Any:
    """How near predictions are in simulated heads, by kind and predictor."""
    return pd.read_csv(data / "S9_accuracy.csv").set_index(["group", "predictor"])


def found(data: Path) -> str:
    """What the study found: six sentences with one number and one link each."""
    for name in ("gemma", "smollm2"):
        real: Any = pd.read_csv(data / f"real_{name}_verdicts.csv").set_index("claim")["verdict"]
        _still(real["K4"] == "refuted", "K4 is refuted on both real models")
    sentences = (*_of_tuning(data), *_of_heads(data), _of_the_loss(data))
    return "\n".join(f"{n}. {line}" for n, line in enumerate(sentences, 1))  # a line each: the README's are counted


def _of_tuning(data: Path) -> tuple[str, str]:
    """What tuning does to calibration (K1), and what smoothing does about it (K2)."""
    numbers: Any = pd.read_csv(data / "findings.csv")
    of_all = numbers[numbers["cell"].isna()].set_index(["claim", "finding"])["mean"]
    beyond: Any = numbers[numbers["finding"] == "gain_beyond_smoothing"].set_index("cell")["low"]
    rise, early = of_all["K1", "rise_elsewhere"], of_all["K1", "rise_elsewhere_at_epoch_2"]
    gain, early_gain = of_all["K2", "gain"], of_all["K2", "gain_at_epoch_2"]
    _still(early < 0.2 * rise, "after two epochs the error has risen far less (K1)")
    _still(early_gain < 0.01, "after two epochs smoothing takes next to nothing (K2)")
    rivals = beyond["method=b=0 post_hoc"], beyond["method=early stopping"]
    _still(min(rivals) > 0, "a temperature and early stopping take more of it (K2)")
    text, real = _on_text(data), pd.read_csv(data / "instruction_findings.csv")
    elsewhere: Any = real[real["cell"].isna()].set_index("finding")
    _still(text.excess > 0 and 2.5 < text.fall / text.excess < 3.5, "it takes three times SmolLM2's excess on text")
    _still(elsewhere.loc["gain_elsewhere", "high"] < 0, "smoothing harmed SmolLM2 on ordinary text")
    return (
        "**Long tuning makes models over-confident**: in simulation the calibration error on the pretraining "
        f"distribution rose by {rise:.2f} over many epochs, far less over the paper's few "
        "([tuning](docs/study_notes.md#as-expected)).",
        f"**Smoothing mends a part**: late in such a tuning it took {gain:.2f} off the calibration error on new "
        "examples, early next to nothing; a fitted temperature or early stopping mends more, and where little is wrong "
        "smoothing harms ([where it helps](docs/study_notes.md#where-smoothing-helps-and-where-it-harms-k2)).",
    )


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
    _still(gemma["K4", "fall"] > 0.1, "smoothing acted on Gemma at the last epoch, too (K4)")
    scratch: Any = pd.concat([pd.read_csv(data / f"{name}_findings.csv") for name in ("S11", "S12")])
    near = scratch.loc[(scratch["claim"] == "law") & (scratch["finding"] == "clipped_ratio"), "mean"]
    _still(
        fall_ratios.factor(near) < 1.25,
        "the clipped rule is near on new examples of transformers trained from scratch (C6)",
    )
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
    drawn = _drawn(data)
    squares, stars = _squares(drawn), drawn.loc[drawn["kind"].str.endswith(", tuned")]
    off = [
        *(squares["fall"] / squares["clipped"]),
        *(stars["fall"] / stars["clipped"]),
        *fall_ratios.on_new_texts(data),
    ]
    most, others = fall_ratios.factor(off), fall_ratios.of_others(data, squares["predicted"] / squares["fall"])
    _still(min(others.values()) > 0.8 * most, "nothing else that was tried in transformers kept much closer (C6)")
    budget: Any = numbers[numbers["cell"] == "arm=budget"].set_index(["claim", "finding"])["mean"]
    return (
        "**Norms cap confidence in simulated heads, hidden size less**; on Gemma, of small hidden size and large "
        f"vocabulary, where the paper expects little, smoothing took {gemma['K4', 'fall_at_epoch_2']:.2f} of "
        "confidence in the paper's few epochs ([how](docs/real_model_notes.md#two-models-tuned-on-pairs)).",
        "**What smoothing takes can be foretold in simulated heads, hardly in transformers**: there the clipped rule "
        f"was off by a factor of up to {most:.1f}, though near on new examples of those trained from scratch, and "
        "nothing else tried kept much closer "
        "([what was tried](docs/theory.md#c6-how-far-confidence-falls)).",
        "**Where bounded norms leave smoothing little effect a lower training temperature gives it back**, by "
        f"{budget['K5', 'rise']:.2f} of calibration error; not with free norms, and whether both together beat neither "
        "depends on the set-up ([temperature](docs/study_notes.md#temperature-k5)).",
    )


def _of_the_loss(data: Path) -> str:
    """What the loss takes beside PyTorch's (K7)."""
    eager, compiled = (_against(data, name, ["ms", "peak_mib"]) for name in ("eager", "torch.compile"))
    times: Any = pd.concat([eager["ms"], compiled["ms"]])
    cost, other = eager["peak_mib"], compiled["peak_mib"]
    _still(abs(cost / other - 1).max() < 0.01, "torch.compile needs as much memory as eager PyTorch")
    ahead = _ahead(data)
    _still(len(ahead) > 0, "tuned Liger is ahead at some head")
    _still(len(ahead) < 4, "tuned Liger is ahead at few heads")
    where = "one head" if len(ahead) == 1 else "some heads"
    _still((times < 1.1).all(), "the loss takes about the time of eager PyTorch and torch.compile, or less")
    return (
        f"**The loss is lean**: on Hopper it takes at most {cost.max():.0%} of the memory of eager PyTorch or "
        f"torch.compile and about their time or less; a tuned Liger-Kernel is ahead at {where} "
        "([beside others](docs/kernel.md#ours-beside-every-rival))."
    )


def _ahead(data: Path) -> set[str]:
    """Heads at which Liger-Kernel with smoothing is ahead of all of our workspaces of at most its memory.

    By more than what the page of the kernel calls level, as timed or at the clock that each call found.
    """
    from kernel.benchmark.results import Table, read

    table = Table(read(data / "kernel.csv"))
    found = [*settings(table), *settings(table, own_clock=True)]
    return {s.shape for s in found if s.smooths and s.name.startswith("Liger") and s.ratio > 1 + CLOSE}


def _still(holds: bool, words: str) -> None:
    """Words that stand for a number must be written anew where the tables say something else."""
    if not holds:
        raise ValueError(f"the tables no longer say what docs/readme_sentences.py writes without a number: {words}.")


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


def _on_text(data: Path) -> _Text:
    rows: Any = pd.read_csv(data / "instruction_full.csv")
    rows = rows[(rows["split"] == "test") & (rows["view"] == "text") & (rows["reading"] == "as_trained")]
    rows = rows[(rows["temperature"] == 1) & rows["softcap"].isna() & (rows["epoch"] == rows["epoch"].max())]
    of = rows.groupby("label_smoothing")[["confidence", "accuracy"]].mean()
    plain, smoothed = of.loc[0.0], of.loc[0.1]
    return _Text(
        excess=plain["confidence"] - plain["accuracy"],
        fall=plain["confidence"] - smoothed["confidence"],
    )
