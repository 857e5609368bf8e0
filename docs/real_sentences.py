"""What tunings of real models on pairs say of the paper's claims: sentences that follow from verdicts and findings."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd
from table_text import signed, wrapped

__all__ = ["found"]

_SMALL, _SHRINKS = 0.01, 0.03  # as of analysis/claims/pairs.py
_PAPER = (
    '"Large-vocabulary models of small hidden size cannot become over-confident, so that smoothing does little there"'
)
_WORDS = {
    "refuted": "it is refuted",
    "supported": "it is borne out",
    "depends on": "neither borne out nor refuted as it stands",
}


class _Number(NamedTuple):
    """A mean over seeds with its interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return signed(self.mean)
        return f"{signed(self.mean)} [{signed(self.low)}, {signed(self.high)}]"


class _Model(NamedTuple):
    """Verdicts and findings of one model."""

    name: str
    words: pd.Series
    findings: pd.DataFrame

    def number(self, claim: str, finding: str, cell: str = "") -> _Number:
        rows = self.findings
        rows = rows.loc[(rows["claim"] == claim) & (rows["finding"] == finding) & (rows["cell"].fillna("") == cell)]
        if len(rows) != 1:
            raise ValueError(f"findings of {self.name} must hold one {claim} {finding} {cell}, got {len(rows)}.")
        return _Number(*(float(rows[column].iloc[0]) for column in ("mean", "low", "high")))


def found(data: Path, models: dict[str, str], early_text: dict[str, str]) -> str:
    """A line for each claim and model.

    Args:
        data: Folder of the tables.
        models: Short name -> name; the first is the one whose vocabulary was cut.
        early_text: Short name -> what is said of ordinary text after the paper's two epochs.
    """
    several = []
    for short, name in models.items():
        words: pd.Series = pd.read_csv(data / f"real_{short}_verdicts.csv").set_index("claim")["verdict"]
        several.append(_Model(name, words, pd.read_csv(data / f"real_{short}_findings.csv")))
    lines = [_vocabulary(several[0])]
    for short, model in zip(models, several, strict=True):
        lines += [_without(model), _with(model, early_text[short])]
    return "\n".join("- " + wrapped(line).replace("\n", "\n  ") for line in lines)


def _vocabulary(model: _Model) -> str:
    """K4 on the model of large vocabulary, with what speaks against it."""
    word = str(model.words["K4"])
    whole, excess = model.number("K4", "fall"), model.number("K4", "excess")
    before, after = _activities(model)
    over = _judged(
        excess, 0.0, f"{model.name} became over-confident", "it stayed below its accuracy",
        "whether it became over-confident, seeds do not tell",
    )  # fmt: skip
    taken = _judged(
        whole, _SMALL, "smoothing of 0.1 acted", "smoothing of 0.1 did next to nothing",
        f"whether smoothing of 0.1 takes {_SMALL}, seeds do not tell",
    )  # fmt: skip
    return (
        f"**{_PAPER}** (K4): {_WORDS.get(word, word)}. Tuned without smoothing, {over}: confidence less accuracy is "
        f"{excess} on held-out responses. There {taken}: confidence falls by {whole} (after two epochs, the paper's "
        f"budget, by {model.number('K4', 'fall_at_epoch_2')}). {_cut(model)} Beside that: the "
        f"activity index of b = 0.1 on what was tuned on is {before} before tuning and {after} after it without "
        f"smoothing (above 1 it would be inert), and accuracy falls by {model.number('K4', 'accuracy_loss')}."
    )


def _cut(model: _Model) -> str:
    """Whether the fall shrinks as the vocabulary grows."""
    rows = model.findings
    sizes = rows.loc[(rows["claim"] == "K4") & (rows["finding"] == "fall_at"), "cell"]
    sizes = sorted(int(str(cell).removeprefix("V=")) for cell in sizes)
    if len(sizes) < 2:
        return "The vocabulary was not varied."
    least, most = sizes[0], sizes[-1]
    first, last = (model.number("K4", "fall_at", f"V={size}") for size in (least, most))
    shrinks = model.number("K4", "shrinks")
    said = _judged(
        shrinks, _SHRINKS, "so it shrinks as V grows", f"so it does not shrink by {_SHRINKS} as V grows",
        f"whether it shrinks by {_SHRINKS}, seeds do not tell",
    )  # fmt: skip
    return (
        f"On the same documents, the vocabulary varied inside the model, it is {first} at V = {least:,} and {last} at "
        f"V = {most:,}, the first less the second {shrinks}, {said}."
    )


def _without(model: _Model) -> str:
    """K1: what tuning without smoothing does."""
    text, asked = model.number("K1", "rise_elsewhere"), model.number("K1", "rise_asked_from_start")
    words = {rise: _judged(rise, 0.0, "rises", "falls", "moves by no established amount,") for rise in (text, asked)}
    return (
        f"**{model.name}, tuned without smoothing** (K1, {model.words['K1']}): from before tuning to the last epoch "
        f"the ECE on held-out responses {words[asked]} ({asked}), on ordinary text it {words[text]} ({text}; after two "
        f"epochs by {model.number('K1', 'rise_elsewhere_at_epoch_2')}). Among the options of questions, by normalised "
        f"cloze, it changes by {model.number('K1', 'rise_options')} from epoch 1 on."
    )


def _with(model: _Model, early_text: str) -> str:
    """K2: what smoothing does to calibration, and its rivals."""
    gain, text = model.number("K2", "gain"), model.number("K2", "gain_elsewhere")
    methods = ("b=0 post_hoc", "early stopping")
    fitted, early = (model.number("K2", "gain_of", f"method={name}") for name in methods)
    beyond = [model.number("K2", "gain_beyond_smoothing", f"method={name}") for name in methods]
    rank = "; ".join(
        _judged(
            more, 0.0, f"{name} lowers it further, by {more}", f"{name} lowers it less, by {more}",
            f"whether {name} lowers it further, seeds do not tell ({more})",
        )
        for name, more in zip(("a temperature fitted on other responses", "early stopping"), beyond, strict=True)
    )  # fmt: skip
    said = _judged(
        gain, 0.0, "lowers the ECE on held-out responses", "raises the ECE on held-out responses",
        "changes the ECE on held-out responses by no established amount",
    )  # fmt: skip
    return (
        f"**{model.name}, with b = 0.1** (K2, {model.words['K2']}): smoothing {said} (gain {gain}; on ordinary text "
        f"{text}; among the options of questions {model.number('K2', 'gain_options')}). "
        f"{_budget(model, early_text)} Accuracy on held-out responses falls by {model.number('K2', 'accuracy_loss')}. "
        f"A fitted temperature gains {fitted}, early stopping {early}; beside smoothing, in pairs, {rank}."
    )


def _budget(model: _Model, text: str) -> str:
    """What smoothing gains or costs where tuning ends after the paper's two epochs."""
    early = model.number("K2", "gain_at_epoch_2")
    said = _judged(
        early, 0.0, "already lowers the ECE on held-out responses", "raises the ECE on held-out responses",
        "leaves the sign open on held-out responses",
    )  # fmt: skip
    return f"**After two epochs, the paper's budget, it {said}** (gain {early}); {text}."


def _activities(model: _Model) -> tuple[_Number, _Number]:
    rows = model.findings
    cells = rows.loc[(rows["claim"] == "K4") & (rows["finding"] == "activity"), "cell"]
    epochs = sorted(int(str(cell).removeprefix("epoch=")) for cell in cells)
    first, last = (model.number("K4", "activity", f"epoch={epoch}") for epoch in (epochs[0], epochs[-1]))
    return first, last


def _judged(number: _Number, bound: float, above: str, below: str, neither: str) -> str:
    """What an interval says of a bound."""
    return above if number.low > bound else below if number.high < bound else neither
