"""What had been predicted of models tuned on pairs, part by part, beside what came."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf
from typing import NamedTuple

import pandas as pd
from table_text import signed

__all__ = ["predictions"]


class _Part(NamedTuple):
    """One part of a prediction: it holds where the whole interval over seeds lies between ``least`` and ``most``."""

    claim: str
    said: str
    values: pd.Series  # by seed
    least: float = -inf
    most: float = inf

    def cells(self) -> str:
        """Two cells of the table: the mean with its interval, and whether it is inside."""
        from analysis.claims.statistics import mean_interval

        low, high = (float(end[0]) for end in mean_interval(self.values.to_numpy(float)[:, None]))
        inside, outside = self.least < low and high < self.most, high < self.least or low > self.most
        came = signed(float(self.values.mean()))
        came += f" [{signed(low)}, {signed(high)}]" if self.values.nunique() > 1 else ""
        return f"{came} | {'yes' if inside else 'no' if outside else 'open'}"


def predictions(tables: Mapping[str, pd.DataFrame]) -> str:
    """A line for each part of what ``PAIR_PREDICTIONS`` says that tier 1 decides, with two cells for each model.

    Args:
        tables: Name -> table of tier 1, as ``python -m analysis.real_tuning table`` writes it. The first is the one
            that parts on the index and on a cut vocabulary name; of others these cells are empty.
    """
    lines = [
        "| | predicted |" + "".join(f" {name} | holds |" for name in tables),
        "|---|---" + "|---" * 2 * len(tables) + "|",
    ]
    first, *others = (
        {part.said: part for part in _parts(table, named=n == 0)} for n, table in enumerate(tables.values())
    )
    for said, part in first.items():
        more = [other[said].cells() if said in other else " | " for other in others]
        lines.append(f"| {part.claim} | {said} | {' | '.join([part.cells(), *more])} |")
    return "\n".join(lines)


def _parts(table: pd.DataFrame, *, named: bool) -> Iterator[_Part]:
    scored = table.loc[(table["split"] == "scored") & table["bin"].isna()]
    whole = scored.loc[scored["within"].isna()]
    last = table["epoch"].max()
    plain, smoothed = (_read(whole, "response", b) for b in (0.0, 0.1))
    text = [_read(whole, "text", b) for b in (0.0, 0.1)]
    ece = plain["ece"].unstack("epoch")
    gain = _end(plain["ece"], last) - _end(smoothed["ece"], last)
    yield _Part("K1", "the ECE on responses, b = 0, is least at epoch 1 or 2 (epoch)", ece.idxmin(axis=1), 0.99, 2.01)
    yield _Part("K1", "and ends at least 0.05 above that", ece[last] - ece.min(axis=1), 0.05)
    yield _Part("K1", "on text it ends at least 0.02 above that before tuning", _rise(text[0]["ece"], last), 0.02)
    for b in (0.0, 0.1):
        letters = _read(whole.loc[whole["exam"] == "whole"], "letters", b, "mmlu_test")["accuracy"]
        said = f"letters, MMLU, b = {b:g}: accuracy less chance stays within 0.05"
        yield _Part("K1", said, _end(letters, last) - 0.25, -0.05, 0.05)
    yield _Part("K2", "b = 0.1 lowers the ECE on responses by 0.03 to 0.1", gain, 0.03, 0.1)
    yield _Part(
        "K2", "and raises it on text by more than 0.01", _end(text[1]["ece"], last) - _end(text[0]["ece"], last), 0.01
    )
    fitted = _read(whole, "response", 0.0, reading="post_hoc")["ece"]
    fit = table.loc[(table["split"] == "fit") & table["within"].isna()]
    nll = _read(fit, "response", 0.0)["nll"].drop(0, level="epoch").unstack("epoch")
    stopped = pd.Series({seed: ece.loc[seed, epoch] for seed, epoch in nll.idxmin(axis=1).items()})
    for said, rival in (("a fitted temperature", _end(fitted, last)), ("early stopping", stopped)):
        yield _Part("K2", f"{said} ends at an ECE no higher than b = 0.1 (by)", _end(smoothed["ece"], last) - rival, 0)
    for value, called in (("ece", "ECE"), ("accuracy", "accuracy")):
        options = [_read(whole.loc[whole["exam"] == "along"], "cloze_norm", b)[value] for b in (0.0, 0.1)]
        said = f"among the options of questions b = 0.1 changes {called} by less than 0.02"
        yield _Part("K2", said, _end(options[1], last) - _end(options[0], last), -0.02, 0.02)
    if named:
        trained = _read(table.loc[(table["split"] == "train") & table["within"].isna()], "response", 0.0)["activity"]
        yield _Part("K4", "A of b = 0.1 on what is tuned on is below 0 before tuning", _end(trained, 0), most=0)
        yield _Part("K4", "and below 0.5 after it without smoothing", _end(trained, last), most=0.5)
    fall = _end(plain["confidence"], last) - _end(smoothed["confidence"], last)
    yield _Part("K4", "confidence on responses falls by 0.06 to 0.1", fall, 0.06, 0.1)
    excess = _end(plain["confidence"] - plain["accuracy"], last)
    yield _Part("K4", "and exceeds accuracy without smoothing by more than 0.05", excess, 0.05)
    falls = {size: _fall(part, last) for size, part in scored.loc[scored["within"].notna()].groupby("rows")}
    most = max(falls, default=0)
    for size in sorted(set(falls) - {most}):
        said = f"cut to {size:,.0f} rows the fall is that of all rows, to 0.03"
        yield _Part("K4", said, falls[size] - falls[most], -0.03, 0.03)
    ranks = [_end(rows["effective_rank"], last) for rows in (plain, smoothed)]
    said = "b = 0.1 changes the rank of the features by less than a tenth (share)"
    yield _Part("K8", said, ranks[1] / ranks[0] - 1, -0.1, 0.1)
    kept = _end(smoothed["accuracy"], last) - _end(plain["accuracy"], last)
    yield _Part("K9", "b = 0.1 changes accuracy on responses by less than 0.02", kept, -0.02, 0.02)
    tuned = [
        _read(table.loc[(table["split"] == "train") & table["within"].isna()], "response", b)["nll"] for b in (0.0, 0.1)
    ]
    gaps = [_end(rows["nll"], last) - _end(train, last) for rows, train in zip((plain, smoothed), tuned, strict=True)]
    yield _Part("K9", "and narrows the gap of held-out to tuned-on NLL (by, in nats)", gaps[0] - gaps[1], 0)


def _read(rows: pd.DataFrame, view: str, b: float, source: str = "all", reading: str = "as_trained") -> pd.DataFrame:
    """Lines of one view and smoothing, by seed and epoch."""
    rows = rows.loc[(rows["view"] == view) & (rows["label_smoothing"] == b)]
    rows = rows.loc[(rows["source"] == source) & (rows["reading"] == reading)]
    return rows.set_index(["data_seed", "epoch"])


def _end(values: pd.Series, epoch: float) -> pd.Series:
    return values.xs(epoch, level="epoch")


def _rise(values: pd.Series, epoch: float) -> pd.Series:
    return _end(values, epoch) - _end(values, 0)


def _fall(rows: pd.DataFrame, epoch: float) -> pd.Series:
    plain, smoothed = (_end(_read(rows, "response", b)["confidence"], epoch) for b in (0.0, 0.1))
    return plain - smoothed
